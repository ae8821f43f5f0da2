"""A small dataset to record, shared by the tests of this folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_KEYS = ("observation.images.front", "observation.images.wrist")
LENGTHS = (12, 7, 15, 9, 20)
OUTCOMES = (True, False, True, True, False)


@dataclass(frozen=True)
class Episode:
    """What `EpisodeRecorder.add_episode` takes."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    task: str
    seed: int


def make_episode(seed: int, length: int, solved: bool, size: int = 32) -> Episode:
    """A red square that moves over a gradient, and random states and actions."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    background = np.stack([80 + x, 120 + y, 200 - x - y], axis=-1).astype(np.uint8)
    front = np.repeat(background[None], length, axis=0)
    for t, (row, column) in enumerate(generator.integers(0, size - 8, (length, 2))):
        front[t, row : row + 8, column : column + 8] = (220, 30, 30)
    last = np.arange(length) == length - 1
    return Episode(
        images={IMAGE_KEYS[0]: front, IMAGE_KEYS[1]: front[:, ::-1, ::-1]},
        state=generator.normal(size=(length, 3)),
        action=generator.normal(size=(length, 2)),
        reward=np.where(last & solved, 0.0, -1.0),
        success=last & solved,
        terminated=last & solved,
        truncated=last & (not solved),
        task=f"task {seed % 2}",
        seed=100 + seed,
    )


def make_recorder(root: Path, **changes: Any) -> Any:
    """An `EpisodeRecorder` for episodes of `make_episode`."""
    from deas_vla.data.recording import EpisodeRecorder

    settings: dict[str, Any] = {
        "root": root,
        "repo_id": "test/recorded",
        "fps": 20,
        "image_shapes": dict.fromkeys(IMAGE_KEYS, (32, 32)),
        "state_names": ["x", "y", "z"],
        "action_names": ["dx", "dy"],
        "robot_type": "panda",
    }
    return EpisodeRecorder(**(settings | changes))


def record(root: Path, episodes: Sequence[Episode], video_file_mb: float | None = None) -> Path:
    """Records episodes; `video_file_mb` makes LeRobot start new video files early."""
    with make_recorder(root) as recorder:
        if video_file_mb is not None:
            recorder._dataset.meta.info.video_files_size_in_mb = video_file_mb
        for episode in episodes:
            recorder.add_episode(**vars(episode))
    return root
