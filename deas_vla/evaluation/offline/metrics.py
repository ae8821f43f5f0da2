"""Calibration, overestimation and separation of values that a critic gave to recorded chunks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, bootstrap
from deas_vla.evaluation.offline.scoring import ScoredChunks


@dataclass(frozen=True)
class CalibrationBin:
    """Chunks between two quantiles of Q.

    Attributes:
        chunks: How many.
        q: Mean Q.
        returns: Mean return.
        overestimation: Mean of Q minus return.
    """

    chunks: int
    q: Estimate
    returns: Estimate
    overestimation: Estimate


@dataclass(frozen=True)
class Calibration:
    """Q against the returns that followed, in units of return.

    Attributes:
        error: Expected calibration error, ``sum_b n_b/n |mean Q - mean return|`` over bins of
            equally many chunks (Naeini et al. 2015, for values instead of probabilities).
        rank_correlation: Spearman's, of Q and return over chunks.
        overestimation: Mean of Q minus return.
        bins: In ascending order of Q.
    """

    error: Estimate
    rank_correlation: Estimate
    overestimation: Estimate
    bins: list[CalibrationBin]


def calibration(
    q: Floats,
    returns: Floats,
    episode: Indices,
    generator: np.random.Generator,
    resamples: int,
    bins: int = 10,
) -> Calibration:
    """Compare values (M,) with returns (M,) of chunks in episodes (M,), all bins with intervals.

    Bins are cut at the quantiles of all chunks and stay there in every resample.
    """
    bins = min(bins, len(q))
    member = (rankdata(q, method="ordinal") - 1).astype(np.int64) * bins // len(q)

    def statistic(rows: Indices) -> Floats:
        count = np.bincount(member[rows], minlength=bins)
        with np.errstate(invalid="ignore"):  # a bin that a resample leaves empty is NaN
            mean_q = np.bincount(member[rows], q[rows], bins) / count
            mean_return = np.bincount(member[rows], returns[rows], bins) / count
        gap = mean_q - mean_return
        error = np.nansum(count * np.abs(gap)) / len(rows)
        over = float((q[rows] - returns[rows]).mean())
        correlation = spearman(q[rows], returns[rows])
        return np.concatenate([[error, correlation, over], mean_q, mean_return, gap])

    found = bootstrap(statistic, episode, generator, resamples)
    error, correlation, over, *rest = found
    return Calibration(
        error,
        correlation,
        over,
        [CalibrationBin(int((member == b).sum()), *rest[b::bins]) for b in range(bins)],
    )


def calibration_by_outcome(
    chunks: ScoredChunks, generator: np.random.Generator, resamples: int
) -> dict[str, Calibration]:
    """Calibration on all chunks (``""``), and on those whose return was observed to the end.

    Returns:
        By suffix of the metric's name; ``.successes`` is missing where no episode succeeded.
    """
    groups = {"": np.ones(len(chunks), dtype=bool), ".successes": chunks.terminated}
    return {
        suffix: calibration(
            chunks.q[rows], chunks.returns[rows], chunks.episode[rows], generator, resamples
        )
        for suffix, rows in groups.items()
        if rows.any()
    }


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of (M,) and (M,); NaN where one of them is constant."""
    ranks = np.stack([rankdata(x), rankdata(y)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1).prod())
    return float(ranks.prod(axis=0).sum() / norm) if norm > 0 else float("nan")


def separation(
    values: Floats, success: NDArray[np.bool_], generator: np.random.Generator, resamples: int
) -> list[Estimate]:
    """AUC of V between successful and failed episodes, at each fraction of the episode elapsed.

    Args:
        values: (E, K) from `values_along`.
        success: bool (E,).
        generator: Of the resamples.
        resamples: How many.

    Returns:
        K estimates in 0..1, 0.5 for a V that cannot tell; NaN without both outcomes.
    """

    def statistic(rows: Indices) -> Floats:
        solved = rows[success[rows]], rows[~success[rows]]
        return np.array([auc(*(column[part] for part in solved)) for column in values.T])

    return bootstrap(statistic, np.arange(len(success)), generator, resamples)


def auc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive (P,) is above a negative (N,), ties half (Mann-Whitney U)."""
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    u = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(u / (len(positive) * len(negative)))
