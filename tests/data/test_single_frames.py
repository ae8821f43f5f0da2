from pathlib import Path

import numpy as np
import pytest
from data_cases import IMAGE_KEYS

from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.data.joining import join_tables
from deas_vla.data.single_frames import FrameReader
from deas_vla.errors import DeasError


def test_frames_in_any_order_are_those_of_reading_forwards(recorded: Path) -> None:
    table = load_episodes("test/recorded", recorded)
    joined = join_tables([table, table])
    forwards = {key: [] for key in IMAGE_KEYS}
    for _, pictures in iter_episode_frames(joined.root, joined, IMAGE_KEYS):
        for key, each in pictures.items():
            forwards[key].extend(each)
    reader = FrameReader(joined, IMAGE_KEYS)
    order = np.random.default_rng(0).permutation(joined.num_frames)
    for frame in [*order, *range(joined.num_frames - 4, joined.num_frames)]:  # jumps, then in turn
        for key, picture in reader.read(int(frame)).items():
            assert np.array_equal(picture, forwards[key][frame]), (frame, key)
    sizes = reader.picture_sizes()
    assert all(forwards[key][0].shape[:2] == size for key, size in sizes.items())


def test_an_unknown_camera_is_named(recorded: Path) -> None:
    table = load_episodes("test/recorded", recorded)
    with pytest.raises(DeasError, match=r"lacks camera observation\.images\.none"):
        FrameReader(table, ["observation.images.none"]).read(0)
