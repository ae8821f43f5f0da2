"""Latency budgets, memory and warm starts, on decisions that cost what they are told to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from deas_vla.cli import parse
from deas_vla.errors import DeasError
from deas_vla.guidance import startup
from deas_vla.guidance.budget import largest_within
from deas_vla.guidance.memory import bytes_per_candidate, check_memory, free_bytes, peak_bytes
from deas_vla.guidance.speed import SpeedConfig, SpeedOverride
from deas_vla.guidance.warm_start import real_time_tail, tail_of, warm_candidates


def linear_cost(calls: list[int]) -> Callable[[int], float]:
    def cost(n: int) -> float:
        calls.append(n)
        return 10.0 + 2.0 * n

    return cost


@pytest.mark.parametrize("budget", [12.0, 13.9, 30.0, 41.9, 42.0, 43.0, 1000.0])
def test_the_largest_number_within_a_budget(budget: float) -> None:
    calls: list[int] = []
    found, tried = largest_within(budget, 64, linear_cost(calls))
    assert found == min(int((budget - 10) / 2), 64)
    assert tried == {n: 10.0 + 2.0 * n for n in calls} and len(calls) == len(set(calls)) <= 13


def test_a_coarse_search_tries_powers_of_two() -> None:
    calls: list[int] = []
    assert largest_within(55.0, 48, linear_cost(calls), finely=False)[0] == 16
    assert calls == [1, 2, 4, 8, 16, 32]
    assert largest_within(500.0, 48, linear_cost([]), finely=False)[0] == 48


def test_a_budget_below_the_base_policy_is_refused() -> None:
    with pytest.raises(DeasError, match="the base policy alone takes 12 ms"):
        largest_within(11.0, 16, linear_cost([]))


def working_set(candidates: int) -> torch.Tensor:
    """400 bytes, and 1,200 for each candidate at once; nothing else outlives its line."""
    base = torch.zeros(100)
    for _ in range(3):
        part = torch.ones(candidates, 200)  # 800 bytes each
        doubled = part[:, :100] * 2.0  # 400 bytes each
        del part
        base.add_(doubled.sum())
        del doubled
    return base


def test_peak_bytes_are_those_alive_at_once() -> None:
    assert peak_bytes(lambda: working_set(5)) == 400 + 5 * 1200
    assert bytes_per_candidate(working_set) == (400, 1200)


def test_candidates_that_do_not_fit_are_refused_with_the_number_that_does() -> None:
    assert check_memory(working_set, 10, free=20_000) == (400, 1200)
    with pytest.raises(DeasError, match=r"candidates 100 need .* use at most 14"):
        check_memory(working_set, 100, free=20_000)
    assert check_memory(working_set, 10**9, free=None) == (400, 1200)
    assert (free_bytes(torch.device("cpu")) or 1) > 0


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--budget_ms=-1", "budget_ms"),
        ("--warm_every=1", "warm_every"),
        ("--warm_progress=1", "warm_progress"),
    ],
)
def test_settings_out_of_range_are_refused(flag: str, said: str) -> None:
    with pytest.raises(DeasError, match=f"guidance.{said}"):
        parse(SpeedOverride, [flag]).over(SpeedConfig())


def test_flags_replace_what_they_say_and_nothing_else() -> None:
    own = SpeedConfig(compile=True, budget_ms=50.0, warm_every=2)
    new = parse(SpeedOverride, ["--budget_ms=80"]).over(own)
    assert new == SpeedConfig(compile=True, budget_ms=80.0, warm_every=2)


def test_start_up_checks_memory_before_it_compiles_or_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []
    cpu, compile = torch.device("cpu"), lambda: done.append("compile")
    monkeypatch.setattr(startup, "free_bytes", lambda device: 10_000)
    decide = lambda n: done.append(n)  # noqa: E731
    choose = lambda n: done.append(("choose", n)) or working_set(n)  # noqa: E731
    assert startup.ready(cpu, SpeedConfig(), decide, choose, compile, 1) == 1 and done == []
    assert startup.ready(cpu, SpeedConfig(compile=True), decide, choose, compile, 6) == 6
    assert done == [("choose", 2), ("choose", 4), "compile", 6]
    done.clear()
    with pytest.raises(DeasError, match="use at most 7"):
        startup.ready(cpu, SpeedConfig(compile=True, budget_ms=1e6), decide, choose, compile, 64)
    assert done == [("choose", 2), ("choose", 4)]
    assert startup.ready(cpu, SpeedConfig(budget_ms=1e6), decide, choose, compile, 5) == 5


def test_warm_candidates_are_the_same_whatever_their_number() -> None:
    assert warm_candidates(6, 2).tolist() == [False, True] * 3
    assert warm_candidates(5, 3).tolist() == warm_candidates(9, 3).tolist()[:5]
    assert not bool(warm_candidates(4, 0).any())
    rest, speed = torch.ones(1, 4, 7), SpeedConfig(warm_every=2)
    assert tail_of(None, 4, speed) is None and tail_of(rest, 1, speed) is None
    assert tail_of(rest[:, :0], 4, speed) is None and tail_of(rest, 4, SpeedConfig()) is None
    tail = tail_of(rest, 4, speed)
    assert tail is not None and (tail.frozen, tail.overlap, tail.progress) == (0, 0, 0.5)


def test_left_over_chunks_lose_lerobots_padding() -> None:
    left = torch.cat([torch.ones(5, 7), torch.zeros(3, 7)])
    tail = real_time_tail(left, 2, 3, 4, SpeedConfig())
    assert tail is not None and tail.actions.shape == (3, 5, 7)
    assert (tail.frozen, tail.overlap) == (2, 5) and not bool(tail.warm.any())
    late = real_time_tail(left, 9, 1, 1, SpeedConfig())
    assert late is not None and late.frozen == 5
    assert real_time_tail(torch.zeros(4, 7), 2, 1, 4, SpeedConfig()) is None
    with pytest.raises(DeasError, match="chunks of 2 observations, the batch 3"):
        real_time_tail(torch.ones(2, 5, 7), 0, 3, 4, SpeedConfig())
    with pytest.raises(DeasError, match="inference_delay -1"):
        real_time_tail(left, -1, 1, 4, SpeedConfig())
