"""Candidate noise: one stream per episode, nested in the number of candidates.

Candidate k of plan p is the same array whatever N is, so that episodes run with different N are
paired, and N = 1 is the base policy under the same noise.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class CandidateNoise:
    """Draws the flow's starting noise for B parallel episodes, each from its own stream.

    Args:
        seeds: One per episode.
        plans: How many decisions each episode has had; 0 when left out. A row depends on its own
            seed and plan alone, so that episodes may be batched in any company.
    """

    def __init__(self, seeds: Sequence[int], plans: Sequence[int] | None = None) -> None:
        self._seeds = list(seeds)
        self._plans = [0] * len(self._seeds) if plans is None else list(plans)

    def __len__(self) -> int:
        """B."""
        return len(self._seeds)

    def draw(self, candidates: int, shape: tuple[int, ...]) -> Tensor:
        """Next plan's noise: float32 (B, N, *shape) on the CPU, standard normal."""
        rows = []
        for generator in self._generators(stream=0):
            rows.append(
                torch.stack([torch.randn(shape, generator=generator) for _ in range(candidates)])
            )
        self._plans = [plan + 1 for plan in self._plans]
        return torch.stack(rows)

    def selection_generators(self) -> list[torch.Generator]:
        """Randomness of each episode's choice among its last plan's candidates."""
        return self._generators(stream=1)

    def _generators(self, stream: int) -> list[torch.Generator]:
        moments = zip(self._seeds, self._plans, strict=True)
        return [_generator(seed, plan, stream) for seed, plan in moments]


def episode_seed(seed: int, reset: int, row: int) -> int:
    """The noise seed of an episode that was given none: ``seed`` itself for the very first."""
    if reset == 0 and row == 0:
        return seed
    return int(np.random.SeedSequence((seed, reset, row)).generate_state(1, np.uint32)[0]) >> 1


def _generator(seed: int, plan: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, plan, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
