"""A miniature in the layout of RoboCasa's public datasets, for tests: generated, nothing copied.

Format 2.1: one parquet file an episode, one h264 video an episode and camera, `modality.json`,
states and actions without names as float64, and a reward that is one as long as the task is solved.
"""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CAMERAS = tuple(
    f"observation.images.robot0_{name}"
    for name in ("eye_in_hand", "agentview_left", "agentview_right")
)
FPS = 20
STATE = {
    "base_position": 3,
    "base_rotation": 4,
    "end_effector_position_relative": 3,
    "end_effector_rotation_relative": 4,
    "gripper_qpos": 2,
}
ACTION = {
    "base_motion": 4,
    "control_mode": 1,
    "end_effector_position": 3,
    "end_effector_rotation": 3,
    "gripper_close": 1,
}


def robocasa_miniature(
    root: Path, lengths: tuple[int, ...] = (18, 22, 20), solved_for: int = 4, size: int = 64
) -> Path:
    """Episodes of which every second one ends with ``solved_for`` solved steps, the first among
    them; pictures of ``size`` pixels."""
    rng = np.random.default_rng(0)
    texts = ["Open the drawer.", "Close the left drawer."]
    (root / "meta").mkdir(parents=True)
    frames, episodes, stats = 0, [], []
    for episode, length in enumerate(lengths):
        good = episode % 2 == 0
        table = _table(rng, episode, length, frames, solved_for if good else 0, episode % 2)
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for k, camera in enumerate(CAMERAS):
            _write_video(
                root / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4",
                pictures(episode, k, length, size),
            )
        episodes.append({"episode_index": episode, "tasks": [texts[episode % 2]], "length": length})
        stats.append({"episode_index": episode, "stats": _stats(table)})
        frames += length
    tasks = [*texts, "OpenDrawer"]  # the task's name follows the instructions
    _write_lines(root / "meta/episodes.jsonl", episodes)
    _write_lines(root / "meta/episodes_stats.jsonl", stats)
    rows = [{"task_index": k, "task": task} for k, task in enumerate(tasks)]
    _write_lines(root / "meta/tasks.jsonl", rows)
    (root / "meta/modality.json").write_text(json.dumps(_modality()))
    (root / "meta/embodiment.json").write_text(json.dumps({"robot_type": "PandaOmron"}))
    info = _info(len(lengths), frames, size)
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def pictures(episode: int, camera: int, length: int, size: int) -> np.ndarray:
    """uint8 (length, size, size, 3): a bright square that moves one step a frame."""
    shades = np.full((length, size, size, 3), 40 + 30 * camera, np.uint8)
    for t in range(length):
        at = (3 * t + 5 * episode) % (size - 16)
        shades[t, at : at + 16, at : at + 16] = 220
    return shades


def _table(
    rng: np.random.Generator, episode: int, length: int, first: int, solved: int, task: int
) -> pa.Table:
    frame = np.arange(length)
    whole = np.full(length, task, np.int64)
    return pa.table(
        {
            "observation.state": pa.array(list(rng.normal(size=(length, 16)))),
            "action": pa.array(list(rng.uniform(-1, 1, size=(length, 12)))),
            "next.reward": pa.array((frame >= length - solved).astype(np.float32)),
            "next.done": pa.array(frame == length - 1),
            "annotation.human.task_description": pa.array(whole),
            "annotation.human.task_name": pa.array(np.full(length, 2, np.int64)),
            "timestamp": pa.array((frame / FPS).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.full(length, episode, np.int64)),
            "index": pa.array(first + frame),
            "task_index": pa.array(whole),
        }
    )


def _stats(table: pa.Table) -> dict[str, Any]:
    """As LeRobot's recorder of that time wrote them; pictures' shares of 255."""
    stats = {}
    for name in table.column_names:
        values = np.array(table[name].to_pylist(), dtype=np.float64)
        values = values.reshape(len(values), -1)
        rows = {"min": values.min(0), "max": values.max(0)}
        rows |= {"mean": values.mean(0), "std": values.std(0)}
        stats[name] = {key: row.tolist() for key, row in rows.items()}
        stats[name]["count"] = [len(values)]
    for camera in CAMERAS:
        flat = {key: [[[0.4]]] * 3 for key in ("min", "max", "mean", "std")}
        stats[camera] = flat | {"count": [len(table)]}
    return stats


def _info(episodes: int, frames: int, size: int) -> dict[str, Any]:
    def scalar(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [1], "names": None}

    video = {
        "dtype": "video",
        "shape": [size, size, 3],
        "names": ["height", "width", "channel"],
        "video_info": {"video.fps": FPS, "video.codec": "h264", "video.pix_fmt": "yuv420p"},
    }
    counters = ("frame_index", "episode_index", "index", "task_index")
    annotations = [f"annotation.human.task_{name}" for name in ("description", "name")]
    return {
        "codebase_version": "v2.1",
        "robot_type": "PandaOmron",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": 2,
        "total_videos": episodes * len(CAMERAS),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": (
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        ),
        "features": {
            **dict.fromkeys(CAMERAS, video),
            **{name: {"dtype": "int64", "shape": [1]} for name in annotations},
            "observation.state": {"dtype": "float64", "shape": [16], "names": None},
            "action": {"dtype": "float64", "shape": [12], "names": None},
            "next.reward": scalar("float32"),
            "next.done": scalar("bool"),
            "timestamp": scalar("float32"),
            **{name: scalar("int64") for name in counters},
        },
    }


def _modality() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for kind, key, widths in (
        ("state", "observation.state", STATE),
        ("action", "action", ACTION),
    ):
        at, parts[kind] = 0, {}
        for name, width in widths.items():
            parts[kind][name] = {"original_key": key, "start": at, "end": at + width}
            at += width
    names = {key.removeprefix("observation.images."): {"original_key": key} for key in CAMERAS}
    return parts | {"video": names}


def _write_video(path: Path, shades: np.ndarray) -> None:
    """h264, yuv420p, with the encoder's own B-frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23"})
        stream.height, stream.width = shades.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for shade in shades:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade)))
        container.mux(stream.encode())


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
