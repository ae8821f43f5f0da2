"""Time the critic's update on cached features against the backbone in the loop and a plain loop.

python eval/bench_updates.py --output_dir outputs/bench_updates

Three arms: the recipe's update on cached features; the same update with the frozen backbone run on
the pictures of s and s' every time; a plain PyTorch loop on cached features. Pictures are decoded
and preprocessed beforehand, which a real loop would have to do as well.

On a GPU, ``--backbone=full --policy.dtype=bfloat16 --critic.compile=true`` builds GR00T N1.7's own
backbone with random weights.
"""

import sys
import time
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.cli import make_output_dir, run
from deas_vla.data.dataset import TransitionDataset
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.backbones import (
    Backbone,
    BackboneSource,
    checkpoint_backbone,
    full_size_backbone,
)
from deas_vla.evaluation.benches.plain_loop import PlainLoop
from deas_vla.evaluation.timing import Arm, check_counts, interleave, timing_row, write_timings
from deas_vla.policies.config import load_vla
from deas_vla.training.config import CriticTrainingConfig, FeaturesConfig
from deas_vla.training.critic_data import make_transitions, new_critic
from deas_vla.training.features import dataset_statistics, extract_features
from deas_vla.training.loop import index_batches
from deas_vla.training.update import CriticUpdate

CACHED, PLAIN, IN_LOOP = "cached features", "plain PyTorch loop", "backbone in the loop"


@dataclass
class SourceConfig:
    """A LeRobotDataset v3 with videos, and how many of its episodes to use.

    Attributes:
        repo_id: ``user/name``.
        root: Its directory.
        episodes: How many.
    """

    repo_id: str = "deas_vla/lift_demos"
    root: str | None = "deas_vla/assets/lift_demos"
    episodes: int = 30


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        backbone: ``nano``, the checkpoint of ``policy``; or ``full``, GR00T N1.7's own size with
            random weights.
        policy: The checkpoint, and the dtype of either backbone.
        micro_batch: Frames per forward pass of the backbone.
        critic: Network sizes, batch and algorithm; as in the recipe.
        rounds: Timed rounds of a comparison.
        updates_per_round: Of the fast arms, in every round.
        seed: Of weights and draws.
        output_dir: Where results go.
    """

    backbone: str = "nano"
    dataset: SourceConfig = field(default_factory=SourceConfig)
    policy: BackboneSource = field(default_factory=BackboneSource)
    micro_batch: int = 64
    critic: CriticTrainingConfig = field(default_factory=CriticTrainingConfig)
    rounds: int = 20
    updates_per_round: int = 5
    seed: int = 0
    output_dir: Path = Path("outputs/bench_updates")

    def check(self) -> None:
        """DeasError for a value that nothing could be timed with."""
        if self.backbone not in ("nano", "full"):
            raise DeasError(f"backbone '{self.backbone}' is unknown: use nano or full")
        check_counts(self, "rounds", "updates_per_round", "micro_batch")


def main(config: BenchConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    accelerator = Accelerator()
    source = config.dataset
    table = load_episodes(source.repo_id, source.root, list(range(source.episodes)))
    build = nano if config.backbone == "nano" else full_size
    cached, backbone = build(config, table, accelerator)
    rows = time_updates(config, table, cached, backbone, accelerator)
    write_timings(
        "Updates of a critic",
        config,
        rows,
        output,
        started,
        device=accelerator.device,
        note=f"""Milliseconds per update of batch {config.critic.batch_size}; arms in turn in every
round, ratios within a round.""",
    )


def nano(
    config: BenchConfig, table: EpisodeTable, accelerator: Accelerator
) -> tuple[NDArray[np.float16], Backbone]:
    """Features (T, F) as the recipe caches them, and the backbone that they came from."""
    vla = load_vla(
        config.policy.vla(table),
        dataset_stats=dataset_statistics(table, np.arange(table.num_episodes)),
        device=str(accelerator.device),
    )
    features = FeaturesConfig(batch_size=config.micro_batch)
    with TemporaryDirectory() as folder:
        found = extract_features(
            vla, table, features, Path(folder), accelerator, keep_tokens=False
        ).pooled
        cached = np.array(found)
    return cached, checkpoint_backbone(vla, table, config.micro_batch)


def full_size(
    config: BenchConfig, table: EpisodeTable, accelerator: Accelerator
) -> tuple[NDArray[np.float16], Backbone]:
    """Noise for features (T, F): random weights have no pictures."""
    backbone = full_size_backbone(
        len(table.image_keys),
        config.micro_batch,
        config.policy.dtype,
        accelerator.device,
        config.seed,
    )
    noise = np.random.default_rng(config.seed).standard_normal((table.num_frames, backbone.width))
    return noise.astype(np.float16), backbone


def time_updates(
    config: BenchConfig,
    table: EpisodeTable,
    cached: NDArray[np.float16],
    backbone: Backbone,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """Cached against plain, and, in rounds of their own, cached against the backbone."""
    everything, device = np.arange(table.num_episodes), accelerator.device
    batch_size = config.critic.batch_size
    transitions = make_transitions(table, everything, config.critic)
    data = TransitionDataset(
        table,
        cached,
        transitions,
        config.critic.horizon,
        device=device,
        tails=config.critic.tails,
    )
    draws = index_batches(len(data), batch_size, range(sys.maxsize), config.seed)
    few = list(islice(draws, 3))  # pictures of a few batches fit in memory
    pictures = [
        backbone.inputs(np.concatenate([transitions.start[rows], transitions.next[rows]]))
        for rows in (draw.rows.numpy() for draw in few)
    ]

    def updater() -> CriticUpdate:
        critic = new_critic(table, cached, everything, config.critic, config.seed)
        return CriticUpdate(critic.to(device), config.critic, accelerator, None)

    ours, in_loop = updater(), updater()
    plain = PlainLoop(ours.critic, config.critic.lr).to(device)

    def train_cached(turn: int) -> None:
        for _ in range(config.updates_per_round):
            ours(data.batch(next(draws)))

    def train_plain(turn: int) -> None:
        for _ in range(config.updates_per_round):
            plain.update(data.batch(next(draws)))

    def train_in_loop(turn: int) -> None:
        which = turn % len(few)
        feature, following = backbone.run(pictures[which]).chunk(2)
        batch = data.batch(few[which])
        if config.backbone == "nano" and not close(batch.feature, feature):
            raise DeasError("cached features differ from the backbone's own")
        in_loop(replace(batch, feature=feature, next_feature=following))

    several = lambda _: config.updates_per_round  # noqa: E731
    seconds = interleave(
        {CACHED: Arm(train_cached, several), PLAIN: Arm(train_plain, several)},
        config.rounds,
        warm_up=3,
        label="updates",
    )
    rows = [
        timing_row(CACHED, batch_size, seconds[CACHED], PLAIN, seconds[PLAIN]),
        timing_row(PLAIN, batch_size, seconds[PLAIN]),
    ]
    seconds = interleave(
        {CACHED: Arm(train_cached, several), IN_LOOP: Arm(train_in_loop)},
        max(3, config.rounds // 4),
        warm_up=4 if config.critic.compile else 1,  # a CUDA graph is captured in the fourth
        label="backbone",
    )
    rows += [
        timing_row(CACHED, batch_size, seconds[CACHED], IN_LOOP, seconds[IN_LOOP]),
        timing_row(IN_LOOP, batch_size, seconds[IN_LOOP]),
    ]
    return rows


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to float16, in which features are cached."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().max()))


if __name__ == "__main__":
    run(main, BenchConfig)
