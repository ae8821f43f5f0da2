"""When a robot is called done, stuck or out of its data."""

import pytest

from deas_vla.errors import DeasError
from deas_vla.guidance.watch import Watch, WatchConfig


def states(config: WatchConfig, *signals: list[float]) -> list[str]:
    watch = Watch(config)
    return [watch.update(*each) for each in zip(*signals, strict=True)]


def test_done_needs_patience() -> None:
    config = WatchConfig(done=-1, stuck_after=0, patience=2)
    assert states(config, [-5, -1, -5, -1, -0.5, -3]) == ["running"] * 4 + ["done", "running"]


def test_stuck_is_no_new_highest_value() -> None:
    config = WatchConfig(stuck_after=2, stuck_gain=0.5)
    found = states(config, [-5, -4.9, -4.8, -4, -4, -4])
    assert found == ["running", "running", "stuck", "running", "running", "stuck"]


def test_far_from_the_data_is_out_of_them_too() -> None:
    config = WatchConfig(far=2, novel=0.5, patience=2)
    found = states(config, [0, 0, 0, 0], [0, 0.6, 0.1, 0.1], [1, 1, 3, 1])
    assert found == ["running", "running", "out of data", "running"]


def test_out_of_data_goes_before_a_value_that_cannot_be_trusted() -> None:
    config = WatchConfig(done=-1, novel=0.5, patience=2)
    assert states(config, [0, 0, 0], [0.6, 0.6, 0.1]) == ["running", "out of data", "done"]


def test_settings_without_meaning_are_refused() -> None:
    for wrong in (WatchConfig(patience=0), WatchConfig(stuck_after=-1)):
        with pytest.raises(DeasError, match="watch"):
            Watch(wrong)
