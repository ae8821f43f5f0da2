"""What happens when a critic's loss stops being a number."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.critic.base import Critic
from deas_vla.critic.serialization import save_critic
from deas_vla.errors import DeasError

BATCH_FILE = "critic_nonfinite_batch.json"
_NAMED = 8  # rows of the batch that the message itself lists


class LossWatch:
    """Keeps the last good critic, and stops the run at the first loss that is NaN or infinite.

    Losses stay on the device until `check`, so that no step waits for one.

    Args:
        critic: Unwrapped; its state is copied at each check that passes.
        starts: int64 (M,), first frame of each transition.
        directory: Where the last good critic is saved when the run stops.
        accelerator: All processes stop at the same step.
    """

    def __init__(
        self, critic: Critic, starts: NDArray[np.int64], directory: Path, accelerator: Accelerator
    ) -> None:
        self._critic = critic
        self._starts = starts
        self._directory = directory
        self._accelerator = accelerator
        self._recent: list[tuple[int, Tensor, Tensor]] = []
        self._good: dict[str, Tensor] | None = None
        self._good_step = -1

    def record(self, step: int, rows: Tensor, loss: Tensor) -> None:
        """Remember a step: ``rows`` int64 (B,) are the transitions behind the scalar ``loss``."""
        self._recent.append((step, rows, loss.detach()))

    def check(self) -> None:
        """Look at all losses since the last check.

        Raises:
            DeasError: One is not finite. Names the step, the batch and the last good critic.
        """
        losses = torch.stack([loss for _, _, loss in self._recent])
        finite = self._accelerator.gather(losses).view(-1, len(losses)).isfinite().all(0)
        if not bool(finite.all()):
            step, rows, loss = self._recent[int((~finite).nonzero()[0, 0])]
            raise DeasError(self._report(step, rows, float(loss)))
        state = {
            name: tensor.detach().clone() for name, tensor in self._critic.state_dict().items()
        }
        # A finite loss may still have an infinite gradient: the weights must be good themselves.
        if all(bool(tensor.isfinite().all()) for tensor in state.values()):
            self._good, self._good_step = state, self._recent[-1][0]
        self._recent = []

    def _report(self, step: int, rows: Tensor, loss: float) -> str:
        transitions = rows.tolist()
        batch = {
            "step": step,
            "loss": str(loss),
            "transitions": transitions,
            "first_frames": self._starts[rows.numpy()].tolist(),
        }
        file = self._directory.with_name(BATCH_FILE)
        good = "no checkpoint yet"
        if self._accelerator.is_main_process:
            file.write_text(json.dumps(batch), encoding="utf-8")
        if self._good is not None:
            good = f"last good critic (step {self._good_step}): {self._directory}"
            if self._accelerator.is_main_process:
                self._critic.load_state_dict(self._good)
                save_critic(self._critic, self._directory)
        listed = ", ".join(map(str, transitions[:_NAMED])) + (", ..." * (len(rows) > _NAMED))
        return (
            f"critic loss is {loss} at step {step} on transitions [{listed}] (all in {file}); "
            f"{good}; lower --critic.lr ({self._critic.config.lr}) or check the dataset's rewards"
        )
