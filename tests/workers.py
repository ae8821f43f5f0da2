"""Several pytest processes (pytest-xdist) at one suite: in which order, and what they share."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = "PYTEST_XDIST_WORKER"  # its name, set in each worker and nowhere else


def order(item: pytest.Item) -> float:
    """Fast tests first; of the slow ones those of minutes, lest one process is left with them."""
    slow = item.get_closest_marker("slow")
    return 0 if slow is None else 2 - min(1, slow.kwargs.get("minutes", 0) / 10)


def group(item: pytest.Item) -> str:
    """What stays in one process: the fast half of a file, and its slow half."""
    return f"{item.path.stem}{'' if item.get_closest_marker('slow') is None else ':slow'}"


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` fills, filled by the first process that asks; others wait for it.

    Whoever gets it must leave it as it is.
    """
    base = factory.getbasetemp()
    if WORKER in os.environ:
        base = base.parent  # which the workers of one run have in common
    folder, whole = base / f"once-{name}", base / f"once-{name}.whole"
    with (base / f"once-{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed at it
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
