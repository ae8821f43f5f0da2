"""Camera frames of whole episodes, every video decoded once and forwards.

LeRobot's random access seeks to a keyframe and decodes from there for every single frame. Whoever
needs all frames (feature extraction, previews) reads each file as what it is: a stream.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.layout import DatasetLayout, open_dataset
from deas_vla.errors import DeasError


@dataclass(frozen=True)
class FrameBlock:
    """Pictures of some frames of an episode that follow each other.

    Attributes:
        episode: its row in the table.
        first: its first frame, counted from the episode's beginning.
        images: for each camera, uint8 (n, height, width, 3) RGB.
    """

    episode: int
    first: int
    images: dict[str, NDArray[np.uint8]]


def iter_episode_frames(
    root: str | Path,
    table: EpisodeTable,
    image_keys: Sequence[str],
    episodes: Sequence[int] | None = None,
) -> Iterator[tuple[int, dict[str, NDArray[np.uint8]]]]:
    """Decodes whole episodes in turn: `iter_frame_blocks` with a block for each.

    Yields:
        The episode row and, for each camera, uint8 (T, height, width, 3) RGB.
    """
    longest = int(table.episode_lengths.max(initial=1))
    for block in iter_frame_blocks(root, table, image_keys, longest, episodes):
        yield block.episode, block.images


def iter_frame_blocks(
    root: str | Path,
    table: EpisodeTable,
    image_keys: Sequence[str],
    size: int,
    episodes: Sequence[int] | None = None,
    *,
    skip: Callable[[int, DeasError], None] | None = None,
) -> Iterator[FrameBlock]:
    """Decodes episodes in turn, all cameras side by side, in blocks of at most `size` frames.

    Consecutive episodes of a file are read without any seek; a gap between the episodes asked for
    costs one. Pixels equal those of `LeRobotDataset` with its `pyav` backend exactly.

    Args:
        root: the dataset's directory; that of each part where the table was joined.
        table: the episodes' bounds, from `load_episodes` or `join_tables`.
        image_keys: cameras, e.g. `observation.images.front`.
        size: frames of a block; what is held of an episode at once.
        episodes: episode rows, best in ascending order; None for all.
        skip: told of an episode whose pictures cannot be read, which is then left out, or left
            behind where blocks of it were given out already; None ends the iteration with that
            error.

    Raises:
        DeasError: an unknown camera, a missing video file, or a video that lacks frames or cannot
            be decoded.
    """
    rows = range(table.num_episodes) if episodes is None else episodes
    if table.parts:
        yield from _blocks_of_parts(table, image_keys, size, rows, skip)
        return
    layout = open_dataset(table.repo_id, root)
    readers = {key: picture_reader(layout, key) for key in image_keys}
    try:
        for row in rows:
            episode, length = int(table.episode_ids[row]), int(table.episode_lengths[row])
            try:
                for first in range(0, length, size):
                    count = min(size, length - first)
                    pictures = {k: r.read(episode, first, count) for k, r in readers.items()}
                    yield FrameBlock(row, first, pictures)
            except DeasError as error:
                if skip is None:
                    raise
                skip(row, error)
    finally:
        for reader in readers.values():
            reader.close()


def _blocks_of_parts(
    table: EpisodeTable,
    image_keys: Sequence[str],
    size: int,
    episodes: Sequence[int],
    skip: Callable[[int, DeasError], None] | None,
) -> Iterator[FrameBlock]:
    end = np.cumsum([part.num_episodes for part in table.parts])

    def owner(row: int) -> int:
        return int(np.searchsorted(end, row, side="right"))

    for k, rows in groupby(episodes, owner):
        part = table.parts[k]
        first = int(end[k]) - part.num_episodes
        own = [row - first for row in rows]
        told = None if skip is None else partial(_skip_in_part, skip, first)
        for block in iter_frame_blocks(part.root, part, image_keys, size, own, skip=told):
            yield replace(block, episode=block.episode + first)


def _skip_in_part(
    skip: Callable[[int, DeasError], None], first: int, row: int, error: DeasError
) -> None:
    skip(row + first, error)


class _VideoReader:
    """Reads one camera's videos forwards; seeks only where episodes do not follow each other."""

    def __init__(self, layout: DatasetLayout, image_key: str, threads: str = "AUTO") -> None:
        self._layout = layout
        self._key = image_key
        self._threads = threads
        self._path: Path | None = None
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._position = 0.0  # seconds, where the next frame is expected
        self._to_rgb = VideoReformatter()

    def read(self, episode: int, first: int, length: int) -> NDArray[np.uint8]:
        """`length` frames of an episode from its frame `first` on, uint8 (length, H, W, 3)."""
        fps = self._layout.fps
        path = self._layout.video_path(self._key, episode)
        start = float(self._layout.episodes.loc[episode, f"videos/{self._key}/from_timestamp"])
        begin = start + first / fps
        try:
            self._move_to(path, begin)
            images = self._collect(self._frames, begin, length)
        except av.FFmpegError:
            # The decoder is ahead of what it gives out: the damage may lie in a later episode.
            images = self._collect(self._whole_packets(path, begin), begin, length)
            self.close()
        if len(images) == length:
            self._position = begin + length / fps
            return np.stack(images)
        self.close()
        raise DeasError(
            f"video {path} lacks frame {first + len(images)} of episode {episode} "
            f"(expected {length} frames from {begin:.3f} s): restore the file, drop the episode, "
            "or leave it out with --features.skip_unreadable=true"
        )

    def _collect(
        self, frames: Iterator[av.VideoFrame], begin: float, length: int
    ) -> list[NDArray[np.uint8]]:
        """Pictures of frames that follow each other from `begin` seconds on, at most `length`."""
        images: list[NDArray[np.uint8]] = []
        for frame in frames:
            step = round((float(frame.pts * frame.time_base) - begin) * self._layout.fps)
            if step < 0:  # between the keyframe that the seek found and the episode
                continue
            if step != len(images):
                break
            images.append(self._to_rgb.reformat(frame, format="rgb24").to_ndarray())
            if len(images) == length:
                break
        return images

    def _whole_packets(self, path: Path, begin: float) -> Iterator[av.VideoFrame]:
        """Frames from `begin` on of a damaged file; those of damaged packets are missing."""
        self.close()
        self._open(path)
        assert self._container is not None
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"
        self._seek(begin)
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            yield from frames

    def close(self) -> None:
        """Closes the file that is open, if any."""
        if self._container is not None:
            self._container.close()
        self._container, self._path = None, None

    def _move_to(self, path: Path, begin: float) -> None:
        if path != self._path:
            self.close()
            self._open(path)
        if abs(begin - self._position) * self._layout.fps < 0.5:
            return
        assert self._container is not None
        self._seek(begin)
        self._frames = self._container.decode(self._container.streams.video[0])

    def _seek(self, begin: float) -> None:
        assert self._container is not None
        stream = self._container.streams.video[0]
        assert stream.time_base is not None
        # One tick early, so that rounding never lands behind the episode's first frame.
        offset = max(0, round(begin / stream.time_base) - 1)
        self._container.seek(offset, backward=True, stream=stream)

    def _open(self, path: Path) -> None:
        try:
            self._container = av.open(str(path))
        except (OSError, av.FFmpegError) as error:
            raise DeasError(f"video {path} cannot be read ({error}): restore the file") from error
        stream = self._container.streams.video[0]
        stream.thread_type = self._threads
        self._path, self._position = path, 0.0
        self._frames = self._container.decode(stream)


