"""Reward conventions. Values learnt from them are discounted returns, never success probabilities.

Source: the -1 per step convention is that of DEAS's robot runs (arXiv 2510.07730, section 5).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError

RewardKind = Literal["success_minus_one", "sparse", "dataset"]


@dataclass(frozen=True)
class RewardConfig:
    """Which reward the critic learns.

    Attributes:
        kind: `success_minus_one` is -1 for each step and 0 for the step that succeeds; `sparse` is
            0 and 1; `dataset` is the dataset's own `next.reward` column.
        success_bonus: added to the reward of the step that succeeds, in the unit of the reward.
    """

    kind: RewardKind = "success_minus_one"
    success_bonus: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(RewardKind):
            raise DeasError(
                f"reward kind is {self.kind!r}: choose one of {', '.join(get_args(RewardKind))}"
            )
        if not np.isfinite(self.success_bonus):
            raise DeasError(f"success_bonus is {self.success_bonus}: set it to a finite number")


def rewards_from_success(
    success: NDArray[np.bool_],
    dataset_reward: NDArray[np.floating] | None,
    config: RewardConfig,
) -> NDArray[np.float32]:
    """Reward after each frame's action.

    Args:
        success: (T,) bool, the task was solved after that frame's action.
        dataset_reward: (T,) the dataset's `next.reward`, or None when it has none.
        config: the convention.

    Returns:
        (T,) float32.

    Raises:
        DeasError: `kind="dataset"` for a dataset without a reward column.
    """
    solved = np.asarray(success, dtype=np.float32)
    if config.kind == "success_minus_one":
        base = solved - 1.0
    elif config.kind == "sparse":
        base = solved
    else:
        base = _dataset_rewards(dataset_reward)
    return (base + np.float32(config.success_bonus) * solved).astype(np.float32)


def reward_bounds(
    config: RewardConfig, dataset_reward: NDArray[np.floating] | None = None
) -> tuple[float, float]:
    """Smallest and largest reward of one step, `(r_min, r_max)`, for the critic's value support.

    Args:
        config: the convention.
        dataset_reward: (T,) the dataset's `next.reward`; only `kind="dataset"` looks at it,
            because only there the convention itself does not bound the reward.

    Raises:
        DeasError: `kind="dataset"` without rewards to look at.
    """
    if config.kind == "dataset":
        values = _dataset_rewards(dataset_reward)
        if len(values) == 0:
            raise DeasError("reward column is empty: record at least one episode")
        bonus = config.success_bonus  # on whichever step succeeds
        return float(values.min()) + min(0.0, bonus), float(values.max()) + max(0.0, bonus)
    failed, solved = (-1.0, 0.0) if config.kind == "success_minus_one" else (0.0, 1.0)
    solved += config.success_bonus
    return min(failed, solved), max(failed, solved)


def _dataset_rewards(reward: NDArray[np.floating] | None) -> NDArray[np.float32]:
    if reward is None:
        raise DeasError(
            "reward kind is 'dataset' but the dataset has no next.reward column: "
            "choose reward kind success_minus_one or sparse"
        )
    return np.asarray(reward, dtype=np.float32)


def table_rewards(table: EpisodeTable, config: RewardConfig) -> NDArray[np.float32]:
    """float32 (T,) reward after each frame's action; DeasError where one is not finite."""
    values = rewards_from_success(table.success, table.dataset_reward, config)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DeasError(
            f"reward is {values[bad[0]]} at frame {bad[0]} (episode {table.episode_index[bad[0]]}) "
            f"of dataset {table.root}: repair or drop that episode"
        )
    return values
