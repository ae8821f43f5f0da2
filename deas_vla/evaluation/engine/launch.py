"""One evaluation over the processes and machines of ``accelerate launch``, or over none."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.journal import RUN, claim

_PATIENCE = timedelta(days=7)  # a process may wait for the longest share


class Launch:
    """Where this process stands among those that share an evaluation.

    Attributes:
        rank: Its number; 0 writes the results.
        world: How many there are.
        device: Where its policy runs.
    """

    def __init__(self) -> None:
        # Unless told so, accelerate takes processes without a GPU for as many runs of their own.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=cpu, timeout=_PATIENCE)
        self.rank: int = self._state.process_index
        self.world: int = self._state.num_processes
        self.device = str(self._state.device)

    def wait(self) -> None:
        """Until all processes are here."""
        self._state.wait_for_everyone()

    def claim(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """`journal.claim` by process 0, before any process writes.

        Raises:
            DeasError: As `journal.claim`, or a directory that this process does not share.
        """
        if self.rank == 0:
            claim(directory, identity)
        self.wait()
        if not (directory / RUN).exists():
            raise DeasError(
                f"process {self.rank} of {self.world} does not find {directory / RUN}: give all "
                "machines the same --output_dir on a file system that they share"
            )
