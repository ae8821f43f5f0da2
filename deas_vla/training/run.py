"""What every stage needs of the run it is part of."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from deas_vla.data.dataset import Draw
from deas_vla.training.checkpoints import CheckpointConfig, Checkpoints
from deas_vla.training.loop import index_batches
from deas_vla.training.preemption import Preemption


@dataclass(frozen=True)
class Run:
    """One run of the recipe on one process.

    Attributes:
        output: Its directory.
        accelerator: One process or many: the same global batches for any number of them.
        preemption: Tells a stage to save and stop.
        checkpoint: When checkpoints are written and which are kept.
        seed: Of everything random.
        log: Receives metrics and the step.
    """

    output: Path
    accelerator: Accelerator
    preemption: Preemption
    checkpoint: CheckpointConfig
    seed: int
    log: Callable[[dict[str, float], int], None]

    def batches(
        self,
        count: int,
        batch_size: int,
        steps: range,
        weights: NDArray[np.float64] | None = None,
    ) -> Iterator[Draw]:
        """This process' part of the draws from ``count`` rows; see `index_batches`."""
        return index_batches(
            count,
            batch_size,
            steps,
            self.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            weights=weights,
        )

    def checkpoints(self, stage: str, **parts: Any) -> Checkpoints:
        """Of a stage whose module and optimizer accelerate has prepared; see `Checkpoints`."""
        directory = self.output / "checkpoints" / stage
        return Checkpoints(
            directory, self.accelerator, self.checkpoint, self.preemption, log=self.log, **parts
        )

    def bar[T](self, steps: Iterable[T], stage: str, start: int, stop: int) -> "tqdm[T]":
        """A progress bar over what is left of a stage."""
        hidden = not self.accelerator.is_local_main_process
        return tqdm(steps, stage, stop, initial=start, disable=hidden)
