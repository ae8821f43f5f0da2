"""Intervals against published examples and against brute force."""

import numpy as np
import pytest
from scipy.stats import binomtest

from deas_vla.evaluation.results.statistics import mcnemar, paired_difference, wilson


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (10, 10), (37, 100)])
def test_wilson_equals_scipy(successes: int, episodes: int) -> None:
    reference = binomtest(successes, episodes).proportion_ci(method="wilson")
    assert wilson(successes, episodes) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_wilson_holds_every_rate_exactly() -> None:
    for episodes in range(1, 200):
        for successes in (0, 1, episodes - 1, episodes):
            low, high = wilson(successes, episodes)
            assert 0.0 <= low <= successes / episodes <= high <= 1.0


def test_newcombe_paired_example() -> None:
    # Newcombe 1998, table II, case (a = 36, b = 12, c = 2, d = 0): 0.2 in [0.0569, 0.3404].
    first = [True] * 36 + [True] * 12 + [False] * 2
    second = [True] * 36 + [False] * 12 + [True] * 2
    difference, interval = paired_difference(first, second)
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx((0.0569, 0.3404), abs=2e-3)


def test_paired_interval_is_narrower_than_unpaired_when_outcomes_agree() -> None:
    base = np.arange(100) < 40
    better = np.arange(100) < 60  # agrees with base wherever base succeeds
    rng = np.random.default_rng(0)
    _, paired = paired_difference(better, base)
    _, shuffled = paired_difference(better, rng.permutation(base))
    assert paired[1] - paired[0] < shuffled[1] - shuffled[0]
    assert paired[0] > 0


def test_coverage_of_the_paired_interval() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        base = rng.random(100) < 0.4
        better = np.where(base, rng.random(100) < 0.9, rng.random(100) < 0.5)
        _, (low, high) = paired_difference(better, base)
        covered += low <= (0.4 * 0.9 + 0.6 * 0.5) - 0.4 <= high
    assert 0.92 <= covered / 500 <= 0.985


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        paired_difference([True] * 3, [True] * 2)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (9, 2), (4, 4), (30, 55)])
def test_mcnemar_equals_scipy(won: int, lost: int) -> None:
    outcome = [True] * won + [False] * lost + [True] * 3 + [False] * 7
    base = [False] * won + [True] * lost + [True] * 3 + [False] * 7
    reference = binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert mcnemar(outcome, base) == pytest.approx(reference, rel=1e-9)
