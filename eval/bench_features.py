"""Time the features stage against indexing LeRobotDataset frame by frame, on the same frames.

python eval/bench_features.py --output_dir outputs/bench_features

Three comparisons in one run: decoding alone; the whole stage (decoding, the frozen backbone,
pooling, the cache) against a stage that differs from it in the decoding only; and the stage with
worker processes, which decode and preprocess while the backbone runs, against the one without.
Pictures of all must be equal to the last bit, and pooled features equal in float16.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.cli import make_output_dir, run
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.backbones import BackboneSource
from deas_vla.evaluation.results.pages import html_picture
from deas_vla.evaluation.timing import Arm, interleave, timing_row, write_timings
from deas_vla.guidance.features import pool_encoding
from deas_vla.policies.config import load_vla
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.features import dataset_statistics, extract_features

SEQUENTIAL, INDEXED = "sequential decode", "LeRobotDataset, frame by frame"
STAGE, INDEXED_STAGE = "features stage", "the same stage on LeRobotDataset"
AHEAD = "features stage, workers ahead"


@dataclass
class SourceConfig:
    """A LeRobotDataset v3 with videos.

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
        episodes: Per round; each round takes the next ones.
        rounds: Timed rounds, after one to warm up.
        workers: Processes that read ahead, in the way that has some.
        output_dir: Where results go.
    """

    dataset: SourceConfig = field(default_factory=SourceConfig)
    policy: BackboneSource = field(default_factory=BackboneSource)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    episodes: int = 10
    rounds: int = 5
    workers: int = 1
    output_dir: Path = Path("outputs/bench_features")


def main(config: BenchConfig) -> None:
    started = time.time()
    if config.episodes < 1 or config.rounds < 1:
        raise DeasError(
            f"episodes {config.episodes}, rounds {config.rounds}: use 1 or more of each"
        )
    output = make_output_dir(config.output_dir)
    whole = load_episodes(config.dataset.repo_id, config.dataset.root)
    needed = config.episodes * (config.rounds + 1)
    if needed > whole.num_episodes:
        raise DeasError(
            f"dataset {whole.root} has {whole.num_episodes} episodes, {config.rounds} rounds of "
            f"{config.episodes} and a warm-up take {needed}: use fewer --rounds or --episodes"
        )
    accelerator = Accelerator()
    blocks = whole.episode_ids[:needed].reshape(-1, config.episodes)
    tables = [load_episodes(whole.repo_id, whole.root, block.tolist()) for block in blocks]
    statistics = dataset_statistics(whole, np.arange(whole.num_episodes))
    vla = load_vla(
        config.policy.vla(whole), dataset_stats=statistics, device=str(accelerator.device)
    )
    frames = Frames(config, whole, tables, vla, accelerator)

    count = lambda turn: tables[turn].num_frames  # noqa: E731
    seconds = interleave(
        {
            SEQUENTIAL: Arm(frames.decode, count),
            INDEXED: Arm(frames.index, count),
            STAGE: Arm(frames.stage, count),
            AHEAD: Arm(frames.stage_ahead, count),
            INDEXED_STAGE: Arm(frames.indexed_stage, count),
        },
        config.rounds,
    )
    frames.check()

    size = sum(table.num_frames for table in tables[1:])
    rows = [
        timing_row(SEQUENTIAL, size, seconds[SEQUENTIAL], INDEXED, seconds[INDEXED]),
        timing_row(INDEXED, size, seconds[INDEXED]),
        timing_row(STAGE, size, seconds[STAGE], INDEXED_STAGE, seconds[INDEXED_STAGE]),
        timing_row(STAGE, size, seconds[STAGE], INDEXED, seconds[INDEXED]),
        timing_row(AHEAD, size, seconds[AHEAD], STAGE, seconds[STAGE]),
        timing_row(INDEXED_STAGE, size, seconds[INDEXED_STAGE]),
    ]
    draw(rows, output / "frames_per_second.png")
    write_timings(
        "Frames into features",
        config,
        rows,
        output,
        started,
        device=accelerator.device,
        note=f"""Milliseconds per frame with all {len(vla.spec.image_keys)} cameras, over
{config.rounds} rounds of {config.episodes} episodes ({size} frames in all); all ways in turn in
every round, ratios within a round. Pictures of both ways are equal to the last bit.""",
        body=html_picture(output / "frames_per_second.png", "frames per second"),
    )


class Frames:
    """The four ways, each on the episodes of a round; keeps what the last round made of them."""

    def __init__(
        self,
        config: BenchConfig,
        whole: EpisodeTable,
        tables: list[EpisodeTable],
        vla: VLA,
        accelerator: Accelerator,
    ) -> None:
        from lerobot.datasets import LeRobotDataset

        self.config, self.tables = config, tables
        self.vla, self.accelerator = vla, accelerator
        # The decoder of both is the same library: what differs is how frames are asked for.
        self.dataset = LeRobotDataset(
            whole.repo_id, whole.root, video_backend="pyav", return_uint8=True
        )
        first = np.flatnonzero(np.isin(whole.episode_ids, tables[0].episode_ids))[0]
        starts = np.cumsum([0, *(table.num_frames for table in tables)])
        self.begin = whole.episode_start[first] + starts  # dataset row of each round's first frame
        self.sequential: dict[str, NDArray[np.uint8]] = {}
        self.indexed: dict[str, NDArray[np.uint8]] = {}
        self.pooled: dict[str, NDArray[np.float16]] = {}

    def decode(self, turn: int) -> None:
        table = self.tables[turn]
        parts = [
            pictures
            for _, pictures in iter_episode_frames(table.root, table, self.vla.spec.image_keys)
        ]
        self.sequential = {
            key: np.concatenate([part[key] for part in parts]) for key in self.vla.spec.image_keys
        }

    def items(self, turn: int) -> list[dict[str, Any]]:
        return [self.dataset[int(row)] for row in range(self.begin[turn], self.begin[turn + 1])]

    def index(self, turn: int) -> None:
        items = self.items(turn)
        self.indexed = {
            key: torch.stack([item[key] for item in items]).permute(0, 2, 3, 1).numpy()
            for key in self.vla.spec.image_keys
        }

    def stage(self, turn: int) -> None:
        self.pooled[STAGE] = self.extracted(turn, 0)

    def stage_ahead(self, turn: int) -> None:
        self.pooled[AHEAD] = self.extracted(turn, self.config.workers)

    def extracted(self, turn: int, workers: int) -> NDArray[np.float16]:
        with TemporaryDirectory() as folder:
            encodings = extract_features(
                self.vla,
                self.tables[turn],
                replace(self.config.features, workers=workers),
                Path(folder),
                self.accelerator,
                keep_tokens=False,
            )
            return np.array(encodings.pooled)

    def indexed_stage(self, turn: int) -> None:
        items, size = self.items(turn), self.config.features.batch_size
        pooled = []
        for at in range(0, len(items), size):
            part = items[at : at + size]
            batch: dict[str, Any] = {
                key: torch.stack([item[key] for item in part])
                for key in (*self.vla.spec.image_keys, "observation.state")
            }
            batch["task"] = [item["task"] for item in part]
            encoding = self.vla.encode(batch)
            pooled.append(pool_encoding(self.vla, encoding, self.config.features.pooling).cpu())
        self.pooled[INDEXED_STAGE] = torch.cat(pooled).numpy().astype(np.float16)

    def check(self) -> None:
        """DeasError unless both ways saw the same pictures and made the same features."""
        for key, pictures in self.sequential.items():
            if not np.array_equal(pictures, self.indexed[key]):
                raise DeasError(f"camera {key}: the two ways decoded different pictures")
        if not np.array_equal(self.pooled[STAGE], self.pooled[AHEAD]):
            raise DeasError("worker processes made other features of the same pictures")
        one, other = (self.pooled[way].astype(np.float32) for way in (STAGE, INDEXED_STAGE))
        if not np.allclose(one, other, rtol=1e-2, atol=1e-2 * float(np.abs(one).max())):
            raise DeasError("the two ways made different features of the same pictures")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = {row["what"]: 1e3 / row["median_ms"] for row in rows}
    figure, axes = pyplot.subplots(figsize=(6.4, 2.6), layout="constrained")
    bars = axes.barh(list(rates), list(rates.values()), color=["C0", "C1", "C0", "C0", "C1"])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="frames per second")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, BenchConfig)
