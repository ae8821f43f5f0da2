"""The one input of every critic loss: a batch of chunk transitions."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from deas_vla.errors import DeasError

_OBSERVATION_FIELDS = ("feature", "state", "next_feature", "next_state")
_SCALAR_FIELDS = ("reward", "bootstrap", "terminated")


@dataclass(frozen=True)
class ChunkBatch:
    """B transitions of the semi-MDP whose actions are chunks (DEAS, arXiv 2510.07730, section 4).

    States and actions are in environment units, features as the frozen backbone pooled them: the
    critic normalises, once, inside. Frozen, so that no loss can change what another one reads.

    ``reward`` is the chunk return ``R = sum_k g1^k r_{t+k}``; ``bootstrap`` is what the next
    state's value is multiplied by where the chunk didn't end the episode (``g2^H``, or ``g2^k``
    for a recording that ends after k steps). Where ``terminated``, the next observation is never
    read into a target.

    Raises DeasError where the shapes don't fit together.
    """

    feature: Tensor  # (B, F) frozen vision-language feature at s_t
    state: Tensor  # (B, S) proprioceptive state
    actions: Tensor  # (B, H, A) action chunk; steps after a terminal one say nothing of value
    reward: Tensor  # (B,)
    bootstrap: Tensor  # (B,)
    terminated: Tensor  # (B,) bool
    next_feature: Tensor  # (B, F)
    next_state: Tensor  # (B, S)
    next_actions: Tensor | None = None  # (B, H, A) next dataset chunk, or a behaviour sample (evor)
    next_candidates: Tensor | None = None  # (B, N, H, A) policy samples at s' (qc)
    member_weight: Tensor | None = None  # (B, E) how often member e's bootstrap holds the episode

    def __post_init__(self) -> None:
        batch, horizon, action_dim = _shape(self, "actions", 3)
        for name in _OBSERVATION_FIELDS:
            width = getattr(self, name.removeprefix("next_")).shape[-1]
            _expect(self, name, (batch, width))
        for name in _SCALAR_FIELDS:
            _expect(self, name, (batch,))
        if self.next_actions is not None:
            _expect(self, "next_actions", (batch, horizon, action_dim))
        if self.next_candidates is not None:
            n = _shape(self, "next_candidates", 4)[1]
            _expect(self, "next_candidates", (batch, n, horizon, action_dim))
        if self.member_weight is not None:
            members = _shape(self, "member_weight", 2)[1]
            _expect(self, "member_weight", (batch, members))
        if self.terminated.dtype != torch.bool:
            raise DeasError(f"batch.terminated is {self.terminated.dtype}: it must be torch.bool")

    def __len__(self) -> int:
        return self.actions.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ChunkBatch:
        """The same transitions on another device; dtypes stay."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return ChunkBatch(
            **{
                name: value.to(device, non_blocking=non_blocking)
                for name, value in tensors.items()
                if value is not None
            }
        )


def _shape(batch: ChunkBatch, name: str, dims: int) -> tuple[int, ...]:
    shape = tuple(getattr(batch, name).shape)
    if len(shape) != dims:
        raise DeasError(f"batch.{name} has shape {shape}: it must have {dims} dimensions")
    return shape


def _expect(batch: ChunkBatch, name: str, expected: tuple[int, ...]) -> None:
    shape = tuple(getattr(batch, name).shape)
    if shape != expected:
        raise DeasError(f"batch.{name} has shape {shape}: the other fields make it {expected}")
