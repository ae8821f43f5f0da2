"""What the stages share: this process' part of a global batch, and a learning-rate schedule."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def index_batches(
    count: int, batch_size: int, steps: int, seed: int, *, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Random draws with replacement: every process yields its slice of the same global batch.

    Args:
        count: Rows to draw from.
        batch_size: Global batch size, divisible by ``world``.
        steps: Batches to yield.
        seed: The same on every process.
        rank: This process.
        world: Processes in all.

    Yields:
        int64 (batch_size / world,).
    """
    generator = torch.Generator().manual_seed(seed)
    local = batch_size // world
    for _ in range(steps):
        drawn = torch.randint(count, (batch_size,), generator=generator)
        yield drawn[rank * local : (rank + 1) * local]


def warmup_cosine(steps: int, warmup: float = 0.05) -> "WarmupCosine":
    """Factor of the learning rate: linear to 1 over the warm-up, then a cosine to 0."""
    return WarmupCosine(steps, max(1, math.ceil(steps * warmup)))


class WarmupCosine:
    """Callable for ``LambdaLR``."""

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.steps, self.warmup_steps = steps, warmup_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
