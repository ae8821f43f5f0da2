"""The largest number of candidates that a latency budget allows, measured."""

import time
from collections.abc import Callable

import numpy as np
import torch

from deas_vla.errors import DeasError

_ROUNDS = 7  # timed decisions of each number of candidates, after one to warm up


def decision_ms(decide: Callable[[int], object], candidates: int, rounds: int = _ROUNDS) -> float:
    """Milliseconds that nine of ten decisions among N candidates stay below, after a warm-up."""
    decide(candidates)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        decide(candidates)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - began))
    return float(np.quantile(taken, 0.9))


def largest_within(
    budget_ms: float, most: int, cost_ms: Callable[[int], float], *, finely: bool = True
) -> tuple[int, dict[int, float]]:
    """The largest N up to ``most`` whose decision stays within the budget.

    Doubles N until a decision takes too long, then halves the gap: a decision among more candidates
    takes longer.

    Args:
        budget_ms: Milliseconds.
        most: Largest N to consider.
        cost_ms: Milliseconds of a decision among N.
        finely: Look between the powers of two; without, every N tried is one of them or ``most``
            (each may cost a compilation).

    Returns:
        N, and milliseconds of every number tried.

    Raises:
        DeasError: One candidate takes longer already.
    """
    tried = {1: cost_ms(1)}
    if tried[1] > budget_ms:
        raise DeasError(
            f"guidance.budget_ms {budget_ms}: the base policy alone takes {tried[1]:.3g} ms: allow "
            "more, or bundle a policy of fewer denoising_steps"
        )
    fits, too_many = 1, most + 1
    while fits < most and too_many > most:
        n = min(2 * fits, most)
        tried[n] = cost_ms(n)
        if tried[n] <= budget_ms:
            fits = n
        else:
            too_many = n
    while finely and too_many <= most and too_many - fits > 1:
        n = (fits + too_many) // 2
        tried[n] = cost_ms(n)
        if tried[n] <= budget_ms:
            fits = n
        else:
            too_many = n
    return fits, tried
