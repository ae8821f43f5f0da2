"""Success rates with intervals, and paired differences with theirs."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Z95 = NormalDist().inv_cdf(0.975)


def wilson(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), 95 % by default.

    Returns:
        (low, high) in 0..1; (0, 1) for no episodes.
    """
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    # Exact where rounding would put the rate itself outside its interval.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == episodes else (centre + spread) / scale
    return low, high


def paired_difference(
    outcome: Sequence[bool], base: Sequence[bool]
) -> tuple[float, tuple[float, float]]:
    """Difference of two success rates over the same episodes, with a 95 % interval.

    The interval is Newcombe's tenth method for paired proportions (Newcombe 1998, Statistics in
    Medicine 17:2635): Wilson intervals of both rates, combined under their correlation.

    Args:
        outcome: Success per episode.
        base: Success of the base policy in the same episodes, in the same order.

    Returns:
        (rate(outcome) - rate(base), (low, high)), in -1..1.
    """
    a, b = np.asarray(outcome, dtype=bool), np.asarray(base, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes differ in length: {a.size} and {b.size}")
    n = a.size
    if n == 0:
        return 0.0, (-1.0, 1.0)
    p, q = float(a.mean()), float(b.mean())
    (p_low, p_high), (q_low, q_high) = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    phi = _correlation(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), n)
    difference = p - q
    low = _combine(p - p_low, q_high - q, phi)
    high = _combine(p_high - p, q - q_low, phi)
    return difference, (max(-1.0, difference - low), min(1.0, difference + high))


def mcnemar(outcome: Sequence[bool], base: Sequence[bool]) -> float:
    """Exact two-sided p of no difference between paired success rates (McNemar 1947).

    Only pairs that differ count: under no difference each goes either way with probability 1/2.

    Args:
        outcome: Success per episode.
        base: Success of the base policy in the same episodes, in the same order.

    Returns:
        p in 0..1; 1 where no pair differs.
    """
    a, b = np.asarray(outcome, dtype=bool), np.asarray(base, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes differ in length: {a.size} and {b.size}")
    won, lost = int((a & ~b).sum()), int((~a & b).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (won + lost))


def _combine(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def _correlation(both: int, first: int, second: int, n: int) -> float:
    """Phi of the 2x2 table, with Newcombe's continuity correction."""
    neither = n - both - first - second
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - first * second
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    return corrected / math.sqrt(margins)
