"""What `meta/` says that `data/` and `videos/` hold, for formats 2.0, 2.1 and 3.0."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deas_vla.data.checks.finding import Damaged, Finding, cause
from deas_vla.data.layout import picture_size

_META = "restore meta/ from where the dataset came from"
_NEEDED = ("codebase_version", "fps", "features", "total_episodes", "total_frames", "data_path")


@dataclass(frozen=True)
class File:
    """A file and the episodes in it.

    Attributes:
        path: Its place.
        episodes: int64 (K,), positions of its episodes, in their order.
        camera: Of a video.
        begin: float64 (K,), seconds at which each episode starts in a video.
    """

    path: Path
    episodes: NDArray[np.int64]
    camera: str = ""
    begin: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Plan:
    """A dataset as its metadata describe it.

    Attributes:
        root: Of the dataset.
        version: ``v2.0``, ``v2.1`` or ``v3.x``.
        features: Of ``info.json``.
        fps: Frames a second.
        lengths: int64 (E,), frames of each episode; they are numbered 0 to E - 1.
        tasks: How many instructions there are.
        data: Parquet files, in the order of their frames.
        videos: Video files, camera by camera.
    """

    root: Path
    version: str
    features: dict[str, Any]
    fps: float
    lengths: NDArray[np.int64]
    tasks: int
    data: list[File]
    videos: list[File]

    @property
    def first(self) -> NDArray[np.int64]:
        """int64 (E,), each episode's first frame, counted over the dataset."""
        first: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return first

    def picture_size(self, camera: str) -> tuple[int, int]:
        """(height, width) that ``info.json`` gives a camera, pixels."""
        return picture_size(self.features[camera])


def read_plan(root: Path) -> tuple[Plan, list[Finding]]:
    """The plan, and what of the metadata contradicts itself.

    Raises:
        Damaged: Metadata without which there is no plan.
    """
    file = root / "meta/info.json"
    info = _read_json(file)
    for name in _NEEDED:
        if name not in info:
            raise Damaged(Finding(file, f"has no {name}", _META))
    version = str(info["codebase_version"])
    old = version.startswith("v2")
    features = info["features"]
    rows, tasks = _old_meta(root) if old else _new_meta(root)
    lengths = rows["length"]
    plan = Plan(
        root=root,
        version=version,
        features=features,
        fps=float(info["fps"] or 0),
        lengths=lengths,
        tasks=tasks,
        data=list(_old_data(root, info, lengths) if old else _data(root, info, rows)),
        videos=list(_old_videos(root, info, lengths) if old else _videos(root, info, rows)),
    )
    return plan, list(_contradictions(plan, info, rows))


def _contradictions(
    plan: Plan, info: dict[str, Any], rows: dict[str, NDArray[Any]]
) -> Iterator[Finding]:
    file = plan.root / "meta/info.json"
    count, frames = len(plan.lengths), int(plan.lengths.sum())
    place = "meta/episodes.jsonl" if plan.version.startswith("v2") else "meta/episodes"
    if plan.fps <= 0:
        yield Finding(file, f"says fps={info['fps']}", "write the rate of recording there")
    if info["total_episodes"] != count:
        yield Finding(file, f"says {info['total_episodes']} episodes, {place} lists {count}", _META)
    if info["total_frames"] != frames:
        yield Finding(
            file, f"says {info['total_frames']} frames, {place} adds up to {frames}", _META
        )
    short = np.flatnonzero(plan.lengths < 1)
    if len(short):
        yield Finding(plan.root / place, f"gives episode {short[0]} no frames", _META)
    if "dataset_from_index" in rows:
        wrong = (rows["dataset_from_index"] != plan.first) | (
            rows["dataset_to_index"] != plan.first + plan.lengths
        )
        for episode in np.flatnonzero(wrong)[:1]:
            have = f"{rows['dataset_from_index'][episode]}..{rows['dataset_to_index'][episode]}"
            want = f"{plan.first[episode]}..{plan.first[episode] + plan.lengths[episode]}"
            yield Finding(
                plan.root / place, f"puts episode {episode} at frames {have}, not {want}", _META
            )
    for video in plan.videos:
        yield from _overlaps(plan, video)


def _overlaps(plan: Plan, video: File) -> Iterator[Finding]:
    """Episodes of one video file that would show frames of each other."""
    if video.begin is None or plan.fps <= 0:
        return
    end = video.begin + plan.lengths[video.episodes] / plan.fps
    wrong = np.flatnonzero(video.begin[1:] < end[:-1] - 0.5 / plan.fps)
    for k in wrong[:1]:
        yield Finding(
            video.path,
            f"should hold episode {video.episodes[k + 1]} from {video.begin[k + 1]:.3f} s on, "
            f"before episode {video.episodes[k]} ends at {end[k]:.3f} s",
            _META,
        )


