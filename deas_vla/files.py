"""Files that are whole or not there: written beside their place, then renamed into it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name to write to; synced and renamed to ``path`` at the end, removed after an error.

    Whoever reads ``path`` finds the old content or all of the new one, whenever the writer dies.
    """
    # The suffix stays: numpy appends its own to names without it.
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``text`` as UTF-8 at ``path``, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON at ``path``, whole or not at all."""
    write_text(path, json.dumps(value, indent=1))


def discard(directory: Path) -> None:
    """Remove a directory so that no half of it is ever seen under its name."""
    hidden = directory.with_name(f".old-{directory.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    if directory.exists():
        os.replace(directory, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
