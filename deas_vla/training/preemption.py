"""SIGTERM, as schedulers send it before they take a machine away: save, then exit with 0."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Preempted(SystemExit):
    """The run has been told to stop and has lost nothing; the process' exit status is 0."""

    def __init__(self) -> None:
        super().__init__(0)


class Preemption:
    """Within this context SIGTERM stops the run between two steps, or at once outside of them.

    A launcher that is killed leaves its processes behind, and they would go on writing next to
    the run that replaces them. So the death of accelerate's launcher counts as SIGTERM, too.

    Args:
        accelerator: All processes stop after the same step.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._told = False
        self._deferred = False

    def __enter__(self) -> "Preemption":
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if isinstance(error, Preempted):
            self._accelerator.print(
                "stopped by SIGTERM with everything saved: run the same command to go on"
            )

    def _on_signal(self, signum: int, frame: FrameType | None) -> Any:
        self._told = True
        if not self._deferred:
            raise Preempted

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A loop that asks `requested` by itself and saves before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._told:  # after its last step: what follows need not begin
            raise Preempted

    def requested(self) -> bool:
        """Whether any process has been told to stop. Every process must ask at the same step."""
        if self._accelerator.num_processes == 1:
            return self._told
        told = torch.tensor(int(self._told), device=self._accelerator.device)
        return bool(self._accelerator.reduce(told, "sum") > 0)
