"""Measure the resident memory of every stage of the recipe, over datasets of growing size.

python eval/bench_stages.py --output_dir outputs/bench_stages

Datasets of noise on the disk, chunks and tokens of GR00T N1.7's dimensions (40 x 132, 2,048 wide);
the backbone is stood in for by noise, the action head is small: neither depends on the dataset's
size. Each stage runs in a process of its own that has loaded everything; what counts is what it
takes beyond that. All tokens of a dataset are a sparse file here, which reads as zeros: they would
take 0.9 MB a frame. Linux only.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.cli import make_output_dir, run
from deas_vla.data.episodes import EpisodeTable, load_episodes, split_episodes
from deas_vla.data.feature_files import RowFile
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.dataset import write_dataset
from deas_vla.evaluation.benches.memory import MemoryWatch
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.evaluation.timing import check_counts
from deas_vla.files import write_json
from deas_vla.policies.groot.stand_in import TOKENS, WIDTH, StandIn
from deas_vla.policies.vla import VLA
from deas_vla.provenance import run_record
from deas_vla.training.checkpoints import CheckpointConfig
from deas_vla.training.config import DatasetConfig, FinetuneConfig
from deas_vla.training.critic import train_critic
from deas_vla.training.datasets import load_dataset
from deas_vla.training.encodings import Encodings
from deas_vla.training.features import dataset_statistics, extract_features
from deas_vla.training.policy import finetune_policy
from deas_vla.training.preemption import Preemption
from deas_vla.training.run import Run

READ, FEATURES, POLICY, CRITIC = "check and read", "features", "policy", "critic"
LONG = "features with tokens, one long episode"


@dataclass
class BenchConfig:
    """What to measure.

    Attributes:
        frames: Of the datasets.
        episode: Frames of an episode.
        long_episodes: Lengths of an episode whose tokens are written too; 0.92 MB a frame.
        stages: Which to measure, of ``check and read``, ``features``, ``policy`` and ``critic``.
        steps: Updates of policy and critic.
        pooled_tokens: Tokens L of a frame where all are pooled and none is kept.
        recipe: Batch sizes and networks.
        scratch: Directory for the files; a temporary one when left out.
        output_dir: Where results go.
    """

    frames: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    episode: int = 500
    long_episodes: list[int] = field(default_factory=lambda: [500, 5_000])
    stages: list[str] = field(default_factory=lambda: [READ, FEATURES, POLICY, CRITIC])
    steps: int = 10
    pooled_tokens: int = 4
    recipe: FinetuneConfig = field(default_factory=FinetuneConfig)
    scratch: Path | None = None
    output_dir: Path = Path("outputs/bench_stages")

    def check(self) -> None:
        """DeasError for a value that nothing could be measured with."""
        check_counts(self, "episode", "steps", "pooled_tokens")
        if not self.frames or min(self.frames) < self.episode:
            raise DeasError(
                f"frames {self.frames}: use {self.episode} (an episode) or more of each"
            )
        for stage in self.stages:
            if stage not in (READ, FEATURES, POLICY, CRITIC):
                raise DeasError(f"stage '{stage}' is unknown: see --help")
        self.recipe.policy.steps = self.recipe.critic.steps = self.steps


def main(config: BenchConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    torch.set_num_threads(1)  # processes are forked from this one
    vla, few = StandIn(), StandIn(config.pooled_tokens)
    rows: list[dict[str, Any]] = []

    def measure(what: str, frames: int, stage: Callable[[], object]) -> None:
        if what not in (*config.stages, LONG):
            return
        rows.append({"what": what, "size": frames} | in_own_process(stage))
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else str(value)
                        for value in rows[-1].values()), flush=True)  # fmt: skip

    for frames in config.frames:
        with TemporaryDirectory(dir=config.scratch) as folder:
            root, cache = Path(folder) / "data", Path(folder) / "cache"
            write_dataset(root, frames, config.episode)
            measure(READ, frames, partial(read, root))
            table = load_episodes("bench/noise", root)
            measure(FEATURES, frames, partial(features, few, table, config, cache))
            encodings = mapped(few, vla, table, config, cache)
            measure(POLICY, frames, partial(policy, vla, table, encodings, config))
            measure(CRITIC, frames, partial(critic, table, encodings, config))
    for frames in config.long_episodes:
        with TemporaryDirectory(dir=config.scratch) as folder:
            root, cache = Path(folder) / "data", Path(folder) / "cache"
            write_dataset(root, frames, frames, per_file=1)
            table = load_episodes("bench/noise", root)
            measure(LONG, frames, partial(features, vla, table, config, cache, True))

    write_json(output / "results.json", {**run_record(config, started), "rows": rows})
    header = list(rows[0])
    cells = [[f"{v:.3f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
              for v in row.values()] for row in rows]  # fmt: skip
    note = """<p>GB beyond what the process held before. Anonymous memory is its own; pages of
