from dataclasses import replace

import numpy as np
import pytest
from data_cases import LENGTHS

from deas_vla.data.episodes import load_episodes
from deas_vla.data.joining import join_tables
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


def test_tables_of_two_robots_do_not_join(recorded):
    table = load_episodes("test/recorded", recorded)
    other = replace(table, action_names=("something", *table.action_names[1:]))
    with pytest.raises(DeasError, match="join datasets of one robot"):
        join_tables([table, other])
