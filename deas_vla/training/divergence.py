"""What happens when a loss stops being a number."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from deas_vla.errors import DeasError
from deas_vla.training.checkpoints import Checkpoints

_NAMED = 8  # rows of the batch that the message itself lists


class LossWatch:
    """Stops a stage at the first loss that is NaN or infinite, before it spoils a checkpoint.

    Losses stay on the device until `check`, so that no step waits for one.

    Args:
        stage: ``policy`` or ``critic``.
        module: What is trained, unwrapped.
        starts: int64 (M,), first frame of each row that a batch can hold.
        checkpoints: Of the stage.
        directory: Where the batch is written that broke it.
        accelerator: All processes stop at the same step.
        remedy: What to try, for the message.
    """

    def __init__(
        self,
        stage: str,
        module: nn.Module,
        starts: NDArray[np.int64],
        checkpoints: Checkpoints,
        directory: Path,
        accelerator: Accelerator,
        remedy: str,
    ) -> None:
        self._stage = stage
        self._module = module
        self._starts = starts
        self._checkpoints = checkpoints
        self._file = directory / f"{stage}_nonfinite_batch.json"
        self._accelerator = accelerator
        self._remedy = remedy
        self._recent: list[tuple[int, Tensor, Tensor]] = []

    def record(self, step: int, rows: Tensor, loss: Tensor) -> None:
        """Remember a step: ``rows`` int64 (B,) are behind the scalar ``loss``."""
        self._recent.append((step, rows, loss.detach()))

    def check(self) -> None:
        """Look at all losses since the last check.

        Raises:
            DeasError: One is not finite. Names the step, the batch and the last good checkpoint.
        """
        if not self._recent:
            return
        losses = torch.stack([loss for _, _, loss in self._recent])
        finite = self._accelerator.gather(losses).view(-1, len(losses)).isfinite().all(0)
        if not bool(finite.all()):
            step, rows, loss = self._recent[int((~finite).nonzero()[0, 0])]
            raise DeasError(self._report(f"loss is {float(loss)}", step, rows))
        self._recent = self._recent[-1:]  # what the weights are known by, until the next step

    def check_weights(self) -> None:
        """`check`, and that the weights are numbers: a finite loss may have an infinite gradient.

        Raises:
            DeasError: As `check`.
        """
        self.check()
        for name, tensor in self._module.named_parameters():
            if tensor.requires_grad and not bool(tensor.isfinite().all()):
                step, rows, _ = self._recent[-1]
                raise DeasError(self._report(f"weight {name} is not finite", step, rows))

    def _report(self, what: str, step: int, rows: Tensor) -> str:
        batch = {
            "step": step,
            "what": what,
            "rows": rows.tolist(),
            "first_frames": self._starts[rows.cpu().numpy()].tolist(),
        }
        if self._accelerator.is_main_process:
            self._file.write_text(json.dumps(batch), encoding="utf-8")
        newest = self._checkpoints.newest
        good = "no checkpoint yet" if newest is None else f"last good checkpoint: {newest}"
        listed = ", ".join(map(str, rows[:_NAMED].tolist())) + (", ..." * (len(rows) > _NAMED))
        return (
            f"{self._stage} {what} at step {step} on rows [{listed}] (all in {self._file}); "
            f"{good}; {self._remedy}"
        )
