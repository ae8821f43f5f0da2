"""What a policy does once, before a robot's first step."""

import logging
from collections.abc import Callable

import torch

from deas_vla.guidance.budget import decision_ms, largest_within
from deas_vla.guidance.memory import check_memory, free_bytes
from deas_vla.guidance.speed import SpeedConfig

_log = logging.getLogger(__name__)


def ready(
    device: torch.device,
    speed: SpeedConfig,
    decide: Callable[[int], object],
    choose: Callable[[int], object],
    compile: Callable[[], None],
    candidates: int,
) -> int:
    """Check memory for N candidates, compile if asked to, find out what a budget allows.

    Args:
        device: Of the policy.
        speed: What is asked for.
        decide: Takes N and makes a decision among so many.
        choose: The same, of an observation that is encoded already.
        compile: Compiles what a decision runs, at the next one.
        candidates: N; with a budget, the largest to consider.

    Returns:
        The number of candidates to decide among. Whatever runs once has run for it.

    Raises:
        DeasError: Candidates that do not fit in memory, or a budget too small for one.
    """
    if candidates > 1:
        check_memory(choose, candidates, free_bytes(device))
    if speed.compile:
        compile()
    if speed.budget_ms > 0:
        candidates, tried = largest_within(
            speed.budget_ms,
            candidates,
            lambda n: decision_ms(decide, n),
            finely=not speed.compile,
        )
        said = ", ".join(f"N={n} {ms:.1f} ms" for n, ms in sorted(tried.items()))
        _log.warning("%d candidates fit in %g ms: %s", candidates, speed.budget_ms, said)
    elif speed.compile:
        decide(candidates)
    return candidates
