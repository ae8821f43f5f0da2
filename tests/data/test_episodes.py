import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import IMAGE_KEYS, LENGTHS, OUTCOMES

from deas_vla.data.episodes import check_dimensions, load_episodes, split_episodes
from deas_vla.errors import DeasError


@pytest.fixture
def copy(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "dataset")


def edit_columns(root, **columns):
    """Replaces (array), or drops (None), columns of the only data file."""
    path = next((root / "data").glob("*/*.parquet"))
    table = pq.read_table(path)
    for name, values in columns.items():
        name = name.replace("__", ".")
        position = table.schema.get_field_index(name)
        table = table.remove_column(position)
        if values is not None:
            table = table.add_column(position, name, pa.array(values))
    pq.write_table(table, path)


def edit_info(root, **entries):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def failure(root, **arguments):
    with pytest.raises(DeasError) as error:
        load_episodes("test/recorded", root, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_success_from_a_positive_last_reward(copy):
    reward = np.zeros(sum(LENGTHS))
    ends = np.cumsum(LENGTHS) - 1
    reward[ends] = OUTCOMES
    reward[0] = -1.0  # a cost inside an episode is no success
    edit_columns(copy, next__success=None, next__reward=reward)
    table = load_episodes("test/recorded", copy)
    np.testing.assert_array_equal(np.flatnonzero(table.success), ends[list(OUTCOMES)])
    np.testing.assert_array_equal(np.flatnonzero(table.truncated), ends[~np.array(OUTCOMES)])


def test_a_dense_reward_does_not_say_what_success_is(copy):
    """Positive at any step, and so at every last one: all episodes would count as solved."""
    reward = np.full(sum(LENGTHS), 0.1)
    edit_columns(copy, next__success=None, next__reward=reward)
    inside = sum(LENGTHS) - len(LENGTHS)
    message = failure(copy)
    assert f"positive at {inside} frames" in message and "--critic.reward.kind=dataset" in message


def test_a_reward_of_zeros_and_ones_says_when_it_is_solved(copy):
    """As in RoboCasa's demonstrations, which go on for a while after the success."""
    reward = np.zeros(sum(LENGTHS), dtype=np.float32)
    reward[8:12] = 1  # the last four steps of the first episode
    reward[40] = 1  # in the middle of the fourth
    edit_columns(copy, next__success=None, next__reward=reward)
    table = load_episodes("test/recorded", copy)
    np.testing.assert_array_equal(table.success, reward > 0)
    np.testing.assert_array_equal(table.episode_success, [True, False, False, True, False])
    reward[0] = 1  # a reward for being there: it does not say what success is
    edit_columns(copy, next__reward=reward)
    assert "positive at" in failure(copy)


def test_success_without_reward_column(copy):
    edit_columns(copy, next__reward=None)
    table = load_episodes("test/recorded", copy)
    assert table.dataset_reward is None
    np.testing.assert_array_equal(table.episode_success, OUTCOMES)


def test_success_before_the_last_step_counts(copy):
    """Known mistake 7: an episode recorded past its success is a success, not a time limit."""
    success = np.zeros(sum(LENGTHS), dtype=bool)
    success[2] = True
    edit_columns(copy, next__success=success)
    table = load_episodes("test/recorded", copy)
    np.testing.assert_array_equal(table.episode_success, [True, False, False, False, False])
    assert not table.truncated[: LENGTHS[0]].any()


def test_minus_one_reward_without_success_column_is_ambiguous(copy):
    edit_columns(copy, next__success=None)
    assert "add a next.success column" in failure(copy)


def test_neither_reward_nor_success(copy):
    edit_columns(copy, next__success=None, next__reward=None)
    assert "neither next.success nor next.reward" in failure(copy)


def test_missing_state(copy):
    edit_columns(copy, **{"observation.state": None})
    assert "no column observation.state" in failure(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_frame(copy, value):
    reward = np.zeros(sum(LENGTHS))
    reward[LENGTHS[0] + 1] = value
    edit_columns(copy, next__reward=reward)
    assert f"next.reward is {value} at frame 13 (episode 1)" in failure(copy)
    action = np.zeros((sum(LENGTHS), 2), dtype=np.float32)
    action[4, 1] = value
    edit_columns(copy, action=list(action), next__reward=np.zeros(sum(LENGTHS)))
    assert f"action is {value} at frame 4 (episode 0)" in failure(copy)


def test_wrong_places(tmp_path, copy):
    assert f"dataset root {tmp_path}/none does not exist" in failure(tmp_path / "none")
    (copy / "meta/info.json").unlink()
    assert "is not a LeRobot dataset (no meta/info.json)" in failure(copy)


def test_without_a_root_lerobots_home_is_searched(copy, tmp_path, monkeypatch):
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HOME", tmp_path)
    assert load_episodes("dataset").root == copy  # the fixture put it there under this name
    with pytest.raises(DeasError, match="nobody/nothing is neither local nor on the Hub") as error:
        load_episodes("nobody/nothing")
    assert "\n" not in str(error.value)


def test_versions(copy):
    edit_info(copy, codebase_version="v2.1")
    message = failure(copy)
    assert "format v2.1" in message and "python -m deas_vla.data.convert" in message
    edit_info(copy, codebase_version="v4.0")
    assert "update deas_vla" in failure(copy)
    (copy / "meta/info.json").write_text("{")
    assert "is damaged" in failure(copy)


def test_empty(copy):
    edit_info(copy, total_episodes=0)
    assert "is empty" in failure(copy)


def test_unknown_episode(copy):
    assert "episode 9 is not in dataset" in failure(copy, episodes=[0, 9])


def test_fingerprint_follows_the_content(recorded, copy):
    original = load_episodes("test/recorded", recorded).fingerprint
    assert load_episodes("test/recorded", copy).fingerprint == original
    assert load_episodes("test/recorded", copy, episodes=[0]).fingerprint != original
    video = next((copy / "videos").glob("*/*/*.mp4"))
    video.write_bytes(video.read_bytes()[:-1] + b"x")
    changed = load_episodes("test/recorded", copy).fingerprint
    assert changed != original
    edit_columns(copy, next__reward=np.zeros(sum(LENGTHS)))
    assert load_episodes("test/recorded", copy).fingerprint not in (original, changed)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [3, 1], [2], []])
