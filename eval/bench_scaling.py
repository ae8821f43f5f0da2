"""Time the critic's update over the size of the dataset, from 10^4 to 10^7 transitions.

python eval/bench_scaling.py --output_dir outputs/bench_scaling

One critic and one synthetic file of features; the datasets are its first rows. An update, and its
index draw alone, with each of them in turn.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate import Accelerator

from deas_vla.cli import make_output_dir, run
from deas_vla.critic.registry import make_critic
from deas_vla.data.dataset import Draw, TransitionDataset
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.synthetic import (
    EPISODE,
    first_episodes,
    synthetic_features,
    synthetic_table,
)
from deas_vla.evaluation.results.pages import html_picture
from deas_vla.evaluation.timing import Arm, check_counts, interleave, timing_row, write_timings
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.critic_data import critic_config, make_transitions
from deas_vla.training.loop import index_batches
from deas_vla.training.update import CriticUpdate

UPDATE, DRAW = "cached features", "index draw"


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        transitions: Sizes of the datasets.
        feature_dim: Width F; the file takes 2 F bytes a transition.
        critic: Network sizes, batch and algorithm; as in the recipe.
        rounds: Timed rounds.
        updates_per_round: Of each arm, in every round.
        scratch: Directory for the file; a temporary one when left out.
        seed: Of weights and draws.
        output_dir: Where results go.
    """

    transitions: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000, 10_000_000])
    feature_dim: int = 256
    critic: CriticTrainingConfig = field(default_factory=CriticTrainingConfig)
    rounds: int = 20
    updates_per_round: int = 5
    scratch: Path | None = None
    seed: int = 0
    output_dir: Path = Path("outputs/bench_scaling")

    def check(self) -> None:
        """DeasError for a value that nothing could be timed with."""
        check_counts(self, "rounds", "updates_per_round", "feature_dim")
        if min(self.transitions, default=0) < 2 * EPISODE:
            raise DeasError(f"transitions {self.transitions}: use {2 * EPISODE} or more")


def main(config: BenchConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    accelerator = Accelerator()
    with TemporaryDirectory(dir=config.scratch) as folder:
        rows = time_scaling(config, accelerator, Path(folder))
    draw(rows, output / "scaling.png")
    write_timings(
        "Updates of a critic by size of the dataset",
        config,
        rows,
        output,
        started,
        device=accelerator.device,
        note=f"""Milliseconds per update of batch {config.critic.batch_size}; sizes in turn in every
round, ratios within a round.""",
        body=html_picture(output / "scaling.png", "cost per update by size of the dataset"),
    )


def time_scaling(
    config: BenchConfig, accelerator: Accelerator, folder: Path
) -> list[dict[str, Any]]:
    """One critic, datasets of several sizes in turn: each is the first rows of the largest."""
    sizes = sorted(config.transitions)
    # A chunk that the time limit cuts is dropped: a few more frames than transitions.
    spare = 1 + 2 * config.critic.horizon / EPISODE
    episodes = {size: math.ceil(size * spare / EPISODE) for size in sizes}
    table = synthetic_table(EPISODE * episodes[sizes[-1]])
    features = synthetic_features(folder / "features.npy", table.num_frames, config.feature_dim)
    resolved = critic_config(
        table, config.feature_dim, np.arange(table.num_episodes), config.critic
    )
    critic = make_critic(resolved).to(accelerator.device)
    update = CriticUpdate(critic, config.critic, accelerator, None)
    arms: dict[str, Arm] = {}
    count = config.updates_per_round
    for size in sizes:
        part = first_episodes(table, episodes[size])
        found = make_transitions(part, np.arange(part.num_episodes), config.critic)
        data = TransitionDataset(
            part,
            features[: part.num_frames],
            replace(found, **{name: values[:size] for name, values in vars(found).items()}),
            config.critic.horizon,
            device=accelerator.device,
            resident=False,
            tails=config.critic.tails,
        )
        draws = index_batches(len(data), config.critic.batch_size, range(sys.maxsize), config.seed)

        def train(turn: int, data: TransitionDataset = data, draws: Iterator[Draw] = draws) -> None:
            for _ in range(count):
                update(data.batch(next(draws)))

        def draw_only(
            turn: int, data: TransitionDataset = data, draws: Iterator[Draw] = draws
        ) -> None:
            for _ in range(count):
                data.batch(next(draws))

        arms[f"{UPDATE} {size}"] = Arm(train, lambda _: count)
        arms[f"{DRAW} {size}"] = Arm(draw_only, lambda _: count)
    seconds = interleave(arms, config.rounds, warm_up=3, label="scaling")
    rows = []
    for what in (UPDATE, DRAW):
        base = seconds[f"{what} {sizes[0]}"]
        for size in sizes:
            smallest = f"{what}, {sizes[0]:,} transitions"
            rows.append(timing_row(what, size, seconds[f"{what} {size}"], smallest, base))
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    for what in dict.fromkeys(row["what"] for row in rows):
        line = [row for row in rows if row["what"] == what]
        size = [row["size"] for row in line]
        label = "update" if what == UPDATE else what
        axes.plot(size, [row["median_ms"] for row in line], marker="o", label=f"{label}, median")
        axes.plot(size, [row["p95_ms"] for row in line], "k:", marker=".", linewidth=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="transitions", ylabel="ms (dotted: 95th percentile)"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, BenchConfig)
