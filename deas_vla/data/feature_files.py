"""The files of a feature cache: rows written and joined in parts, and never trusted on reading."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.files import written_beside

# How much of a joined file waits for the disk before its shards are removed.
JOIN_BYTES = 2**28
_BFLOAT16_EXPONENT = 0x7F80  # all ones: infinite or not a number


class ShardWriter:
    """An array that is written to a file in parts, hashed on the way; a context manager.

    Args:
        path: the file.
        shape: (T, F) of the whole.
        dtype: float16; or uint16, the bits of bfloat16.
        told: what errors call the rows.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any], told: str) -> None:
        self._shape, self._dtype, self._told = shape, dtype, told
        self._rows = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        _write_header(self._file, shape, dtype)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, (n, F); DeasError for another width, or values that are not finite."""
        if rows.ndim != 2 or rows.shape[1] != self._shape[1]:
            raise self._misshapen((self._rows + len(rows), *rows.shape[1:]))
        with np.errstate(over="ignore"):  # overflow is what the next check is about
            stored = np.ascontiguousarray(rows, dtype=self._dtype)
        finite = _finite(stored)
        if not finite.all():
            frame = self._rows + int(np.argwhere(~finite)[0, 0])
            raise DeasError(
                f"feature of {self._told} frame {frame} is not finite in {_name(self._dtype)}: "
                "check the backbone's weights; where its activations are that large, "
                "--policy.dtype=bfloat16 keeps tokens in its own range"
            )
        self._rows += len(stored)
        self._hash.update(stored)
        self._file.write(stored.data)

    def finish(self) -> str:
        """Ends the file; returns its rows' SHA-256. DeasError where rows lack or are too many."""
        if self._rows != self._shape[0]:
            raise self._misshapen((self._rows, self._shape[1]))
        self._file.close()
        return self._hash.hexdigest()

    def _misshapen(self, shape: tuple[int, ...]) -> DeasError:
        return DeasError(
            f"features of {self._told} have shape {shape}, expected {self._shape}: "
            "write one row per frame"
        )


class RowFile:
    """An array in a file whose rows are written anywhere, in any order; a context manager.

    A file of the same shape and type keeps the rows that it has; any other one is replaced by
    zeros that take no room yet. Through `write`, not a map: on a full disk a map kills the process.

    Attributes:
        unsynced: bytes written since `sync`.

    Raises:
        DeasError: a full disk, in any call.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self._path, self._row = path, shape[1] * dtype.itemsize
        self.unsynced = 0
        before = read_array(path)
        if before is None or before.shape != shape or before.dtype != dtype:
            with staged(path) as temporary, temporary.open("wb") as file:
                _write_header(file, shape, dtype)
                file.truncate(file.tell() + shape[0] * self._row)
        del before
        self._file = path.open("r+b")
        self._begin = path.stat().st_size - shape[0] * self._row

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failed:
            raise told_disk(self._path, failed) from error

    def write(self, at: int, rows: NDArray[Any] | None) -> None:
        """Rows from row ``at`` on."""
        assert rows is not None
        try:
            self._file.seek(self._begin + at * self._row)
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise told_disk(self._path, error) from error
        self.unsynced += rows.nbytes

    def sync(self) -> None:
        """What was written is on the disk afterwards."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise told_disk(self._path, error) from error
        self.unsynced = 0


def told_disk(path: Path, error: OSError) -> DeasError:
    return DeasError(
        f"feature cache file {path} cannot be written ({error.strerror}): "
        "free disk space or choose another directory"
    )


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """`written_beside`, whose failure names the cache."""
    try:
        with written_beside(path) as beside:
            yield beside
    except OSError as error:
        raise told_disk(path, error) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    with staged(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, None where it is missing or torn."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return content


def read_array(path: Path) -> NDArray[Any] | None:
    """The mapped array, None where the file is missing or torn."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def checksum(array: NDArray[Any]) -> str:
    """SHA-256 of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def stamp(path: Path) -> list[int] | None:
    """A file's size and time, None where there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _write_header(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    described = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": described, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _finite(stored: NDArray[Any]) -> NDArray[np.bool_]:
    if stored.dtype == np.uint16:
        return (stored & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
    return np.isfinite(stored)


def _name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if dtype == np.uint16 else str(dtype)
