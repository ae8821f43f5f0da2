"""Several datasets as one table, without a copy on disk; `merge.py` makes one that is."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError


def join_tables(tables: Sequence[EpisodeTable]) -> EpisodeTable:
    """Episodes of several datasets as one table, in their order, renumbered.

    Its ``root`` and ``repo_id`` are those of the first: videos are read through ``parts``, whose
    arrays are views into the joined ones.

    Raises:
        DeasError: Tables of different robots, or of which only some have ``next.reward``.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        _check_same_robot(first, table)
    tasks = tuple(dict.fromkeys(task for table in tables for task in table.tasks))
    frames = np.cumsum([0, *(table.num_frames for table in tables)])[:-1]
    count = sum(table.num_episodes for table in tables)
    episode = np.arange(count, dtype=np.int64)
    rewards = [table.dataset_reward for table in tables]
    known = [reward for reward in rewards if reward is not None]
    if 0 < len(known) < len(tables):
        raise DeasError("only some of the datasets have next.reward: add it to all, or drop it")
    joined = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("state", "action", "done", "success", "terminated", "truncated")
    }
    lengths = np.concatenate([table.episode_lengths for table in tables])
    number = [
        np.array([tasks.index(task) for task in table.tasks], dtype=np.int64)[table.task_index]
        for table in tables
    ]
    content = ":".join(table.fingerprint for table in tables)
    whole = replace(
        first,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        dataset_reward=np.concatenate(known) if known else None,
        episode_index=np.repeat(episode, lengths),
        episode_start=np.concatenate(
            [table.episode_start + at for table, at in zip(tables, frames, strict=True)]
        ),
        episode_end=np.concatenate(
            [table.episode_end + at for table, at in zip(tables, frames, strict=True)]
        ),
        episode_ids=episode,
        episode_success=np.concatenate([table.episode_success for table in tables]),
        task_index=np.concatenate(number),
        tasks=tasks,
        **joined,
    )
    parts = [
        replace(
            table,
            **{name: column[at : at + table.num_frames] for name, column in joined.items()},
        )
        for table, at in zip(tables, frames, strict=True)
    ]
    return replace(whole, parts=tuple(part for table in parts for part in table.sources))


def join_rows(parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
    """Rows of several arrays, mapped ones among them, as if they were one array.

    It has a length, a shape, ``nbytes`` and rows by index or slice, which is all that training
    asks of features; nothing is copied but the rows that are asked for.

    Args:
        parts: (T_i, W_i) each; narrower rows get zeros on the left, as tokens are padded.
    """
    return parts[0] if len(parts) == 1 else cast(NDArray[np.float16], _JoinedRows(parts))


class _JoinedRows:
    def __init__(self, parts: Sequence[NDArray[np.float16]]) -> None:
        self._parts = list(parts)
        self._end = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._end[-1]), max(part.shape[1] for part in parts))
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all rows at full width."""
        return self.shape[0] * self.shape[1] * int(self.dtype.itemsize)

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        rows = np.asarray(index)
        found = np.zeros((len(rows), self.shape[1]), self.dtype)
        owner = np.searchsorted(self._end, rows, side="right")
        for k in np.unique(owner):
            mine = np.flatnonzero(owner == k)
            begin = int(self._end[k]) - len(self._parts[k])
            part = self._parts[k][rows[mine] - begin]
            found[mine, self.shape[1] - part.shape[1] :] = part
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


def _check_same_robot(first: EpisodeTable, other: EpisodeTable) -> None:
    facts: list[tuple[str, Any, Any]] = [
        (name, getattr(first, name), getattr(other, name))
        for name in ("robot_type", "fps", "state_names", "action_names")
    ]
    facts.append(("cameras", sorted(first.image_keys), sorted(other.image_keys)))
    for name, here, there in facts:
        unsaid = name == "robot_type" and None in (here, there)
        if here != there and not unsaid:
            raise DeasError(
                f"datasets {first.root} and {other.root} differ in {name} ({here} and {there}): "
                "one normalisation serves one embodiment; join datasets of one robot, one rate "
                "and the same cameras, and train the others by themselves"
            )
