"""What the stages share: this process' part of a global batch, and a learning-rate schedule."""

import math

import torch
from torch import Tensor

from deas_vla.errors import DeasError


class IndexBatches:
    """Random draws with replacement: every process takes its slice of the same global batch.

    The draws are one stream of a generator of their own, whatever the number of processes is, and
    `state_dict` is the place in it: a run that resumes goes on with the draw it would have made.

    Args:
        count: Rows to draw from.
        batch_size: Global batch size.
        seed: The same on every process.
        rank: This process.
        world: Processes in all.

    Raises:
        DeasError: ``batch_size`` does not divide among the processes.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise DeasError(
                f"batch_size {batch_size} does not divide among {world} processes: use a multiple"
            )
        self._count, self._batch_size = count, batch_size
        local = batch_size // world
        self._mine = slice(rank * local, (rank + 1) * local)
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """The next batch, int64 (batch_size / world,)."""
        return torch.randint(self._count, (self._batch_size,), generator=self._generator)[
            self._mine
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """The place in the stream."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from the place that ``state`` tells."""
        self._generator.set_state(state["generator"])


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor of the learning rate at ``step`` of ``steps``: linear to 1, then a cosine to 0."""
    warmup_steps = max(1, math.ceil(steps * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
