"""How well "stuck" and "out of data" are told, on recorded episodes: as detectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, bootstrap
from deas_vla.evaluation.offline.metrics import auc
from deas_vla.evaluation.offline.watching import Watched
from deas_vla.guidance.watch import OUT_OF_DATA, STUCK, Watch, WatchConfig


@dataclass(frozen=True)
class Alarm:
    """What an alarm is worth, with intervals over episodes.

    Attributes:
        threshold: What raises it: `WatchConfig.stuck_after`, ``far`` or ``novel``.
        auc: Probability that its signal is higher where it should be raised than where not.
        found: Share of the episodes that deserve it in which it is raised.
        false: Share of the others in which it is raised.
        delay: Median over the found: decisions until the first alarm.
        left: Median over the found: share of the episode's decisions still to come then.
    """

    threshold: float
    auc: Estimate
    found: Estimate
    false: Estimate
    delay: Estimate
    left: Estimate

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Of ``results.json``: ``detection.<name>.auc`` and so on."""
        names = ("auc", "found", "false", "delay", "left")
        return [getattr(self, each).row(f"detection.{name}.{each}") for each in names]


# ---- stuck --------------------------------------------------------------------------------------


def detect_stuck(
    watched: Watched, after: int, generator: np.random.Generator, resamples: int
) -> Alarm:
    """Failures should raise "stuck", and successes should not before they are solved.

    The AUC compares how long V has had no new highest at the *same* decision, in failures and in
    successes that still run: failures last longer, and that alone must not tell them.

    Args:
        watched: Episodes of both outcomes, else some numbers are NaN.
        after: Decisions without a new highest V that raise it.
        generator: Of the resamples.
        resamples: Of the bootstrap over episodes.
    """
    failed = watched.solved_at < 0
    runs = [_stalls(values) for values in _until_solved(watched)]
    first = np.array([_first(run >= after) for run in runs])
    length = np.array([len(run) for run in runs])
    longest = int(length.max(initial=0))

    def statistic(rows: Indices) -> Floats:
        good, bad = rows[~failed[rows]], rows[failed[rows]]
        wins = pairs = 0.0
        for decision in range(1, longest):
            theirs, ours = (
                np.array([runs[row][decision] for row in part if length[row] > decision])
                for part in (bad, good)
            )
            if len(theirs) and len(ours):
                wins += auc(theirs, ours) * len(theirs) * len(ours)
                pairs += len(theirs) * len(ours)
        return np.array([wins / pairs if pairs else np.nan, *_raised(first, length, bad, good)])

    return Alarm(after, *bootstrap(statistic, np.arange(len(runs)), generator, resamples))


def stall_for(watched: Watched, *, false: float = 0.05) -> int:
    """The fewest decisions for "stuck" at which at most this share of successes raises it.

    Raises:
        DeasError: No success.
    """
    kept = np.flatnonzero(watched.solved_at >= 0)
    if not len(kept):
        raise DeasError("no success to set `stuck_after` by: give one, or record successes")
    peaks = [float(_stalls(values).max()) for values in _until_solved(watched.part(kept))]
    return int(_exceeded_by(peaks, false)) + 1


def _until_solved(watched: Watched) -> list[Floats]:
    return [
        values if at < 0 else values[: at + 1]
        for values, at in zip(watched.values, watched.solved_at, strict=True)
    ]


def _stalls(values: Floats) -> Indices:
    """How many decisions V has had no new highest, at each: what `Watch` counts."""
    found = np.zeros(len(values), dtype=np.int64)
    for after in range(1, len(values)):
        watch = Watch(WatchConfig(stuck_after=after))
        said = np.array([watch.update(float(value)) == STUCK for value in values])
        if not said.any():
            break
        found[said] = after
    return found


# ---- out of data --------------------------------------------------------------------------------


def detect_outside(
    inside: Sequence[Floats],
    outside: Sequence[Floats],
    threshold: float,
    generator: np.random.Generator,
    resamples: int,
    *,
    patience: int = 2,
) -> Alarm:
    """Episodes with other pictures should raise "out of data", and as they were they should not.

    Args:
        inside: Distance, or disagreement, along episodes as recorded.
        outside: Along the same ones with pictures that the training data do not hold.
        threshold: At or above it, ``patience`` decisions in a row, raises the alarm.
        generator: Of the resamples.
        resamples: Of the bootstrap over episodes.
        patience: Of the alarm.
    """
    config = WatchConfig(stuck_after=0, far=threshold, patience=patience)
    quiet, loud = (
        np.array([_first(_said_outside(signal, config)) for signal in signals])
        for signals in (inside, outside)
    )
    length = np.array([len(signal) for signal in outside])

    def statistic(rows: Indices) -> Floats:
        high, low = (
            np.concatenate([signals[row] for row in rows]) for signals in (outside, inside)
        )
        found, _, delay, left = _raised(loud, length, rows, rows[:0])
        return np.array([auc(high, low), found, float((quiet[rows] >= 0).mean()), delay, left])

    return Alarm(threshold, *bootstrap(statistic, np.arange(len(length)), generator, resamples))


def outside_for(inside: Sequence[Floats], *, false: float = 0.05, patience: int = 2) -> float:
    """The lowest threshold at which at most this share of ordinary episodes raises an alarm."""
    peaks = [
        float(np.lib.stride_tricks.sliding_window_view(signal, patience).min(axis=1).max())
        if len(signal) >= patience
        else -np.inf
        for signal in inside
    ]
    return float(np.nextafter(_exceeded_by(peaks, false), np.inf))


def _said_outside(signal: Floats, config: WatchConfig) -> NDArray[np.bool_]:
    watch = Watch(config)
    return np.array([watch.update(0.0, distance=float(x)) == OUT_OF_DATA for x in signal])


# ---- both ---------------------------------------------------------------------------------------


def _exceeded_by(peaks: Sequence[float], share: float) -> float:
    """The smallest of these that at most ``share`` of them exceed."""
    return sorted(peaks)[len(peaks) - 1 - int(share * len(peaks))]


def _first(said: NDArray[np.bool_]) -> int:
    """Of an episode's decisions the first at which it is true; -1 for none."""
    at = np.flatnonzero(said)
    return int(at[0]) if len(at) else -1


def _raised(first: Indices, length: Indices, deserved: Indices, others: Indices) -> Floats:
    """Found, false, delay and left of rows that deserve the alarm and of rows that do not."""
    found = deserved[first[deserved] >= 0]
    nan = float("nan")
    return np.array(
        [
            float((first[deserved] >= 0).mean()) if len(deserved) else nan,
            float((first[others] >= 0).mean()) if len(others) else nan,
            float(np.median(first[found])) if len(found) else nan,
            float(np.median(1 - (first[found] + 1) / length[found])) if len(found) else nan,
        ]
    )
