"""LeRobot datasets of noise of any size on a disk, written in seconds."""

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.evaluation.benches.synthetic import synthetic_table

CAMERA = "observation.images.camera0"
PIXELS = 32  # what a picture is made of costs no memory that is asked about here
_FPS = 20
_TASK = "do nothing"


def write_dataset(root: Path, frames: int, episode: int, per_file: int = 20) -> None:
    """A LeRobotDataset v3 of `synthetic_table`'s states and actions, with one camera.

    All video files are one file under many names: a frame is decoded as often as in a real dataset
    and takes no room.

    Args:
        root: Directory, which must not exist.
        frames: At least; rounded up to whole files.
        episode: Frames of an episode.
        per_file: Episodes of a file, of rows and of video.
    """
    length = episode * per_file
    files = -(-frames // length)
    numbers = np.arange(files * per_file)
    for number in range(files):
        place = root / f"data/chunk-000/file-{number:03d}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(number, episode, per_file), place)
        _video(root, number, length)
    file = numbers // per_file
    begin = (numbers % per_file) * episode / _FPS
    meta: dict[str, Any] = {
        "episode_index": numbers,
        "tasks": [[_TASK]] * len(numbers),
        "length": np.full(len(numbers), episode),
        "data/chunk_index": np.zeros(len(numbers), np.int64),
        "data/file_index": file,
        "dataset_from_index": numbers * episode,
        "dataset_to_index": (numbers + 1) * episode,
        f"videos/{CAMERA}/chunk_index": np.zeros(len(numbers), np.int64),
        f"videos/{CAMERA}/file_index": file,
        f"videos/{CAMERA}/from_timestamp": begin,
        f"videos/{CAMERA}/to_timestamp": begin + episode / _FPS,
    }
    place = root / "meta/episodes/chunk-000/file-000.parquet"
    place.parent.mkdir(parents=True)
    pq.write_table(pa.table(meta), place)
    tasks = pa.table({"task": [_TASK], "task_index": np.zeros(1, np.int64)})
    pandas = tasks.to_pandas().set_index("task")
    pandas.to_parquet(root / "meta/tasks.parquet")
    info = _info(len(numbers), len(numbers) * episode)
    (root / "meta/info.json").write_text(json.dumps(info))


def _rows(number: int, episode: int, count: int) -> pa.Table:
    table = synthetic_table(episode * count, episode, seed=number)
    frames = np.arange(table.num_frames)
    columns: dict[str, Any] = {
        "observation.state": pa.FixedSizeListArray.from_arrays(
            pa.array(table.state.ravel()), table.state.shape[1]
        ),
        "action": pa.FixedSizeListArray.from_arrays(
            pa.array(table.action.ravel()), table.action.shape[1]
        ),
        "next.done": table.done,
        "next.success": table.success,
        "next.truncated": table.truncated,
        "timestamp": (frames % episode / _FPS).astype(np.float32),
        "frame_index": frames % episode,
        "episode_index": number * count + table.episode_index,
        "index": number * table.num_frames + frames,
        "task_index": table.task_index,
    }
    return pa.table(columns)


def _video(root: Path, number: int, length: int) -> None:
    first, place = (root / f"videos/{CAMERA}/chunk-000/file-{k:03d}.mp4" for k in (0, number))
    place.parent.mkdir(parents=True, exist_ok=True)
    if number:
        os.link(first, place)
        return
    pictures = np.random.default_rng(0).integers(0, 255, (16, PIXELS, PIXELS, 3), dtype=np.uint8)
    with av.open(str(place), "w") as container:
        options = {"preset": "ultrafast", "g": "20", "bf": "0"}
        stream: Any = container.add_stream("h264", rate=_FPS, options=options)
        stream.width = stream.height = PIXELS
        stream.pix_fmt = "yuv420p"
        for k in range(length):
            frame = av.VideoFrame.from_ndarray(pictures[k % len(pictures)], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _info(episodes: int, frames: int) -> dict[str, Any]:
    def column(dtype: str, width: int, prefix: str | None = None) -> dict[str, Any]:
        names = None if prefix is None else [f"{prefix}{k}" for k in range(width)]
        return {"dtype": dtype, "shape": [width], "names": names}

    picture = {
        "dtype": "video",
        "shape": [PIXELS, PIXELS, 3],
        "names": ["height", "width", "channels"],
        "info": {"video.fps": _FPS, "video.height": PIXELS, "video.width": PIXELS},
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": "noise",
        "fps": _FPS,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": column("float32", 9, "s"),
            "action": column("float32", 7, "a"),
            "next.done": column("bool", 1),
            "next.success": column("bool", 1),
            "next.truncated": column("bool", 1),
            CAMERA: picture,
            "timestamp": column("float32", 1),
            **{
                name: column("int64", 1)
                for name in ("frame_index", "episode_index", "index", "task_index")
            },
        },
    }
