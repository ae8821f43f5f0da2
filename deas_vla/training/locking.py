"""One run at a time: in an output directory, and at features that several runs share."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deas_vla.errors import DeasError

_PREDECESSOR_SECONDS = 60.0  # how long a run waits for the one before it to end
_LOCK = ".lock"


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Keep other runs out of ``output``; waits for one that is about to end.

    Raises:
        DeasError: It does not end.
    """
    deadline = time.monotonic() + _PREDECESSOR_SECONDS
    root = output / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("a") as file:
        while not _locked(file):
            if time.monotonic() > deadline:
                raise DeasError(
                    f"another run is writing to {output}: stop it or choose another --output_dir"
                )
            time.sleep(0.2)
        yield


@contextmanager
def sole_extractor(directory: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep other runs from filling the caches in ``directory``; waits as long as one does.

    The run that waited then finds there what the other one has computed.

    Args:
        directory: Parent of the feature caches.
        accelerator: Its main process asks; all wait.
    """
    file, said = _lock_file(directory) if accelerator.is_main_process else None, False
    with file or nullcontext():
        while not _told(file is None or _locked(file)):
            if not said:
                accelerator.print(f"features: another run fills {directory}, waiting for it")
                said = True
            time.sleep(0.5)
        try:
            yield
        finally:  # closing is not enough: worker processes hold the file, too
            if file is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_UN)


def _told(mine: bool) -> bool:
    """What the main process says."""
    return bool(broadcast_object_list([mine])[0])


def _lock_file(directory: Path) -> IO[str] | None:
    """What is locked; None where nothing can be written, and so nothing needs guarding."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return (directory / _LOCK).open("a")
    except OSError:
        return None


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
