"""Camera frames in any order, as training that looks at pictures draws them."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import picture_reader
from deas_vla.data.layout import DatasetLayout, open_dataset

_OPEN_FILES = 32  # videos that stay open at once: opening one costs more than a frame of it


class FrameReader:
    """Single frames of a dataset, or of several joined ones.

    Nothing is opened before the first `read`, so that it can be handed to another process. Pixels
    equal those of `iter_episode_frames`. Not for several threads.

    Args:
        table: the episodes.
        image_keys: cameras, e.g. `observation.images.front`.
    """

    def __init__(self, table: EpisodeTable, image_keys: Sequence[str]) -> None:
        self._sources = table.sources
        self._image_keys = tuple(image_keys)
        self._end = np.cumsum([source.num_frames for source in self._sources])
        self._layouts: dict[int, DatasetLayout] = {}
        self._readers: OrderedDict[tuple[int, str, Path | None], Any] = OrderedDict()

    def read(self, frame: int) -> dict[str, NDArray[np.uint8]]:
        """Each camera's picture at a row of the table, uint8 (height, width, 3) RGB.

        Raises:
            DeasError: an unknown camera, or a picture that is missing or cannot be decoded.
        """
        owner = int(np.searchsorted(self._end, frame, side="right"))
        source = self._sources[owner]
        row = frame - (int(self._end[owner]) - source.num_frames)
        place = int(np.searchsorted(source.episode_start, row, side="right")) - 1
        episode, first = int(source.episode_ids[place]), row - int(source.episode_start[place])
        return {
            key: self._reader(owner, key, episode).read(episode, first, 1)[0]
            for key in self._image_keys
        }

    def picture_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera's pictures, those of the first dataset."""
        sizes = self._layout(0).image_sizes
        return {key: sizes[key] for key in self._image_keys}

    def _layout(self, owner: int) -> DatasetLayout:
        if owner not in self._layouts:
            source = self._sources[owner]
            self._layouts[owner] = open_dataset(source.repo_id, source.root)
        return self._layouts[owner]

    def _reader(self, owner: int, image_key: str, episode: int) -> Any:
        """One for each file, the least recently used ones closed."""
        layout = self._layout(owner)
        video = image_key in layout.image_keys and layout.is_video(image_key)
        name = (owner, image_key, layout.video_path(image_key, episode) if video else None)
        if name not in self._readers:
            # Threads would decode ahead of the one frame that is wanted.
            self._readers[name] = picture_reader(layout, image_key, threads="NONE")
        self._readers.move_to_end(name)
        if len(self._readers) > _OPEN_FILES:
            self._readers.popitem(last=False)[1].close()
        return self._readers[name]
