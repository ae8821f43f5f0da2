import numpy as np
import pytest
from data_cases import IMAGE_KEYS, LENGTHS, record

from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames, iter_frame_blocks
from deas_vla.errors import DeasError


@pytest.fixture(scope="module")
def table(recorded):
    return load_episodes("test/recorded", recorded)


@pytest.fixture(scope="module")
def indexed(recorded):
    """Every frame by LeRobot's random access: camera key to uint8 (T, H, W, 3)."""
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("test/recorded", recorded, video_backend="pyav", return_uint8=True)
    items = [dataset[i] for i in range(len(dataset))]
    return {
        key: np.stack([item[key].permute(1, 2, 0).numpy() for item in items]) for key in IMAGE_KEYS
    }


@pytest.mark.parametrize("order", [None, [1, 2], [4], [3, 0, 2], [2, 2]])
def test_equals_lerobot_frame_by_frame(recorded, table, indexed, order):
    seen = []
    for row, frames in iter_episode_frames(recorded, table, IMAGE_KEYS, order):
        seen.append(row)
        for key in IMAGE_KEYS:
            assert frames[key].dtype == np.uint8
            np.testing.assert_array_equal(frames[key], indexed[key][table.frames(row)])
    assert seen == (list(range(len(LENGTHS))) if order is None else order)


def test_episodes_of_a_partial_table(recorded, indexed, table):
    part = load_episodes("test/recorded", recorded, episodes=[4, 2])
    np.testing.assert_array_equal(part.episode_ids, [2, 4])
    rows = dict(iter_episode_frames(recorded, part, IMAGE_KEYS[:1]))
    np.testing.assert_array_equal(rows[1][IMAGE_KEYS[0]], indexed[IMAGE_KEYS[0]][table.frames(4)])


def test_no_seek_within_a_file(recorded, table, monkeypatch):
    """Files are opened once each; consecutive episodes cost no seek."""
    from deas_vla.data import frames as module

    opened = []
    original = module._VideoReader._open

    def counting_open(self, path):
        opened.append(path)
        original(self, path)

    monkeypatch.setattr(module._VideoReader, "_open", counting_open)
    list(iter_episode_frames(recorded, table, IMAGE_KEYS))
    assert len(opened) == len(set(opened)) == len(list((recorded / "videos").glob("*/*/*.mp4")))


def test_unknown_camera(recorded, table):
    with pytest.raises(DeasError, match=r"lacks camera observation\.images\.top"):
        next(iter_episode_frames(recorded, table, ["observation.images.top"]))


def test_missing_and_short_videos(recorded, table, tmp_path):
    import shutil

    copy = shutil.copytree(recorded, tmp_path / "copy")
    video = sorted((copy / "videos" / IMAGE_KEYS[0]).glob("*/*.mp4"))
    shutil.copy(video[-1], video[0])
    video[-1].unlink()
    with pytest.raises(DeasError, match="lacks frame"):
        list(iter_episode_frames(copy, table, IMAGE_KEYS[:1]))
    with pytest.raises(DeasError, match="cannot be read"):
        list(iter_episode_frames(copy, table, IMAGE_KEYS[:1], [len(LENGTHS) - 1]))


@pytest.mark.parametrize("bad", [1, 2])
def test_damage_inside_a_video_costs_its_episode_alone(tmp_path, episodes, bad):
    """The decoder reads ahead: episodes before the damage, and after it, are whole."""
    import shutil

    root = record(tmp_path / "one_file", episodes)  # all episodes in one file a camera
    part = load_episodes("test/recorded", root)
    whole = dict(iter_episode_frames(root, part, IMAGE_KEYS[:1]))
    copy = shutil.copytree(root, tmp_path / "copy")
    (video,) = (copy / "videos" / IMAGE_KEYS[0]).glob("*/*.mp4")
    content = bytearray(video.read_bytes())
    offsets = packet_offsets(video)
    first = int(part.episode_start[bad]) + 3  # its fourth frame and the one after that
    content[offsets[first] : offsets[first + 2]] = bytes(offsets[first + 2] - offsets[first])
    video.write_bytes(content)
    with pytest.raises(
        DeasError, match=rf"lacks frame \d+ of episode {bad} .*skip_unread"
    ) as error:
        list(iter_episode_frames(copy, part, IMAGE_KEYS[:1]))
    assert "\n" not in str(error.value)
    skipped = []
    found = {row: [] for row in range(5)}
    blocks = iter_frame_blocks(
        copy, part, IMAGE_KEYS[:1], 4, skip=lambda row, error: skipped.append((row, str(error)))
    )
    for block in blocks:
        assert block.first == 4 * len(found[block.episode])
        found[block.episode].append(block.images[IMAGE_KEYS[0]])
    assert [row for row, _ in skipped] == [bad] and "lacks frame" in skipped[0][1]
    for row, parts in found.items():
        if row != bad:  # of that one there may be blocks from before the damage
            np.testing.assert_array_equal(np.concatenate(parts), whole[row][IMAGE_KEYS[0]])


def packet_offsets(video):
    """Where each frame's bytes begin in a file without B-frames."""
    import av

    with av.open(str(video)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


def test_images_stored_in_parquet(tmp_path, episodes):
    """LeRobot also allows lossless images instead of videos."""
    from lerobot.datasets import LeRobotDataset

    camera = IMAGE_KEYS[0]
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        camera: {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
    }
    root = tmp_path / "images"
    dataset = LeRobotDataset.create("test/images", 20, features, root=root, use_videos=False)
    for episode in episodes[:2]:
        for t in range(len(episode.action)):
            frame = {
                "observation.state": episode.state[t].astype(np.float32),
                "action": episode.action[t].astype(np.float32),
                "next.success": episode.success[t : t + 1],
                camera: episode.images[camera][t],
                "task": "task",
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    table = load_episodes("test/images", root)
    assert table.image_keys == (camera,) and table.dataset_reward is None
    for block in iter_frame_blocks(root, table, [camera], 5):
        pictures = episodes[block.episode].images[camera][block.first :][:5]
        np.testing.assert_array_equal(block.images[camera], pictures)