def test_rows_of_several_episodes(recorded, chosen):
    table = load_episodes("test/recorded", recorded)
    rows = table.frames_of(np.array(chosen, dtype=np.int64))
    expected = [np.arange(table.num_frames)[table.frames(episode)] for episode in chosen]
    np.testing.assert_array_equal(rows, np.concatenate([*expected, []]))
    assert rows.dtype == np.int64


def test_split_is_stratified_and_seeded(recorded):
    small = load_episodes("test/recorded", recorded)
    outcome = np.arange(100) % 4 == 0
    table = replace(
        small,
        episode_start=np.arange(100),
        episode_end=np.arange(1, 101),
        episode_success=outcome,
    )
    train, holdout = split_episodes(table, 0.2, seed=3)
    assert len(holdout) == 20 and outcome[holdout].sum() == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([train, holdout])), np.arange(100))
    np.testing.assert_array_equal(split_episodes(table, 0.2, seed=3)[1], holdout)
    assert not np.array_equal(split_episodes(table, 0.2, seed=4)[1], holdout)
    assert len(split_episodes(table, 0.0, seed=0)[1]) == 0
    with pytest.raises(DeasError, match="holdout fraction is 1"):
        split_episodes(table, 1, seed=0)


def test_dimensions(recorded):
    table = load_episodes("test/recorded", recorded)
    check_dimensions(table, 3, 2, IMAGE_KEYS)
    with pytest.raises(DeasError, match=r"has 3-dim observation\.state, the policy expects 7"):
        check_dimensions(table, 7, 2)
    with pytest.raises(DeasError, match="has 2-dim action, the policy expects 6"):
        check_dimensions(table, 3, 6)
    with pytest.raises(DeasError, match=r"lacks camera observation\.images\.top"):
        check_dimensions(table, 3, 2, ["observation.images.top"])
