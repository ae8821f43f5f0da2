"""Candidates that go on from the unexecuted rest of the last chunk, beside fresh ones."""

from typing import Protocol

import torch
from torch import Tensor

from deas_vla.policies.vla import Tail


class Denoise(Protocol):
    """Follows the flow from ``actions`` (B, N, H, A_model), step ``begin`` up to before ``end``.

    ``strength`` (H, 1) or (N, H, 1) is how much of the velocity each step of a chunk takes.
    """

    def __call__(
        self,
        actions: Tensor,
        /,
        *,
        begin: int = 0,
        end: int | None = None,
        strength: Tensor | None = None,
    ) -> Tensor: ...


def continued(tail: Tail, noise: Tensor, steps: int, ramp_rate: float, denoise: Denoise) -> Tensor:
    """Fresh and warm candidates beside each other, the warm ones from a later step on.

    Args:
        tail: In the policy's normalisation: (B, H, A_model).
        noise: (B, N, H, A_model) standard normal.
        steps: Denoising steps of a chunk.
        ramp_rate: See `blend`.
        denoise: The flow of one context.

    Returns:
        (B, N, H, A_model) in the policy's normalisation.
    """
    begin = min(max(round(tail.progress * steps), 0), steps - 1)
    warm = tail.warm.to(noise.device)
    clean = tail.actions.to(noise.device, noise.dtype)[:, None]  # (B, 1, H, A_model)
    rows = torch.arange(noise.shape[2], device=noise.device)[:, None]  # (H, 1)
    strength = blend(rows, tail.frozen, tail.overlap, ramp_rate)
    fresh = torch.where(rows < tail.overlap, clean, noise[:, ~warm])
    fresh = denoise(fresh, end=begin, strength=strength.to(noise.dtype))
    time = begin / steps
    started = (1 - time) * noise[:, warm] + time * clean
    started = torch.where(rows < tail.frozen, clean, started)
    both = torch.cat([fresh, started], dim=1)
    strength = torch.stack([strength, (rows >= tail.frozen).to(strength.dtype)])  # (2, H, 1)
    kind = torch.cat([torch.zeros(fresh.shape[1]), torch.ones(started.shape[1])]).long()
    strengths = strength[kind.to(noise.device)].to(noise.dtype)  # (N, H, 1)
    both = denoise(both, begin=begin, strength=strengths)
    places = torch.cat([torch.nonzero(~warm), torch.nonzero(warm)]).flatten()
    return both[:, places.argsort()]


def held(actions: Tensor, horizon: int) -> Tensor:
    """Actions (B, T, A) as a chunk (B, horizon, A): cut, or with the last one held to its end."""
    actions = actions[:, :horizon]
    last = actions[:, -1:].expand(-1, horizon - actions.shape[1], -1)
    return torch.cat([actions, last], dim=1)


def blend(rows: Tensor, frozen: int, overlap: int, ramp_rate: float) -> Tensor:
    """How much of the flow each step of a chunk follows: LeRobot's ramp, float32 (H, 1).

    0 where a step is ``frozen``, 1 from ``overlap`` on, and between them
    ``(1 - exp(-ramp_rate t)) / (1 - exp(-ramp_rate))`` at evenly spaced t inside (0, 1).
    """
    time = torch.linspace(0.0, 1.0, max(overlap - frozen, 0) + 2, device=rows.device)[1:-1]
    ramp = torch.zeros_like(rows, dtype=torch.float32)
    ramp[overlap:] = 1.0
    whole = 1 - torch.exp(torch.tensor(-ramp_rate))
    ramp[frozen:overlap, 0] = (1 - torch.exp(-ramp_rate * time)) / whole
    return ramp
