"""Time the features stage with and without processes that decode and preprocess ahead of a device.

python eval/bench_pipeline.py --output_dir outputs/bench_pipeline

Decoding and preprocessing are real, at 256 x 256 pixels as GR00T N1.7 takes them. The backbone is a
wait of so many milliseconds a frame: one on a GPU leaves the CPU alone as a wait does, which one on
a CPU does not. Ways are run in turn in every round, and must make the same features.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.cli import make_output_dir, run
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.errors import DeasError
from deas_vla.evaluation.timing import Arm, check_counts, interleave, timing_row, write_timings
from deas_vla.policies.config import VLAConfig, load_vla
from deas_vla.policies.groot.random_weights import SIZES, write_checkpoint
from deas_vla.policies.vla import VLA, Encoding
from deas_vla.training.config import FeaturesConfig, SourceConfig
from deas_vla.training.features import dataset_statistics, extract_features


def lift_demos() -> SourceConfig:
    return SourceConfig("deas_vla/lift_demos", "deas_vla/assets/lift_demos")


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        device_ms: Milliseconds that the device takes for a frame.
        workers: Processes that read ahead.
        pixels: Height and width that pictures are brought to.
        episodes: Per round; each round takes the next ones.
        rounds: Timed rounds, after one to warm up.
        output_dir: Where results go.
    """

    dataset: SourceConfig = field(default_factory=lift_demos)
    features: FeaturesConfig = field(default_factory=lambda: FeaturesConfig(batch_size=32))
    device_ms: list[float] = field(default_factory=lambda: [2.0, 5.0, 10.0])
    workers: list[int] = field(default_factory=lambda: [1, 2])
    pixels: int = 256
    episodes: int = 6
    rounds: int = 5
    output_dir: Path = Path("outputs/bench_pipeline")


class WaitingBackbone:
    """A VLA whose backbone is a wait; its tokens say what pixels came in."""

    def __init__(self, vla: VLA, seconds: float) -> None:
        self._vla, self._seconds = vla, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vla, name)

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        return self.encode_inputs(
            self._vla.preprocess(observation), observation["observation.state"]
        )

    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        mask = inputs["attention_mask"].bool()
        time.sleep(self._seconds * len(mask))
        shade = inputs["pixel_values"].reshape(len(mask), -1).float().mean(1)
        tokens = shade[:, None, None].expand(*mask.shape, self._vla.spec.token_dim)
        return Encoding(tokens, mask, mask, {}, state)


def main(config: BenchConfig) -> None:
    started = time.time()
    check_counts(config, "episodes", "rounds", "pixels")
    output = make_output_dir(config.output_dir)
    whole = load_episodes(config.dataset.repo_id, config.dataset.root)
    needed = config.episodes * (config.rounds + 1)
    if needed > whole.num_episodes:
        raise DeasError(
            f"dataset {whole.root} has {whole.num_episodes} episodes, {config.rounds} rounds of "
            f"{config.episodes} and a warm-up take {needed}: use fewer --rounds or --episodes"
        )
    blocks = whole.episode_ids[:needed].reshape(-1, config.episodes)
    tables = [load_episodes(whole.repo_id, whole.root, block.tolist()) for block in blocks]
    with TemporaryDirectory() as folder:
        vla = network(whole, config.pixels, Path(folder))
    made: dict[str, NDArray[np.float16]] = {}
    rows: list[dict[str, Any]] = []
    for wait in config.device_ms:
        waiting = cast(VLA, WaitingBackbone(vla, wait / 1e3))
        ways = {f"{n} workers, {wait:g} ms a frame": n for n in (0, *config.workers)}
        arms = {
            way: Arm(
                partial(extract, way, waiting, tables, config, workers, made),
                lambda turn: tables[turn].num_frames,
            )
            for way, workers in ways.items()
        }
        seconds = interleave(arms, config.rounds, label=f"{wait:g} ms")
        serial, *ahead = ways
        for way in ahead:
            if not np.array_equal(made[way], made[serial]):
                raise DeasError(f"{way}: other features than without workers")
        size = sum(table.num_frames for table in tables[1:])
        rows.append(timing_row(serial, size, seconds[serial]))
        rows += [timing_row(w, size, seconds[w], serial, seconds[serial]) for w in ahead]
    write_timings(
        "Frames into features, ahead of a device",
        config,
        rows,
        output,
        started,
        device=torch.device("cpu"),
        note=f"""Milliseconds per frame of {len(whole.image_keys)} cameras at {config.pixels}
pixels; the backbone is a wait. Ways in turn in every round, ratios within a round.""",
    )


def network(table: EpisodeTable, pixels: int, folder: Path) -> VLA:
    """The smallest network, whose processor brings pictures to ``pixels``."""
    write_checkpoint(folder / "checkpoint", replace(SIZES["nano"], pixels=pixels))
    config = VLAConfig(
        path=str(folder / "checkpoint"),
        image_keys=list(table.image_keys),
        state_dim=table.state.shape[1],
        action_dim=table.action.shape[1],
    )
    return load_vla(config, dataset_stats=dataset_statistics(table, np.arange(2)))


def extract(
    way: str,
    vla: VLA,
    tables: list[EpisodeTable],
    config: BenchConfig,
    workers: int,
    made: dict[str, NDArray[np.float16]],
    turn: int,
) -> None:
    with TemporaryDirectory() as folder:
        encodings = extract_features(
            vla,
            tables[turn],
            replace(config.features, workers=workers),
            Path(folder),
            Accelerator(cpu=True),
            keep_tokens=False,
        )
        made[way] = np.array(encodings.pooled)


if __name__ == "__main__":
    run(main, BenchConfig)
