"""Candidate noise: one stream per episode, nested in the number of candidates.

Candidate k of plan p is the same array whatever N is, so that episodes run with different N are
paired, and N = 1 is the base policy under the same noise.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class CandidateNoise:
    """Draws the flow's starting noise for B parallel episodes."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._plan = 0

    def draw(self, candidates: int, shape: tuple[int, ...]) -> Tensor:
        """Next plan's noise: float32 (B, N, *shape) on the CPU, standard normal."""
        rows = []
        for seed in self._seeds:
            generator = self._generator(seed, stream=0)
            rows.append(
                torch.stack([torch.randn(shape, generator=generator) for _ in range(candidates)])
            )
        self._plan += 1
        return torch.stack(rows)

    def selection_generator(self) -> torch.Generator:
        """Randomness of the choice among the last plan's candidates."""
        return self._generator(self._seeds[0], stream=1)

    def _generator(self, seed: int, stream: int) -> torch.Generator:
        state = np.random.SeedSequence((seed, self._plan, stream)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) >> 1)