def _new_meta(root: Path) -> tuple[dict[str, NDArray[Any]], int]:
    """Columns of ``meta/episodes`` without statistics, and the number of tasks."""
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise Damaged(Finding(root / "meta/episodes", "holds no parquet file", _META))
    parts = []
    for file in files:
        table = _read_parquet(file)
        needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
        for name in needed:
            if name not in table.column_names:
                raise Damaged(Finding(file, f"has no column {name}", _META))
        parts.append(table)
    table = pa.concat_tables(parts, promote_options="permissive").sort_by("episode_index")
    rows = {name: table[name].to_numpy() for name in table.column_names if name != "tasks"}
    _check_numbers(root / "meta/episodes", rows["episode_index"])
    rows["length"] = rows["length"].astype(np.int64)
    return rows, _read_parquet(root / "meta/tasks.parquet").num_rows


def _old_meta(root: Path) -> tuple[dict[str, NDArray[Any]], int]:
    file = root / "meta/episodes.jsonl"
    episodes = sorted(_read_lines(file), key=lambda row: int(row["episode_index"]))
    _check_numbers(file, np.array([row["episode_index"] for row in episodes]))
    length = np.array([row["length"] for row in episodes], dtype=np.int64)
    return {"length": length}, len(_read_lines(root / "meta/tasks.jsonl"))


def _check_numbers(file: Path, numbers: NDArray[Any]) -> None:
    wrong = np.flatnonzero(numbers != np.arange(len(numbers)))
    if len(wrong):
        what = f"lists episode {numbers[wrong[0]]} where episode {wrong[0]} should stand"
        raise Damaged(Finding(file, what, _META))
    if len(numbers) == 0:
        raise Damaged(Finding(file, "lists no episode", "record at least one episode"))


def _data(root: Path, info: dict[str, Any], rows: dict[str, NDArray[Any]]) -> Iterator[File]:
    place = np.stack([rows["data/chunk_index"], rows["data/file_index"]], axis=1).astype(np.int64)
    for (chunk, number), episodes in _grouped(place):
        path = info["data_path"].format(chunk_index=chunk, file_index=number)
        yield File(root / path, episodes)


def _videos(root: Path, info: dict[str, Any], rows: dict[str, NDArray[Any]]) -> Iterator[File]:
    for camera in _cameras(info):
        names = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index")]
        begin = f"videos/{camera}/from_timestamp"
        for name in (*names, begin):
            if name not in rows:
                raise Damaged(Finding(root / "meta/episodes", f"has no column {name}", _META))
        place = np.stack([rows[name] for name in names], axis=1).astype(np.int64)
        for (chunk, number), episodes in _grouped(place):
            path = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=number)
            yield File(root / path, episodes, camera, rows[begin][episodes].astype(np.float64))


def _grouped(place: NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], NDArray[np.int64]]]:
    """Episodes of each (chunk, file), in the order of their first."""
    pairs, first, group = np.unique(place, axis=0, return_index=True, return_inverse=True)
    for k in np.argsort(first):
        yield (int(pairs[k, 0]), int(pairs[k, 1])), np.flatnonzero(group.reshape(-1) == k)


def _old_data(root: Path, info: dict[str, Any], lengths: NDArray[np.int64]) -> Iterator[File]:
    for episode in range(len(lengths)):
        path = info["data_path"].format(**_old_place(info, episode))
        yield File(root / path, np.array([episode]))


def _old_videos(root: Path, info: dict[str, Any], lengths: NDArray[np.int64]) -> Iterator[File]:
    for camera in _cameras(info):
        # Format 2.0 lists cameras that were never recorded; conversion drops them.
        if info["codebase_version"] == "v2.0" and not any(
            (root / "videos").glob(f"*/{camera}/*.mp4")
        ):
            continue
        for episode in range(len(lengths)):
            path = info["video_path"].format(video_key=camera, **_old_place(info, episode))
            yield File(root / path, np.array([episode]), camera, np.zeros(1))


def _old_place(info: dict[str, Any], episode: int) -> dict[str, int]:
    return {
        "episode_chunk": episode // int(info.get("chunks_size", 1000)),
        "episode_index": episode,
    }


def _cameras(info: dict[str, Any]) -> Sequence[str]:
    return [name for name, each in info["features"].items() if each["dtype"] == "video"]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "is not a LeRobot dataset (no meta/info.json)"
        remedy = "give the directory that holds meta/, data/ and videos/"
        raise Damaged(Finding(file.parents[1], what, remedy)) from None
    except (OSError, ValueError) as error:
        raise Damaged(Finding(file, f"cannot be read ({cause(error)})", _META)) from error
    return content


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        raise Damaged(Finding(file, "is missing", _META)) from None
    except (OSError, ValueError) as error:
        raise Damaged(Finding(file, f"cannot be read ({cause(error)})", _META)) from error


def _read_parquet(file: Path) -> pa.Table:
    try:
        names = pq.ParquetFile(file).schema_arrow.names
        return pq.read_table(file, columns=[n for n in names if not n.startswith("stats/")])
    except FileNotFoundError:
        raise Damaged(Finding(file, "is missing", _META)) from None
    except (OSError, pa.ArrowException) as error:
        raise Damaged(Finding(file, f"cannot be read ({cause(error)})", _META)) from error
