"""Numbers with 95 % intervals: percentile bootstraps over whole episodes.

The chunks of one episode are anything but independent, so episodes are what is drawn (Efron and
Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where the episodes do not define it."""

    value: float
    low: float
    high: float

    def row(self, metric: str) -> dict[str, Any]:
        """One row of ``results.json``."""
        return {
            "metric": metric,
            "value": _json(self.value),
            "ci95": [_json(self.low), _json(self.high)],
        }


def bootstrap(
    statistic: Callable[[Indices], Floats],
    episode: Indices,
    generator: np.random.Generator,
    resamples: int,
) -> list[Estimate]:
    """95 % percentile intervals by resampling whole episodes with replacement.

    Args:
        statistic: From row indices, repeats allowed, to (K,) numbers. NaN where those rows do not
            define one; such resamples do not count.
        episode: (M,) the episode of each row.
        generator: Of the resamples.
        resamples: How many.

    Returns:
        K estimates; the values are the statistic of all rows.
    """
    groups = [np.flatnonzero(episode == e) for e in np.unique(episode)]
    value = statistic(np.arange(len(episode)))
    draws = np.stack(
        [
            statistic(
                np.concatenate(
                    [groups[k] for k in generator.integers(len(groups), size=len(groups))]
                )
            )
            for _ in range(resamples)
        ]
    )  # (resamples, K)
    return [
        Estimate(float(v), *_percentiles(column[np.isfinite(column)]))
        for v, column in zip(value, draws.T, strict=True)
    ]


def mean_over(
    values: Floats, episode: Indices, generator: np.random.Generator, resamples: int
) -> Estimate:
    """Mean of the rows (M,) that are not NaN, with its interval over episodes."""
    known = np.isfinite(values)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    values = values[known]
    return bootstrap(
        lambda rows: values[rows].mean(keepdims=True), episode[known], generator, resamples
    )[0]


def _percentiles(draws: Floats) -> tuple[float, float]:
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
