"""The frozen feature of every frame, computed once and memory-mapped from then on.

On disk: `index.json` (fingerprint, layout, checksums), one `episode-*.npy` with its `.json` record
for each finished episode, and in the end `features.npy`, which replaces them. Everything is written
beside and renamed, so a run killed at any moment leaves finished episodes and nothing half-written
under a name that is read. A file is hashed when it is written; from then on its size and time tell
whether it is that one, and only one that was touched is hashed again.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.files import written_beside

Fingerprint = Mapping[str, str | int | float | bool | None]
_DTYPE = np.float16
_OF_BEFORE = {"dtype": "float16"}  # what caches of before it was recorded hold


class FeatureCache:
    """Features of all frames of a dataset under one fingerprint.

    Several processes may hold the same cache and write different episodes; one of them assembles.

    Args:
        directory: of the cache; made if missing.
        fingerprint: everything the features depend on (backbone weights, processor, pooling,
            dataset content), by name.
        episode_lengths: (E,) frames of each episode.
        feature_dim: `F`.

    Raises:
        DeasError: the directory holds features of another fingerprint, or cannot be written.
    """

    def __init__(
        self,
        directory: str | Path,
        fingerprint: Fingerprint,
        episode_lengths: Sequence[int] | NDArray[np.integer],
        feature_dim: int,
    ) -> None:
        self.directory = Path(directory)
        self._lengths = np.asarray(episode_lengths, dtype=np.int64)
        self._end = np.cumsum(self._lengths)
        self._dim = feature_dim
        self._fingerprint = dict(fingerprint) | {
            "num_episodes": len(self._lengths),
            "num_frames": self.num_frames,
            "feature_dim": feature_dim,
            "dtype": np.dtype(_DTYPE).name,
        }
        index = self._read_index()
        if index is None:
            self._write_index({})
        else:
            self._check_fingerprint(index["fingerprint"])

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self._lengths.sum())

    @property
    def key(self) -> str:
        """sha256 of the fingerprint, for bundles and logs."""
        return fingerprint_key(self._fingerprint)

    def missing_episodes(self) -> list[int]:
        """Episodes still to be computed: absent, torn, or corrupted (by checksum)."""
        done = self._assembled_episodes()
        return [i for i in range(len(self._lengths)) if i not in done and not self._shard_valid(i)]

    def required_bytes(self, missing: Sequence[int] | None = None) -> int:
        """Disk space that the rest of the work needs at its peak.

        `features.npy` is written while the shards still exist, so that nothing is ever lost.

        Args:
            missing: what `missing_episodes` said, where it was asked already.
        """
        missing = self.missing_episodes() if missing is None else missing
        if not missing and self._is_assembled():
            return 0
        frames = int(self._lengths[list(missing)].sum()) + self.num_frames
        return frames * self._dim * np.dtype(_DTYPE).itemsize

    def disk_space(self, missing: Sequence[int] | None = None) -> str:
        """One line for the log: frames, bytes per frame, need, and what is free."""
        need, free = self.required_bytes(missing), shutil.disk_usage(self.directory).free
        return (
            f"{self.num_frames} frames x {self._dim} float16 ({2 * self._dim} bytes a frame): "
            f"{size(need)} needed at {self.directory}, {size(free)} free"
        )

    def check_disk_space(self) -> str:
        """`disk_space`, compared with what is free, before any work.

        Raises:
            DeasError: not enough space.
        """
        text = self.disk_space()
        if self.required_bytes() > shutil.disk_usage(self.directory).free:
            raise DeasError(f"disk too small for features, {text}: free some or move the cache")
        return text

    @property
    def unreadable(self) -> dict[int, str]:
        """Episodes whose features stand for nothing, and why."""
        found = {int(k): v for k, v in (self._read_index() or {}).get("unreadable", {}).items()}
        for path in self.directory.glob("episode-*.json"):
            record = _read_json(path) or {}
            if record.get("key") == self.key:
                episode = int(path.stem.removeprefix("episode-"))
                found.pop(episode, None)
                if "unreadable" in record:
                    found[episode] = record["unreadable"]
        return dict(sorted(found.items()))

    def write_unreadable(self, episode: int, reason: str) -> None:
        """Stores that an episode's features cannot be computed, so that it is not tried again.

        Args:
            episode: 0..E-1.
            reason: why, for whoever asks later.
        """
        shape = (int(self._lengths[episode]), self._dim)
        self.write(episode, np.zeros(shape, _DTYPE), unreadable=reason)

    def write(
        self, episode: int, features: NDArray[np.floating], unreadable: str | None = None
    ) -> None:
        """Stores one episode.

        Args:
            episode: 0..E-1.
            features: (T_episode, F), stored as float16.
            unreadable: why there was nothing to compute them from, if so; they stand for nothing.

        Raises:
            DeasError: a wrong shape, values that are not finite in float16, or a full disk.
        """
        expected = (int(self._lengths[episode]), self._dim)
        if features.shape != expected:
            raise DeasError(
                f"features of episode {episode} have shape {features.shape}, expected {expected}: "
                "write one row per frame"
            )
        with np.errstate(over="ignore"):  # overflow is what the next check is about
            shard = np.ascontiguousarray(features, dtype=_DTYPE)
        if not np.isfinite(shard).all():
            frame = int(np.argwhere(~np.isfinite(shard))[0, 0])
            raise DeasError(
                f"feature of episode {episode} frame {frame} is not finite in float16: "
                "check the backbone's weights and precision"
            )
        path = self._shard_path(episode)
        with _staged(path) as temporary:
            np.save(temporary, shard, allow_pickle=False)
        record = {"key": self.key, "sha256": _checksum(shard), "stamp": _stamp(path)}
        if unreadable is not None:
            record["unreadable"] = unreadable
        _write_json(self._record_path(episode), record)

    def assemble(self) -> NDArray[np.float16]:
        """Joins all episodes into one file, removes the shards, and maps it.

        Does nothing but map it if that was done before. Only one process may call it at a time.

        Returns:
            read-only float16 (num_frames, F), in episode order.

        Raises:
            DeasError: episodes are missing, or the disk is full.
        """
        if not self._is_assembled() or any(self.directory.glob("episode-*.npy")):
            missing = self.missing_episodes()
            if missing:
                raise DeasError(
                    f"feature cache {self.directory} lacks {len(missing)} of {len(self._lengths)} "
                    f"episodes (first: {missing[0]}): run the features stage again"
                )
            self._join_shards()
        return self.load()

    def load(self) -> NDArray[np.float16]:
        """Maps the assembled features, read-only float16 (num_frames, F).

        Raises:
            DeasError: they are not assembled yet.
        """
        if not self._is_assembled():
            raise DeasError(
                f"feature cache {self.directory} is not complete: run the features stage again"
            )
        return np.load(self._features_path, mmap_mode="r", allow_pickle=False)

    @property
    def _features_path(self) -> Path:
        return self.directory / "features.npy"

    def _shard_path(self, episode: int) -> Path:
        return self.directory / f"episode-{episode:06d}.npy"

    def _record_path(self, episode: int) -> Path:
        return self.directory / f"episode-{episode:06d}.json"

    def _rows(self, episode: int) -> slice:
        end = int(self._end[episode])
        return slice(end - int(self._lengths[episode]), end)

    def _shard_valid(self, episode: int) -> bool:
        return self._shard_checksum(episode) is not None

    def _shard_checksum(self, episode: int) -> str | None:
        """Of a finished episode's file; None where it is missing, torn or altered."""
        record = _read_json(self._record_path(episode))
        if record is None or record["key"] != self.key:
            return None
        known, path = str(record["sha256"]), self._shard_path(episode)
        if "stamp" in record and record["stamp"] == _stamp(path):
            return known
        shard = _read_array(path)  # touched since: copied, restored, damaged
        return known if shard is not None and known == _checksum(shard) else None

    def _is_assembled(self) -> bool:
        """Whether `features.npy` is the file that the index describes, by size and time."""
        index = self._read_index() or {}
        return "assembled" in index and index["assembled"] == _stamp(self._features_path)

    def _assembled_episodes(self) -> set[int]:
        """Episodes that `features.npy` holds intact."""
        if self._is_assembled():
            return set(range(len(self._lengths)))
        # Touched since (copied, restored, damaged): trust only what the checksums confirm.
        checksums = (self._read_index() or {}).get("sha256", [])
        features = _read_array(self._features_path)
        if features is None or features.shape != (self.num_frames, self._dim):
            return set()
        return {
            i for i, known in enumerate(checksums) if _checksum(features[self._rows(i)]) == known
        }

    def _join_shards(self) -> None:
        for path in self.directory.glob(".*"):  # left by processes that were killed while writing
            path.unlink()
        before = _read_array(self._features_path)
        index = self._read_index() or {}
        earlier = index.get("sha256", [])
        unreadable = self.unreadable
        checksums = []
        with _staged(self._features_path) as temporary:
            joined = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=_DTYPE, shape=(self.num_frames, self._dim)
            )
            for episode in range(len(self._lengths)):
                checksum = self._shard_checksum(episode)
                source: Any = _read_array(self._shard_path(episode))
                if checksum is None:  # in the file of before, which its checksum has confirmed
                    assert before is not None
                    source, checksum = before[self._rows(episode)], earlier[episode]
                joined[self._rows(episode)] = source
                checksums.append(checksum)
            joined.flush()
        stamp = _stamp(self._features_path)
        state = {"sha256": checksums, "assembled": stamp, "unreadable": unreadable}
        self._write_index(state)
        for path in self.directory.glob("episode-*"):
            path.unlink()

    def _read_index(self) -> dict[str, Any] | None:
        return _read_json(self.directory / "index.json")

    def _write_index(self, state: dict[str, Any]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeasError(
                f"feature cache {self.directory} cannot be made ({error.strerror}): "
                "choose another directory"
            ) from error
        index = {"fingerprint": self._fingerprint, "key": self.key, **state}
        _write_json(self.directory / "index.json", index)

    def _check_fingerprint(self, found: dict[str, Any]) -> None:
        for name in sorted({*found, *self._fingerprint}):
            have, want = found.get(name, _OF_BEFORE.get(name)), self._fingerprint.get(name)
            if have != want:
                raise DeasError(
                    f"feature cache {self.directory} was made with {name}={have}, this run has "
                    f"{name}={want}: use another cache directory or remove that one"
                )


def fingerprint_key(fingerprint: Fingerprint) -> str:
    """sha256 of a fingerprint's canonical JSON, as hexadecimal."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """`written_beside`, whose failure names the cache."""
    try:
        with written_beside(path) as beside:
            yield beside
    except OSError as error:
        raise DeasError(
            f"feature cache file {path} cannot be written ({error.strerror}): "
            "free disk space or choose another directory"
        ) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with _staged(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def _read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, None where it is missing or torn."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return content


def _read_array(path: Path) -> NDArray[np.float16] | None:
    """The mapped array, None where the file is missing or torn."""
    try:
        array: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def _checksum(array: NDArray[np.float16]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _stamp(path: Path) -> list[int] | None:
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
