"""Datasets of noise of any size: training costs the same on them as on real ones."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError

EPISODE = 500  # frames of an episode


def synthetic_table(frames: int, length: int = EPISODE, seed: int = 0) -> EpisodeTable:
    """Episodes of ``length`` frames of noise, every second one a success: S = 9, A = 7."""
    frames -= frames % length
    generator = np.random.default_rng(seed)
    end = np.arange(length, frames + 1, length)
    last = np.zeros(frames, dtype=bool)
    last[end - 1] = True
    success = last & (np.arange(frames) // length % 2 == 0)
    episode = np.repeat(np.arange(len(end)), length)
    return EpisodeTable(
        repo_id="synthetic",
        root=Path("synthetic"),
        fingerprint="",
        state=generator.standard_normal((frames, 9), dtype=np.float32),
        action=generator.standard_normal((frames, 7), dtype=np.float32),
        dataset_reward=None,
        done=last,
        success=success,
        terminated=success,
        truncated=last & ~success,
        episode_index=episode,
        episode_start=end - length,
        episode_end=end,
        episode_ids=np.arange(len(end)),
        episode_success=success[end - 1],
        task_index=np.zeros(frames, dtype=np.int64),
        tasks=("nothing",),
        image_keys=(),
        fps=20.0,
        state_names=tuple(f"s{k}" for k in range(9)),
        action_names=tuple(f"a{k}" for k in range(7)),
    )


def first_episodes(table: EpisodeTable, episodes: int) -> EpisodeTable:
    """The start of a synthetic table, without a copy."""
    lengths = {table.num_frames: episodes * EPISODE, table.num_episodes: episodes}
    arrays = {k: v for k, v in vars(table).items() if isinstance(v, np.ndarray)}
    start: dict[str, Any] = {k: v[: lengths[len(v)]] for k, v in arrays.items()}
    return replace(table, **start)


def synthetic_features(path: Path, frames: int, width: int) -> NDArray[np.float16]:
    """A mapped float16 (frames, width) file of noise that repeats every 8,192 rows.

    Raises:
        DeasError: A disk that is too small.
    """
    free, need = os.statvfs(path.parent), 2 * frames * width
    if need > free.f_bavail * free.f_frsize:
        raise DeasError(f"disk too small for {need / 1e9:.1f} GB of features: choose --scratch")
    noise = np.random.default_rng(0).standard_normal((8192, width), dtype=np.float32)
    block = noise.astype(np.float16)
    with path.open("wb") as file:  # not through the map: what is written would count as memory
        header = {"descr": "<f2", "fortran_order": False, "shape": (frames, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for at in range(0, frames, len(block)):
            file.write(block[: min(len(block), frames - at)].data)
        file.flush()
        os.fsync(file.fileno())
    return np.load(path, mmap_mode="r")
