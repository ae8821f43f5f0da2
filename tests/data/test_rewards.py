import numpy as np
import pytest

from deas_vla.data.rewards import RewardConfig, reward_bounds, rewards_from_success
from deas_vla.errors import DeasError

SUCCESS = np.array([False, False, True])
COLUMN = np.array([0.1, 0.2, 0.7])


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (RewardConfig(), [-1, -1, 0]),
        (RewardConfig(success_bonus=5.0), [-1, -1, 5]),
        (RewardConfig(kind="sparse"), [0, 0, 1]),
        (RewardConfig(kind="sparse", success_bonus=1.0), [0, 0, 2]),
        (RewardConfig(kind="dataset"), COLUMN),
        (RewardConfig(kind="dataset", success_bonus=1.0), [0.1, 0.2, 1.7]),
    ],
)
def test_conventions(config, want):
    got = rewards_from_success(SUCCESS, COLUMN, config)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
    low, high = reward_bounds(config, COLUMN)
    assert low <= got.min() and got.max() <= high


def test_bounds_come_from_the_convention_not_from_the_data():
    assert reward_bounds(RewardConfig()) == (-1.0, 0.0)
    assert reward_bounds(RewardConfig(kind="sparse", success_bonus=2.0)) == (0.0, 3.0)
    assert reward_bounds(RewardConfig(success_bonus=-4.0)) == (-4.0, -1.0)


def test_errors_are_one_line():
    with pytest.raises(DeasError, match=r"no next\.reward column") as error:
        rewards_from_success(SUCCESS, None, RewardConfig(kind="dataset"))
    assert "\n" not in str(error.value)
    with pytest.raises(DeasError, match="reward kind is 'dense'"):
        RewardConfig(kind="dense")  # type: ignore[arg-type]
    with pytest.raises(DeasError, match="success_bonus is nan"):
        RewardConfig(success_bonus=float("nan"))
