"""What is recorded is what LeRobot and `load_episodes` read back."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_cases import IMAGE_KEYS, LENGTHS, OUTCOMES, make_episode, make_recorder

from deas_vla.data.episodes import load_episodes
from deas_vla.data.layout import open_dataset
from deas_vla.errors import DeasError


def test_table_holds_what_was_recorded(recorded, episodes):
    table = load_episodes("test/recorded", recorded)
    assert table.num_episodes == len(LENGTHS) and table.num_frames == sum(LENGTHS)
    assert table.image_keys == IMAGE_KEYS and table.fps == 20
    assert table.state_names == ("x", "y", "z") and table.action_names == ("dx", "dy")
    np.testing.assert_array_equal(table.episode_success, OUTCOMES)
    np.testing.assert_array_equal(table.episode_lengths, LENGTHS)
    for row, episode in enumerate(episodes):
        frames = table.frames(row)
        np.testing.assert_array_equal(table.state[frames], episode.state.astype(np.float32))
        np.testing.assert_array_equal(table.action[frames], episode.action.astype(np.float32))
        np.testing.assert_array_equal(table.dataset_reward[frames], episode.reward)
        np.testing.assert_array_equal(table.success[frames], episode.success)
        np.testing.assert_array_equal(table.terminated[frames], episode.terminated)
        np.testing.assert_array_equal(table.truncated[frames], episode.truncated)
        np.testing.assert_array_equal(table.done[frames], episode.terminated | episode.truncated)
        assert table.task(row) == episode.task


def test_picture_sizes_are_height_and_width_in_any_order_of_axes(recorded):
    layout = open_dataset("test/recorded", recorded)
    sizes = layout.image_sizes
    assert list(sizes) == list(IMAGE_KEYS)
    for key, (height, width) in sizes.items():
        feature = layout.info["features"][key]
        assert feature["shape"] == [height, width, 3]
        feature |= {"shape": [3, height, width], "names": ["channels", "height", "width"]}
    assert layout.image_sizes == sizes


def test_lerobot_reads_it(recorded, episodes):
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("test/recorded", recorded, video_backend="pyav", return_uint8=True)
    assert dataset.num_episodes == len(LENGTHS)
    item = dataset[LENGTHS[0] + 3]
    assert item["task"] == "task 1" and item["episode_seed"].item() == 101
    assert not item["next.done"].item() and not item["next.truncated"].item()
    decoded = item[IMAGE_KEYS[0]].permute(1, 2, 0).numpy().astype(float)
    error = decoded - episodes[1].images[IMAGE_KEYS[0]][3]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 33  # a square that jumps every frame
    assert all(dataset[i]["episode_index"].item() == i // LENGTHS[0] for i in (0, LENGTHS[0]))


def test_several_video_files_hold_several_episodes(recorded):
    files = sorted((recorded / "videos" / IMAGE_KEYS[0]).glob("*/*.mp4"))
    assert 1 < len(files) < len(LENGTHS)


def test_nothing_appears_before_finish_and_nothing_stays_after_an_error(tmp_path):
    root = tmp_path / "new" / "dataset"
    with pytest.raises(RuntimeError), make_recorder(root) as recorder:
        recorder.add_episode(**vars(make_episode(0, 5, True)))
        assert not root.exists()
        raise RuntimeError
    assert os.listdir(root.parent) == []


def test_empty_recording_leaves_nothing(tmp_path):
    with (
        pytest.raises(DeasError, match="nothing was recorded"),
        make_recorder(tmp_path / "dataset"),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros((5, 4))}, "episode's observation.state has shape (5, 4)"),
        ({"reward": np.zeros(4)}, "episode's next.reward has shape (4, 1)"),
        ({"images": {}}, "episode's observation.images.front has shape None"),
        ({"action": np.full((5, 2), np.nan)}, "episode's action is not finite at step 0"),
        ({"terminated": np.zeros(5, bool)}, "0 terminated and 0 truncated"),
        ({"truncated": np.arange(5) == 4}, "1 terminated and 1 truncated"),
        ({"success": np.zeros(5, bool)}, "terminated at step 4 without success"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, message):
    recorder = make_recorder(tmp_path / "dataset")
    with pytest.raises(DeasError) as error:
        recorder.add_episode(**vars(replace(make_episode(0, 5, True), **change)))
    assert message in str(error.value) and "\n" not in str(error.value)
    recorder.discard()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shapes": {"front": (32, 32)}}, "camera key is front"),
        ({"root": Path("/proc/dataset")}, "cannot be written"),
        ({"root": Path(__file__).parent}, "exists"),
    ],
)
def test_bad_settings_are_refused(tmp_path, change, message):
    with pytest.raises(DeasError, match=message):
        make_recorder(**({"root": tmp_path / "dataset"} | change))


def test_video_settings_are_written_down(recorded):
    info = json.loads((recorded / "meta/info.json").read_text())
    video = info["features"][IMAGE_KEYS[0]]["info"]
    assert video["video.codec"] == "h264" and video["video.pix_fmt"] == "yuv444p"
