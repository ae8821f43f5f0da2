"""Measure the host memory of critic training on mapped features, and what reading ahead saves.

python eval/bench_memory.py --output_dir outputs/bench_memory

A synthetic file of features, mapped as a large dataset's would be. The peak is that of this whole
process; then updates wait for batches of a file that is not in the page cache, read ahead by a
thread or not. Linux only.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.cli import make_output_dir, run
from deas_vla.critic.batch import ChunkBatch
from deas_vla.data.dataset import Draw, TransitionDataset
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.memory import MemoryWatch, evict
from deas_vla.evaluation.benches.synthetic import EPISODE, synthetic_features, synthetic_table
from deas_vla.evaluation.results.pages import html_table
from deas_vla.evaluation.timing import check_counts, timing_row, write_timings
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.critic_data import make_transitions, new_critic
from deas_vla.training.loop import index_batches
from deas_vla.training.update import CriticUpdate

AHEAD, ONE_BY_ONE = "wait for a mapped batch, read ahead", "wait, not read ahead"


@dataclass
class BenchConfig:
    """What to measure.

    Attributes:
        frames: Of the dataset.
        feature_dim: Width F; the file takes 2 F bytes a frame.
        updates: While memory is watched.
        critic: Network sizes, batch and algorithm; as in the recipe.
        rounds: Timed rounds of reading from the disk.
        updates_per_round: Of either way, in every round.
        scratch: Directory for the file; a temporary one when left out.
        seed: Of weights and draws.
        output_dir: Where results go.
    """

    frames: int = 1_000_000
    feature_dim: int = 2048
    updates: int = 300
    critic: CriticTrainingConfig = field(default_factory=CriticTrainingConfig)
    rounds: int = 20
    updates_per_round: int = 5
    scratch: Path | None = None
    seed: int = 0
    output_dir: Path = Path("outputs/bench_memory")

    def check(self) -> None:
        """DeasError for a value that nothing could be measured with."""
        check_counts(self, "feature_dim", "updates", "rounds", "updates_per_round")
        if self.frames < 2 * EPISODE:
            raise DeasError(f"frames {self.frames}: use {2 * EPISODE} or more")


def main(config: BenchConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    accelerator = Accelerator()
    with TemporaryDirectory(dir=config.scratch) as folder:
        rows, memory = measure(config, accelerator, Path(folder) / "features.npy")
    cells = [[name, f"{value:.2f}"] for name, value in memory.items()]
    for name, value in cells:
        print(f"{name:28s} {value}")
    write_timings(
        "Memory of critic training",
        config,
        rows,
        output,
        started,
        device=accelerator.device,
        note=f"""Milliseconds that an update of batch {config.critic.batch_size} waits for its
batch, from a file that is not in memory; both ways in turn in every round, ratios within a
round.""",
        body="<h2>Memory</h2>" + html_table(["what", "value"], cells),
        memory=memory,
    )


def measure(
    config: BenchConfig, accelerator: Accelerator, path: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Peak memory of everything that the critic stage does on mapped features, in GB."""
    with MemoryWatch() as watch:
        imported = watch.now()
        table = synthetic_table(config.frames)
        features = synthetic_features(path, table.num_frames, config.feature_dim)
        everything = np.arange(table.num_episodes)
        data = TransitionDataset(
            table,
            features,
            make_transitions(table, everything, config.critic),
            config.critic.horizon,
            device=accelerator.device,
            resident=False,
            tails=config.critic.tails,
        )
        critic = new_critic(table, features, everything, config.critic, config.seed)
        update = CriticUpdate(critic.to(accelerator.device), config.critic, accelerator, None)
        draws = index_batches(len(data), config.critic.batch_size, range(sys.maxsize), config.seed)
        for batch in data.batches(islice(draws, config.updates)):
            update(batch)
    memory = {
        "file_gb": path.stat().st_size / 1e9,
        "imported_rss_gb": imported["VmRSS"],
        "imported_anonymous_gb": imported["RssAnon"],
        "peak_rss_gb": watch.peak["VmRSS"],
        "peak_anonymous_gb": watch.peak["RssAnon"],
        "peak_mapped_file_gb": watch.peak["RssFile"],
        "updates": config.updates,
    }
    return time_reading_ahead(config, data, features, path, update, draws), memory


def time_reading_ahead(
    config: BenchConfig,
    data: TransitionDataset,
    features: NDArray[np.float16],
    path: Path,
    update: CriticUpdate,
    draws: Iterator[Draw],
) -> list[dict[str, Any]]:
    """How long updates wait for batches from a file that is on the disk only, by thread or not.

    The first batch after emptying the page cache is left out: nothing could be read ahead of it.
    """
    count = config.updates_per_round + 1
    ways: dict[str, Callable[[], Iterator[ChunkBatch]]] = {
        AHEAD: lambda: data.batches(islice(draws, count)),
        ONE_BY_ONE: lambda: map(data.batch, islice(draws, count)),
    }
    waits: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(config.rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            evict(features, path)
            waits[way].append(float(np.mean(training_waits(ways[way](), update)[1:])))
    seconds = {way: np.asarray(values) for way, values in waits.items()}
    return [
        timing_row(AHEAD, len(features), seconds[AHEAD], ONE_BY_ONE, seconds[ONE_BY_ONE]),
        timing_row(ONE_BY_ONE, len(features), seconds[ONE_BY_ONE]),
    ]


def training_waits(batches: Iterator[ChunkBatch], update: CriticUpdate) -> list[float]:
    """Seconds before each batch is there, between updates that the device has finished."""
    waits = []
    began = time.perf_counter()
    for batch in batches:
        waits.append(time.perf_counter() - began)
        float(update(batch)[0])
        began = time.perf_counter()
    return waits


if __name__ == "__main__":
    run(main, BenchConfig)
