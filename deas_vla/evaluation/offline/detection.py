"""How well V tells that a task is done, on recorded episodes: as a detector, not as a value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, bootstrap
from deas_vla.evaluation.offline.metrics import auc
from deas_vla.evaluation.offline.scoring import FrameCritic
from deas_vla.guidance.watch import DONE, Watch, WatchConfig


@dataclass(frozen=True)
class Recorded:
    """V along episodes.

    Attributes:
        values: For each episode (T_e,), V at its decisions, in units of return.
        solved_at: int64 (E,), the decision at which the task first counts as solved; -1 never.
    """

    values: Sequence[Floats]
    solved_at: Indices


@dataclass(frozen=True)
class Detection:
    """What an alarm "done" is worth, with intervals over episodes.

    Attributes:
        threshold: V at or above it, ``patience`` decisions in a row, is the alarm.
        auc: Probability that V within ``margin`` of being solved, or after it, is above V of
            any other moment, of failures too.
        found: Share of solved episodes with an alarm at ``margin`` decisions before at most.
        early: Share of solved episodes whose first alarm came before that.
        false: Share of failed episodes with any alarm.
        delay: Median, over the found, of decisions from being solved to the first alarm that is
            not early; negative is before.
    """

    threshold: float
    auc: Estimate
    found: Estimate
    early: Estimate
    false: Estimate
    delay: Estimate

    def rows(self) -> list[dict[str, Any]]:
        """Of ``results.json``."""
        names = ("auc", "found", "early", "false", "delay")
        return [getattr(self, name).row(f"detection.done.{name}") for name in names]


def detect_done(
    recorded: Recorded,
    threshold: float,
    generator: np.random.Generator,
    resamples: int,
    *,
    margin: int = 2,
    patience: int = 2,
) -> Detection:
    """Measure the alarm at a threshold.

    Args:
        recorded: Episodes; without solved or without failed ones some numbers are NaN.
        threshold: From `threshold_for` on *other* episodes, or a wish.
        generator: Of the resamples.
        resamples: Of the bootstrap over episodes.
        margin: Decisions before being solved that already count as it.
        patience: Of the alarm.
    """
    solved_at = recorded.solved_at
    config = WatchConfig(done=threshold, stuck_after=0, patience=patience)
    alarms = [alarm_times(values, config) for values in recorded.values]
    early = np.array(
        [(t < at - margin).any() for t, at in zip(alarms, solved_at, strict=True)], dtype=float
    )
    right = np.array(
        [(t >= at - margin).any() for t, at in zip(alarms, solved_at, strict=True)], dtype=float
    )  # of a failure: any alarm at all
    delay = np.array([_delay(t, at, margin) for t, at in zip(alarms, solved_at, strict=True)])
    near = [
        (np.arange(len(values)) >= at - margin) & (at >= 0)
        for values, at in zip(recorded.values, solved_at, strict=True)
    ]

    def statistic(rows: Indices) -> Floats:
        good, bad = rows[solved_at[rows] >= 0], rows[solved_at[rows] < 0]
        value = np.concatenate([recorded.values[row] for row in rows])
        positive = np.concatenate([near[row] for row in rows])
        return np.array(
            [
                auc(value[positive], value[~positive]),
                _mean(right[good]),
                _mean(early[good]),
                _mean(right[bad]),
                _median(delay[good]),
            ]
        )

    found = bootstrap(statistic, np.arange(len(solved_at)), generator, resamples)
    return Detection(threshold, *found)


def threshold_for(recorded: Recorded, *, false: float = 0.05, patience: int = 2) -> float:
    """The lowest threshold at which at most this share of failed episodes raises an alarm.

    Raises:
        DeasError: No failed episode.
    """
    peaks = sorted(
        _peak(values, patience)
        for values, at in zip(recorded.values, recorded.solved_at, strict=True)
        if at < 0
    )
    if not peaks:
        raise DeasError("no failed episode to set a threshold by: give one, or record failures")
    allowed = int(false * len(peaks))  # failures that may raise one
    return float(np.nextafter(peaks[len(peaks) - 1 - allowed], np.inf))


def recorded_values(critic: FrameCritic, table: EpisodeTable, episodes: Indices) -> Recorded:
    """V at every frame of some episodes, by row; solved at the frame whose action succeeds."""
    values, solved_at = [], []
    for episode in episodes:
        frames = np.arange(table.episode_start[episode], table.episode_end[episode])
        ends = np.flatnonzero(table.terminated[frames])
        values.append(critic.values(frames))
        solved_at.append(int(ends[0]) if len(ends) else -1)
    return Recorded(values, np.array(solved_at))


def detection_rows(
    recorded: Recorded, generator: np.random.Generator, resamples: int, margin: int
) -> list[dict[str, Any]]:
    """``detection.done.*``: the threshold set on one half of the episodes, measured on the other.

    Nothing where the first half has no failure, or the second is empty.
    """
    order = generator.permutation(len(recorded.values))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    setting, measured = (
        Recorded([recorded.values[row] for row in half], recorded.solved_at[half])
        for half in (first, second)
    )
    if not (setting.solved_at < 0).any():
        return []
    threshold = threshold_for(setting)
    return detect_done(measured, threshold, generator, resamples, margin=margin).rows()


def alarm_times(values: Floats, config: WatchConfig) -> Indices:
    """Decisions at which a `Watch` that follows the episode says "done"."""
    watch = Watch(config)
    said = [watch.update(float(value)) == DONE for value in values]
    return np.flatnonzero(said)


def _peak(values: Floats, patience: int) -> float:
    """The highest threshold at which there is an alarm; -inf for an episode too short for one."""
    if len(values) < patience:
        return float("-inf")
    return float(np.lib.stride_tricks.sliding_window_view(values, patience).min(axis=1).max())


def _delay(alarms: Indices, solved_at: int, margin: int) -> float:
    right = alarms[alarms >= solved_at - margin]
    return float(right[0] - solved_at) if solved_at >= 0 and len(right) else float("nan")


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
