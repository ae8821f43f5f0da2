"""A dataset in memory and a critic that is known without any network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from deas_vla.critic import CriticConfig
from deas_vla.data.episodes import EpisodeTable
from deas_vla.evaluation.offline.scoring import FrameCritic

H, G1, G2 = 4, 0.9, 0.99
LENGTHS, OUTCOMES = (9, 12, 7, 10), (True, False, True, False)


def make_table(
    lengths: tuple[int, ...] = LENGTHS, outcomes: tuple[bool, ...] = OUTCOMES, seed: int = 0
) -> EpisodeTable:
    """Episodes in memory: 3-dim states, 2-dim actions; success at the last step."""
    rng = np.random.default_rng(seed)
    end, solved = np.cumsum(lengths), np.array(outcomes)
    frames = int(end[-1])
    last = np.zeros(frames, dtype=bool)
    last[end - 1] = True
    success = last & np.repeat(solved, lengths)
    return EpisodeTable(
        repo_id="test/memory",
        root=Path("memory"),
        fingerprint=f"content {seed}",
        state=rng.normal(size=(frames, 3)).astype(np.float32),
        action=rng.normal(size=(frames, 2)).astype(np.float32),
        dataset_reward=success.astype(np.float32),
        done=last,
        success=success,
        terminated=success.copy(),
        truncated=last & ~success,
        episode_index=np.repeat(np.arange(len(lengths)), lengths),
        episode_start=(end - lengths).astype(np.int64),
        episode_end=end.astype(np.int64),
        episode_ids=np.arange(len(lengths)),
        episode_success=solved,
        task_index=np.zeros(frames, dtype=np.int64),
        tasks=("task",),
        image_keys=(),
        fps=10.0,
        state_names=("x", "y", "z"),
        action_names=("dx", "dy"),
    )


class PlainCritic:
    """Q is the mean action of a chunk, V the first state: known without any network."""

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

    def score(
        self, feature: torch.Tensor, state: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        return actions.mean((2, 3))


def frame_critic(table: EpisodeTable, **bounds: float) -> FrameCritic:
    features = np.zeros((table.num_frames, 2), dtype=np.float16)
    critic: Any = PlainCritic(**bounds)
    return FrameCritic(critic, table, features)


EVERY = np.arange(len(LENGTHS))
