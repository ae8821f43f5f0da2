from dataclasses import replace

import numpy as np
import pytest
from data_cases import IMAGE_KEYS, LENGTHS, make_episode, record

from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.data.joining import join_rows, join_tables
from deas_vla.errors import DeasError


def test_tables_of_one_robot_join(recorded):
    """Every episode as it was, under new numbers; instructions that are the same are one."""
    first, second = load_episodes("test/recorded", recorded), load_episodes("test/copy", recorded)
    second = replace(second, tasks=("another task", *first.tasks), task_index=second.task_index + 1)
    joined = join_tables([first, second])
    assert joined.num_episodes == 2 * first.num_episodes
    assert joined.tasks == (*first.tasks, "another task")
    assert joined.fingerprint not in (first.fingerprint, second.fingerprint)
    for row in range(joined.num_episodes):
        source, at = (first, row) if row < first.num_episodes else (second, row - len(LENGTHS))
        here, there = joined.frames(row), source.frames(at)
        np.testing.assert_array_equal(joined.action[here], source.action[there])
        np.testing.assert_array_equal(joined.success[here], source.success[there])
        assert set(joined.episode_index[here]) == {row}
        assert joined.task(row) == first.task(at)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_names": ("something", "else")}, r"differ in action_names \(\('dx', 'dy'\) and"),
        ({"robot_type": "gr1"}, r"differ in robot_type \(panda and gr1\)"),
        ({"fps": 10.0}, r"differ in fps \(20.0 and 10.0\)"),
        ({"image_keys": IMAGE_KEYS[:1]}, "differ in cameras"),
    ],
)
def test_tables_of_two_robots_do_not_join(recorded, change, message):
    """Their states and actions would be normalised by statistics of neither."""
    table = load_episodes("test/recorded", recorded)
    with pytest.raises(DeasError, match=message) as error:
        join_tables([table, replace(table, **change)])
    assert "one normalisation serves one embodiment" in str(error.value)
    assert "\n" not in str(error.value)
    join_tables([table, replace(table, robot_type=None)])  # one that does not say


def test_pictures_of_joined_tables_come_from_their_own_datasets(recorded, tmp_path):
    other = record(tmp_path / "other", [make_episode(seed, 8, True) for seed in (11, 12)])
    tables = [load_episodes("test/recorded", recorded), load_episodes("test/other", other)]
    joined = join_tables([*tables, tables[0]])
    assert [part.root for part in joined.parts] == [recorded, other, recorded]
    assert all(np.shares_memory(part.action, joined.action) for part in joined.parts)
    order = [6, 1, 5, 7, 8, 0]
    found = list(iter_episode_frames(joined.root, joined, IMAGE_KEYS[:1], order))
    assert [row for row, _ in found] == order
    for row, pictures in found:
        table, local = next(
            (table, row - first)
            for table, first in zip(tables + tables, (0, 5, 7), strict=False)
            if first <= row < first + table.num_episodes
        )
        _, expected = next(iter_episode_frames(table.root, table, IMAGE_KEYS[:1], [local]))
        np.testing.assert_array_equal(pictures[IMAGE_KEYS[0]], expected[IMAGE_KEYS[0]])


def test_joined_rows_read_like_one_array(tmp_path):
    parts = [np.arange(1, 13).reshape(4, 3), np.arange(13, 23).reshape(5, 2)]
    parts = [part.astype(np.float16) for part in parts]
    np.save(tmp_path / "part.npy", parts[1])
    rows = join_rows([parts[0], np.load(tmp_path / "part.npy", mmap_mode="r")])
    whole = np.concatenate([parts[0], np.pad(parts[1], ((0, 0), (1, 0)))])
    assert rows.shape == (9, 3) and len(rows) == 9 and rows.nbytes == whole.nbytes
    np.testing.assert_array_equal(np.array(rows), whole)
    for index in ([8, 0, 4, 3, 4], [2], [], np.array([5, 6])):
        np.testing.assert_array_equal(rows[np.array(index, dtype=int)], whole[index])
    np.testing.assert_array_equal(rows[2:7], whole[2:7])
    assert join_rows(parts[:1]) is parts[0]
