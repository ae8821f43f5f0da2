"""Several datasets as one table, without a copy on disk; `merge.py` makes one that is."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError


def join_tables(tables: Sequence[EpisodeTable]) -> EpisodeTable:
    """Episodes of several datasets as one table, in their order, renumbered.

    Its ``root`` and ``repo_id`` are those of the first: videos are read through each table's own.

    Raises:
        DeasError: Tables of other dimensions, or of which only some have ``next.reward``.
    """
    first = tables[0]
    for table in tables[1:]:
        if (table.state_names, table.action_names) != (first.state_names, first.action_names):
            raise DeasError(
                f"dataset {table.root} has states {table.state_names} and actions "
                f"{table.action_names}, {first.root} has {first.state_names} and "
                f"{first.action_names}: join datasets of one robot"
            )
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
    return replace(
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
