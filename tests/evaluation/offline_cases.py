"""A critic that is known without any network, over the dataset in memory; and the command."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recipe_cases import load_script
from table_cases import LENGTHS

from deas_vla.cli import parse
from deas_vla.critic import CriticConfig
from deas_vla.data.episodes import EpisodeTable
from deas_vla.evaluation.offline.scoring import FrameCritic

H, G1, G2 = 4, 0.9, 0.99


class PlainCritic:
    """Q is the mean action of a chunk, V the first state: known without any network."""

    turn = 1e9  # both members are the same

    def __init__(self, v_min: float = -100.0, v_max: float = 0.0) -> None:
        self.config = CriticConfig(
            feature_dim=2,
            state_dim=3,
            action_dim=2,
            horizon=H,
            g1=G1,
            g2=G2,
            v_min=v_min,
            v_max=v_max,
        )
        self.normalizer = SimpleNamespace(state_mean=torch.zeros(3))

    def value(self, feature: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return state[:, 0]

    def member_scores(
        self, feature: torch.Tensor, state: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        """Two members; the second turns over what it thinks of chunks above ``turn``."""
        q = actions.mean((2, 3))
        return torch.stack([q, torch.where(q > self.turn, 3 * self.turn - 2 * q, q)])


def frame_critic(table: EpisodeTable, **bounds: float) -> FrameCritic:
    features = np.zeros((table.num_frames, 2), dtype=np.float16)
    critic: Any = PlainCritic(**bounds)
    return FrameCritic(critic, table, features)


EVERY = np.arange(len(LENGTHS))


def evaluate(bundle: Path, dataset: Path, output: Path, *more: str) -> dict[str, Any]:
    """What `eval/critic.py` leaves in results.json."""
    script = load_script("eval/critic.py")
    flags = [f"--bundle={bundle}", f"--dataset.root={dataset}", f"--output_dir={output}"]
    script.main(parse(script.CriticEvalConfig, [*flags, "--resamples=20", *more]))
    record: dict[str, Any] = json.loads((output / "results.json").read_text())
    return record
