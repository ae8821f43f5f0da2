"""Time policy updates on cached tokens against updates with the backbone in the loop.

python eval/bench_tokens.py --output_dir outputs/bench_tokens

An update is what the policy stage does: inputs, forward and backward pass, AdamW. Each round draws
its batches anew, the same ones for every way; what an online way needs to start its worker
processes counts.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator

from deas_vla.cli import make_output_dir, run
from deas_vla.data.dataset import Draw
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.evaluation.benches.backbones import BackboneSource
from deas_vla.evaluation.timing import Arm, check_counts, interleave, timing_row, write_timings
from deas_vla.policies.config import load_vla
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FeaturesConfig, PolicyConfig
from deas_vla.training.features import dataset_statistics, extract_features
from deas_vla.training.loop import index_batches
from deas_vla.training.policy import FlowMatching, add_lora, joined_batch, policy_targets
from deas_vla.training.policy_inputs import CachedTokens, OnlinePictures, Part, PolicyInputs

CACHED = "cached tokens"


@dataclass
class SourceConfig:
    """A LeRobotDataset v3.

    Attributes:
        repo_id: ``user/name``.
        root: Its directory.
    """

    repo_id: str = "deas_vla/lift_demos"
    root: str | None = "deas_vla/assets/lift_demos"


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        train: Parts of the policy that train on pictures; on cached tokens it is ``head``.
        workers: Numbers of worker processes.
        episodes: Of the dataset; their tokens are cached before anything is timed.
        batch_size: Chunks of an update.
        updates: In each round.
        rounds: Timed rounds, after one to warm up.
        output_dir: Where results go.
    """

    dataset: SourceConfig = field(default_factory=SourceConfig)
    policy: BackboneSource = field(default_factory=BackboneSource)
    train: list[str] = field(default_factory=lambda: ["head"])
    workers: list[int] = field(default_factory=lambda: [0, 1, 2])
    episodes: int = 20
    batch_size: int = 64
    updates: int = 20
    rounds: int = 5
    output_dir: Path = Path("outputs/bench_tokens")


def main(config: BenchConfig) -> None:
    started = time.time()
    check_counts(config, "episodes", "batch_size", "updates", "rounds")
    output = make_output_dir(config.output_dir)
    whole = load_episodes(config.dataset.repo_id, config.dataset.root)
    table = load_episodes(whole.repo_id, whole.root, whole.episode_ids[: config.episodes].tolist())
    accelerator = Accelerator()
    with TemporaryDirectory() as folder:
        vla = trained_vla(config, table, ["head"], accelerator)
        cache = Path(folder)
        encodings = extract_features(
            vla, table, FeaturesConfig(), cache, accelerator, keep_tokens=True
        )
        ways = {CACHED: Updates(config, vla, table, CachedTokens(encodings))}
        online = trained_vla(config, table, config.train, accelerator)
        for workers in config.workers:
            inputs = OnlinePictures(online, table, workers=workers)
            ways[f"online, {workers} workers"] = Updates(config, online, table, inputs)
        units = config.updates * config.batch_size
        arms = {name: Arm(way.run, lambda _: units) for name, way in ways.items()}
        seconds = interleave(arms, config.rounds)
    rows = [
        timing_row(name, units, each, CACHED, seconds[CACHED]) for name, each in seconds.items()
    ]
    write_timings(
        "Policy updates on cached tokens and on pictures",
        config,
        rows,
        output,
        started,
        device=accelerator.device,
        note=f"""Milliseconds per frame of an update, over {config.rounds} rounds of
{config.updates} updates of {config.batch_size} chunks each; all ways in turn in every round, ratios
within a round. Computing the cache is not counted.""",
    )


def trained_vla(
    config: BenchConfig, table: EpisodeTable, train: list[str], accelerator: Accelerator
) -> VLA:
    """The checkpoint with an adapter on these parts."""
    statistics = dataset_statistics(table, np.arange(table.num_episodes))
    vla = load_vla(
        config.policy.vla(table), dataset_stats=statistics, device=str(accelerator.device)
    )
    add_lora(vla, PolicyConfig(train=train))
    vla.model.train()
    return vla


class Updates:
    """The policy stage's updates from one kind of inputs."""

    def __init__(
        self, config: BenchConfig, vla: VLA, table: EpisodeTable, inputs: PolicyInputs
    ) -> None:
        self._config, self._vla, self._table, self._inputs = config, vla, table, inputs
        self._module = FlowMatching(vla)
        trained = [p for p in self._module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def draws(self, turn: int) -> Iterator[Draw]:
        steps, size = range(self._config.updates), self._config.batch_size
        return index_batches(self._table.num_frames, size, steps, seed=turn)

    def run(self, turn: int) -> None:
        parts = (Part(draw.rows.numpy(), draw.seeds) for draw in self.draws(turn))
        rows = torch.arange(self._config.batch_size)
        with closing(self._inputs.stream(parts, self._vla.device)) as stream:
            for draw, observed in zip(self.draws(turn), stream, strict=True):
                targets = policy_targets(self._vla, self._table, draw.rows.numpy())
                self._module(joined_batch(observed, targets, rows)).backward()
                self._optimizer.step()
                self._optimizer.zero_grad()


if __name__ == "__main__":
    run(main, BenchConfig)
