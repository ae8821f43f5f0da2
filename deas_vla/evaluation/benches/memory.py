"""This process' resident memory, and a mapped file's place in it. Linux: reads ``/proc``."""

import mmap
import os
import threading
from pathlib import Path
from typing import Any

_FIELDS = ("VmRSS", "RssAnon", "RssFile")


class MemoryWatch:
    """Samples resident memory in a thread while its block runs; a context manager.

    Attributes:
        peak: The most seen of ``VmRSS`` (all), ``RssAnon`` (anonymous) and ``RssFile`` (pages of
            mapped files), GB.
    """

    def __init__(self) -> None:
        self.peak = dict.fromkeys(_FIELDS, 0.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @staticmethod
    def now() -> dict[str, float]:
        """The same fields at this moment, GB."""
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return {name: int(fields[name].split()[0]) / 1e6 for name in _FIELDS}

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            for name, value in self.now().items():
                self.peak[name] = max(self.peak[name], value)


def evict(mapped: Any, path: Path) -> None:
    """Drop a file from this process and from the page cache: the next read is the disk's.

    Args:
        mapped: The ``numpy.memmap`` of it.
        path: The file.
    """
    mapped._mmap.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
