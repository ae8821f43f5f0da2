"""The critic's own normalisation: the one place where states, actions and features are scaled.

The critic takes environment units and raw pooled features everywhere and normalises inside, so a
candidate can't be scored in the normalisation of a policy, nor a feature be transformed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deas_vla.errors import DeasError

# A dimension that moves less than this is constant: it is centred and left unscaled.
MIN_STD = 1e-6
# A dimension that hardly ever moves, and then far, has a tiny deviation: this share of its range is
# the least that a unit of it stands for. (A uniform one has 0.29, a normal one about 0.13.)
MIN_STD_OF_RANGE = 0.05
# Beyond this many units an input says no more than "far from the data".
LIMIT = 10.0
_BLOCK = 2**18  # numbers held in float64 at once: 2 MB, which a cache holds


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each input dimension, float32, over the training episodes."""

    feature_mean: Tensor  # (F,)
    feature_std: Tensor  # (F,)
    state_mean: Tensor  # (S,)
    state_std: Tensor  # (S,)
    action_mean: Tensor  # (A,)
    action_std: Tensor  # (A,)

    @classmethod
    def identity(cls, feature_dim: int, state_dim: int, action_dim: int) -> Statistics:
        """Statistics that leave every input as it is."""
        return cls(
            *(
                make(dim)
                for dim in (feature_dim, state_dim, action_dim)
                for make in (torch.zeros, torch.ones)
            )
        )


def compute_statistics(
    features: Tensor | NDArray[np.floating],
    states: Tensor,
    actions: Tensor,
    chosen: Tensor | None = None,
) -> Statistics:
    """Statistics of a dataset, read in blocks.

    ``features`` (n, F), which may be a memory map of any size, ``states`` (n, S) and ``actions``
    (n, A) in environment units; ``chosen`` (k,) int64 are the rows that count, all of them if None.
    Raises DeasError for an input with no rows or with a value that isn't finite.
    """
    return Statistics(
        *_mean_std(features, "features", chosen),
        *_mean_std(states, "states", chosen),
        *_mean_std(actions, "actions", chosen),
    )


class Normalizer(nn.Module):
    """Applies `Statistics`; its buffers move with the critic and are saved beside its weights."""

    feature_mean: Tensor
    feature_std: Tensor
    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        for f in fields(Statistics):
            self.register_buffer(f.name, getattr(statistics, f.name).clone())

    @property
    def statistics(self) -> Statistics:
        """The statistics in use, on the normaliser's device."""
        return Statistics(**{f.name: getattr(self, f.name) for f in fields(Statistics)})

    def feature(self, feature: Tensor) -> Tensor:
        """Standardise raw pooled features, (..., F)."""
        return _clamped((feature - self.feature_mean) / self.feature_std)

    def state(self, state: Tensor) -> Tensor:
        """Standardise states in environment units, (..., S)."""
        return _clamped((state - self.state_mean) / self.state_std)

    def actions(self, actions: Tensor) -> Tensor:
        """Standardise actions in environment units, (..., A)."""
        return _clamped((actions - self.action_mean) / self.action_std)

    def distance(self, feature: Tensor, state: Tensor) -> Tensor:
        """How far observations (B, F) and (B, S) are from the training data, (B,).

        The root mean square of the standardised feature or of the state, whichever is larger: 1 is
        an ordinary observation, `LIMIT` the largest that can be.
        """
        parts = [p for p in (self.feature(feature), self.state(state)) if p.shape[1]]
        return torch.stack([part.square().mean(1).sqrt() for part in parts]).amax(0)


def _clamped(scaled: Tensor) -> Tensor:
    """Within `LIMIT`; a NaN stays one."""
    return scaled.clamp(-LIMIT, LIMIT)


def _mean_std(
    rows: Tensor | NDArray[np.floating], name: str, chosen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over rows, (D,) float32, summed in float64."""
    count, total = 0, torch.zeros((), dtype=torch.float64)
    low = high = torch.empty(0)
    for block in _blocks(rows, chosen):
        least, most = block.aminmax(dim=0)
        low = least if count == 0 else torch.minimum(low, least)
        high = most if count == 0 else torch.maximum(high, most)
        count, total = count + len(block), total + block.sum(0)
    if count == 0:
        raise DeasError(f"{name} have no rows: statistics need at least one training frame")
    if not bool(torch.isfinite(total).all()):  # a sum keeps what isn't finite
        raise DeasError(f"{name} hold a NaN or infinite value: mend or drop those frames")
    mean = total / count
    square = torch.zeros_like(mean)
    for block in _blocks(rows, chosen):
        square += (block - mean).square().sum(0)
    std = torch.maximum((square / count).sqrt(), MIN_STD_OF_RANGE * (high - low))
    std = torch.where(std < MIN_STD, torch.ones_like(std), std)
    return mean.float(), std.float()


def _blocks(rows: Tensor | NDArray[np.floating], chosen: Tensor | None) -> Iterator[Tensor]:
    size = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows) if chosen is None else len(chosen), size):
        part = slice(start, start + size)
        block = rows[part] if chosen is None else rows[chosen[part]]
        yield torch.as_tensor(block, dtype=torch.float64)
