"""What the stages share: this process' part of a global batch, and a learning-rate schedule."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.data.dataset import Draw
from deas_vla.data.sampling import draw_rows
from deas_vla.errors import DeasError


def index_batches(
    count: int,
    batch_size: int,
    steps: range,
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
    weights: NDArray[np.float64] | None = None,
) -> Iterator[Draw]:
    """Random draws with replacement: every process yields its slice of the same global batch.

    The draws are one stream, whatever the number of processes is, and a step's draw depends on its
    number alone: a run that resumes goes on with the draw it would have made.

    Args:
        count: Rows to draw from.
        batch_size: Global batch size.
        steps: Which draws of the stream to yield, such as ``range(start, stop)``.
        seed: The same on every process.
        rank: This process.
        world: Processes in all.
        weights: (count,) how likely each row is, from `row_weights`; None for all alike.

    Yields:
        ``batch_size / world`` rows and their seeds.

    Raises:
        DeasError: ``batch_size`` does not divide among the processes.
    """
    if batch_size % world:
        raise DeasError(
            f"batch_size {batch_size} does not divide among {world} processes: use a multiple"
        )
    generator = torch.Generator().manual_seed(seed)
    tails = torch.Generator().manual_seed(seed + 1)  # of its own: rows stay what they were
    local = batch_size // world
    mine = slice(rank * local, (rank + 1) * local)
    cumulative = None if weights is None else np.cumsum(weights)
    for step in range(steps.stop):
        if cumulative is None:
            drawn = torch.randint(count, (batch_size,), generator=generator)
        else:
            uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
            drawn = torch.from_numpy(draw_rows(cumulative, uniform.numpy()))
        seeds = torch.randint(2**62, (batch_size,), generator=tails)
        if step >= steps.start:
            yield Draw(drawn[mine], seeds[mine])


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor of the learning rate at ``step`` of ``steps``: linear to 1, then a cosine to 0."""
    warmup_steps = max(1, math.ceil(steps * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
