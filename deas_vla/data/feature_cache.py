"""The frozen feature of every frame, computed once and memory-mapped from then on.

On disk: `index.json` (fingerprint, layout, checksums), one `episode-*.npy` with its `.json` record
for each finished episode, and in the end `features.npy`, which takes them in one after the other
and needs no room beside them. A shard is written beside and renamed, and removed only once its rows
are safe in the joined file, which counts as whole when the index says so: a run killed at any
moment loses no finished episode. A file is hashed while it is written; from then on its size and
time tell whether it is that one, and only one that was touched is hashed again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.feature_files import (
    JOIN_BYTES,
    RowFile,
    ShardWriter,
    checksum,
    read_array,
    read_json,
    staged,
    stamp,
    write_json,
)
from deas_vla.errors import DeasError

Fingerprint = Mapping[str, str | int | float | bool | None]
# How numbers lie on the disk; numpy knows no bfloat16, so that its bits are kept.
_STORED = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}
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
        dtype: `float16`, or `bfloat16`, whose bits are handed in and out as uint16.

    Raises:
        DeasError: the directory holds features of another fingerprint, or cannot be written.
    """

    def __init__(
        self,
        directory: str | Path,
        fingerprint: Fingerprint,
        episode_lengths: Sequence[int] | NDArray[np.integer],
        feature_dim: int,
        dtype: str = "float16",
    ) -> None:
        self.directory = Path(directory)
        self._dtype = _STORED[dtype]
        self._lengths = np.asarray(episode_lengths, dtype=np.int64)
        self._end = np.cumsum(self._lengths)
        self._dim = feature_dim
        self._fingerprint = dict(fingerprint) | {
            "num_episodes": len(self._lengths),
            "num_frames": self.num_frames,
            "feature_dim": feature_dim,
            "dtype": dtype,
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

        Shards are removed as they are joined, so that no more than `JOIN_BYTES` and a shard lie
        there twice.

        Args:
            missing: what `missing_episodes` said, where it was asked already.
        """
        missing = self.missing_episodes() if missing is None else missing
        if not missing and self._is_assembled():
            return 0
        row = self._dim * self._dtype.itemsize
        twice = joining_bytes(self.num_frames * row, int(self._lengths.max(initial=0)) * row)
        return int(self._lengths[list(missing)].sum()) * row + twice

    def disk_space(self, missing: Sequence[int] | None = None) -> str:
        """One line for the log: frames, bytes per frame, need, and what is free."""
        need, free = self.required_bytes(missing), shutil.disk_usage(self.directory).free
        dtype = self._fingerprint["dtype"]
        return (
            f"{self.num_frames} frames x {self._dim} {dtype} ({2 * self._dim} bytes a frame): "
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
            record = read_json(path) or {}
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
        zeros = np.zeros((1, self._dim), self._dtype)
        with self.writing(episode, unreadable=reason) as write:
            for _ in range(int(self._lengths[episode])):
                write(zeros)

    def write(self, episode: int, features: NDArray[Any]) -> None:
        """Stores one episode, (T_episode, F); raises as `writing`."""
        with self.writing(episode) as write:
            write(features)

    @contextmanager
    def writing(
        self, episode: int, unreadable: str | None = None
    ) -> Iterator[Callable[[NDArray[Any]], None]]:
        """Stores one episode row by row, or as many rows at a time as there are.

        Nothing of it is seen before the block ends, and nothing at all if it ends with an error.

        Args:
            episode: 0..E-1.
            unreadable: why there was nothing to compute them from, if so; they stand for nothing.

        Yields:
            a function of the next rows, (n, F), stored as float16, or as the bits of bfloat16.

        Raises:
            DeasError: a wrong shape, values that are not finite in the cache's type, or a full
                disk.
        """
        path, shape = self._shard_path(episode), (int(self._lengths[episode]), self._dim)
        told = f"episode {episode}"
        with staged(path) as temporary, ShardWriter(temporary, shape, self._dtype, told) as shard:
            yield shard.write
            hashed = shard.finish()
        record = {"key": self.key, "sha256": hashed, "stamp": stamp(path)}
        if unreadable is not None:
            record["unreadable"] = unreadable
        write_json(self._record_path(episode), record)

    def assemble(self) -> NDArray[np.float16]:
        """Joins all episodes into one file, removes the shards, and maps it.

        Does nothing but map it if that was done before. Only one process may call it at a time.

        Returns:
            read-only float16 (num_frames, F), in episode order.

        Raises:
            DeasError: episodes are missing, or the disk is full.
        """
        if not self._is_assembled():
            missing = self.missing_episodes()
            if missing:
                raise DeasError(
                    f"feature cache {self.directory} lacks {len(missing)} of {len(self._lengths)} "
                    f"episodes (first: {missing[0]}): run the features stage again"
                )
            self._join_shards()
        for path in self.directory.glob("episode-*"):  # whose rows are in the file
            path.unlink()
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
        known, path = self._recorded(episode), self._shard_path(episode)
        if known is None or not path.is_file():
            return None
        if (read_json(self._record_path(episode)) or {}).get("stamp") == stamp(path):
            return known
        shard = read_array(path)  # touched since: copied, restored, damaged
        return known if shard is not None and known == checksum(shard) else None

    def _recorded(self, episode: int) -> str | None:
        """The checksum that a finished episode was written with."""
        record = read_json(self._record_path(episode))
        return str(record["sha256"]) if record and record["key"] == self.key else None

    def _is_assembled(self) -> bool:
        """Whether `features.npy` is the file that the index describes, by size and time."""
        index = self._read_index() or {}
        return "assembled" in index and index["assembled"] == stamp(self._features_path)

    def _assembled_episodes(self) -> set[int]:
        """Episodes that `features.npy` holds intact."""
        if self._is_assembled():
            return set(range(len(self._lengths)))
        # Touched since (copied, restored, damaged), or killed while it took the shards in: trust
        # only what the checksums confirm.
        features = read_array(self._features_path)
        if features is None or features.shape != (self.num_frames, self._dim):
            return set()
        earlier = self._earlier()
        return {
            i
            for i in range(len(self._lengths))
            if not self._shard_path(i).is_file()
            and checksum(features[self._rows(i)]) == (self._recorded(i) or earlier.get(i))
        }

    def _earlier(self) -> dict[int, str]:
        """Checksums of the file that was assembled before, by episode."""
        return dict(enumerate((self._read_index() or {}).get("sha256", [])))

    def _join_shards(self) -> None:
        """Take all shards into `features.npy`, each removed once its rows are on the disk.

        A file that is there already keeps its place and the rows of episodes without a shard.
        """
        for path in self.directory.glob(".*"):  # left by processes that were killed while writing
            path.unlink()
        earlier, unreadable = self._earlier(), self.unreadable
        checksums: list[str] = []
        safe: list[Path] = []
        with RowFile(self._features_path, (self.num_frames, self._dim), self._dtype) as joined:
            for episode in range(len(self._lengths)):
                found, path = self._shard_checksum(episode), self._shard_path(episode)
                if found is None:  # in the file already, as `missing_episodes` has confirmed
                    found = self._recorded(episode) or earlier[episode]
                else:
                    joined.write(self._rows(episode).start, read_array(path))
                    safe.append(path)
                checksums.append(found)
                if joined.unsynced >= JOIN_BYTES or episode == len(self._lengths) - 1:
                    joined.sync()
                    while safe:
                        safe.pop().unlink()
        done = stamp(self._features_path)
        self._write_index({"sha256": checksums, "assembled": done, "unreadable": unreadable})

    def _read_index(self) -> dict[str, Any] | None:
        return read_json(self.directory / "index.json")

    def _write_index(self, state: dict[str, Any]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeasError(
                f"feature cache {self.directory} cannot be made ({error.strerror}): "
                "choose another directory"
            ) from error
        index = {"fingerprint": self._fingerprint, "key": self.key, **state}
        write_json(self.directory / "index.json", index)

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


def joining_bytes(total: int, shard: int) -> int:
    """What of ``total`` bytes lies on the disk twice while shards of up to ``shard`` are joined."""
    return min(total, JOIN_BYTES + shard)


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
