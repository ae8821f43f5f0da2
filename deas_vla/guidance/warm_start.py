"""Candidates that go on from the last chunk: warm starts and real-time chunking.

A chunk of H steps of which h were executed leaves H - h that nobody will see. Some candidates start
from them, with the noise of an earlier denoising step over them (real-time iteration, Diehl et al.
2005; streaming diffusion policy, arXiv 2406.04806): they cost fewer denoising steps and stay close
to what the robot is already doing. Fresh candidates stand beside them, and the critic compares all.
"""

import torch
from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.guidance.speed import SpeedConfig
from deas_vla.policies.vla import Tail


def warm_candidates(count: int, every: int) -> Tensor:
    """Which of N candidates are warm, bool (N,): the last of each ``every``, whatever N is."""
    if every == 0:
        return torch.zeros(count, dtype=torch.bool)
    return torch.arange(count) % every == every - 1


def tail_of(rest: Tensor | None, count: int, speed: SpeedConfig) -> Tail | None:
    """What candidates go on from between two decisions that do not overlap.

    Args:
        rest: (B, T, A) unexecuted steps of the last chunks, environment units; None at an
            episode's start.
        count: N.
        speed: Which candidates are warm.
    """
    warm = warm_candidates(count, speed.warm_every)
    if rest is None or rest.shape[1] == 0 or not bool(warm.any()):
        return None
    return Tail(actions=rest, warm=warm, progress=speed.warm_progress)


def real_time_tail(
    left_over: Tensor, inference_delay: int, batch: int, count: int, speed: SpeedConfig
) -> Tail | None:
    """What candidates go on from while the last chunk is still being executed.

    Args:
        left_over: LeRobot's ``prev_chunk_left_over``, (T, A) or (B, T, A); row 0 belongs to the
            observation's step. Rows of zeros at its end are LeRobot's padding.
        inference_delay: Steps that will have been executed before the new chunk takes over: they
            stay the last chunk's in every candidate, so that they tell no candidate from another.
        batch: B.
        count: N.
        speed: Which candidates are warm.

    Raises:
        DeasError: A left-over chunk of another number of observations, or a negative delay.
    """
    actions = left_over if left_over.ndim == 3 else left_over.unsqueeze(0)
    if len(actions) not in (1, batch):
        raise DeasError(
            f"prev_chunk_left_over holds chunks of {len(actions)} observations, the batch "
            f"{batch}: give one for each"
        )
    if inference_delay < 0:
        raise DeasError(f"inference_delay {inference_delay} is negative: use 0 or more")
    real = torch.nonzero(actions.abs().sum(dim=(0, 2)))
    if len(real) == 0:
        return None
    actions = actions[:, : int(real[-1]) + 1].expand(batch, -1, -1)
    return Tail(
        actions=actions.float(),
        warm=warm_candidates(count, speed.warm_every),
        progress=speed.warm_progress,
        frozen=min(inference_delay, actions.shape[1]),
        overlap=actions.shape[1],
    )