class _ImageReader:
    """Reads one camera whose frames are PNG or JPEG images inside the parquet files."""

    def __init__(self, layout: DatasetLayout, image_key: str) -> None:
        self._layout = layout
        self._key = image_key
        self._episode = -1  # whose encoded pictures are at hand
        self._encoded: list[dict[str, bytes]] = []

    def read(self, episode: int, first: int, length: int) -> NDArray[np.uint8]:
        """`length` frames of an episode from its frame `first` on, uint8 (length, H, W, 3)."""
        from PIL import Image

        if episode != self._episode:
            table = self._layout.read_columns([self._key], [episode])
            self._episode, self._encoded = episode, table[self._key].to_pylist()
        return np.stack(
            [
                np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
                for image in self._encoded[first : first + length]
            ]
        )

    def close(self) -> None:
        """Nothing stays open."""


def picture_reader(
    layout: DatasetLayout, image_key: str, threads: str = "AUTO"
) -> _VideoReader | _ImageReader:
    """What reads one camera's frames.

    Args:
        layout: the dataset's.
        image_key: the camera.
        threads: FFmpeg's kind of threads; those decode ahead, which is lost where reading jumps.

    Raises:
        DeasError: a camera that the dataset does not have.
    """
    if image_key not in layout.image_keys:
        raise DeasError(
            f"dataset {layout.root} lacks camera {image_key}: "
            f"choose from {', '.join(layout.image_keys) or 'none'}"
        )
    if layout.is_video(image_key):
        return _VideoReader(layout, image_key, threads)
    return _ImageReader(layout, image_key)