mapped files the system takes back.</p>"""
    write_page("Memory of the stages", note + html_table(header, cells), output / "report.html")
    print(f"results in {output}")


def in_own_process(stage: Callable[[], object]) -> dict[str, float]:
    """Peaks of resident memory, GB beyond the beginning, and seconds of a stage in a fork."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def child() -> None:
        with MemoryWatch() as watch:
            before, began = watch.now(), time.perf_counter()
            stage()
            seconds = time.perf_counter() - began
        peak = {name: watch.peak[name] - before[name] for name in before}
        theirs.send((peak, seconds))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    while not ours.poll(0.2):
        if not process.is_alive():
            raise DeasError(f"the measured process ended with status {process.exitcode}")
    peak, seconds = ours.recv()
    process.join()
    return {
        "anonymous_gb": peak["RssAnon"],
        "mapped_gb": peak["RssFile"],
        "seconds": seconds,
    }


def read(root: Path) -> None:
    """What happens before any stage: the dataset is checked, read, and its statistics made."""
    table = load_dataset(DatasetConfig(repo_id="bench/noise", root=str(root)))
    dataset_statistics(table, np.arange(table.num_episodes))


def features(
    vla: StandIn, table: EpisodeTable, config: BenchConfig, cache: Path, tokens: bool = False
) -> Encodings:
    return extract_features(
        cast(VLA, vla), table, config.recipe.features, cache, Accelerator(), keep_tokens=tokens
    )


def mapped(
    few: StandIn, vla: StandIn, table: EpisodeTable, config: BenchConfig, cache: Path
) -> Encodings:
    """The features where they were extracted, and sparse files for the rest."""
    cache.mkdir(exist_ok=True)
    tokens = sparse(cache / "tokens.npy", table.num_frames, TOKENS * WIDTH)
    if FEATURES in config.stages:
        pooled = features(few, table, config, cache).pooled
    else:
        pooled = sparse(cache / "pooled.npy", table.num_frames, WIDTH)
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    return Encodings(pooled, tokens, mask, mask, table.task_index)


def sparse(path: Path, rows: int, width: int) -> NDArray[np.float16]:
    with RowFile(path, (rows, width), np.dtype(np.float16)) as file:
        file.sync()
    return np.load(path, mmap_mode="r")


def policy(vla: StandIn, table: EpisodeTable, encodings: Encodings, config: BenchConfig) -> None:
    train, held_out = split_episodes(table, config.recipe.dataset.holdout, config.recipe.seed)
    with TemporaryDirectory() as folder, Preemption(Accelerator()) as preemption:
        run = stage_run(config, Path(folder), preemption)
        finetune_policy(vla.network, encodings, table, train, held_out, config.recipe.policy, run)


def critic(table: EpisodeTable, encodings: Encodings, config: BenchConfig) -> None:
    train, held_out = split_episodes(table, config.recipe.dataset.holdout, config.recipe.seed)
    with TemporaryDirectory() as folder, Preemption(Accelerator()) as preemption:
        run = stage_run(config, Path(folder), preemption)
        train_critic(table, encodings.pooled, train, held_out, config.recipe.critic, run)


def stage_run(config: BenchConfig, folder: Path, preemption: Preemption) -> Run:
    accelerator, seed = Accelerator(), config.recipe.seed
    return Run(folder, accelerator, preemption, CheckpointConfig(), seed, lambda *_: None)


if __name__ == "__main__":
    run(main, BenchConfig)
