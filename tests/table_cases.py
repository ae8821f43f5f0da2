"""Episodes in memory, for what needs no pictures."""

from pathlib import Path

import numpy as np

from deas_vla.data.episodes import EpisodeTable

LENGTHS, OUTCOMES = (9, 12, 7, 10), (True, False, True, False)


def make_table(
    lengths: tuple[int, ...] = LENGTHS, outcomes: tuple[bool, ...] = OUTCOMES, seed: int = 0
) -> EpisodeTable:
    """Episodes in memory: 3-dim states, 2-dim actions; success at the last step."""
    rng = np.random.default_rng(seed)
    end, solved = np.cumsum(lengths), np.array(outcomes)
    frames = int(end[-1])
    last = np.zeros(frames, dtype=bool)
    last[end - 1] = True
    success = last & np.repeat(solved, lengths)
    return EpisodeTable(
        repo_id="test/memory",
        root=Path("memory"),
        fingerprint=f"content {seed}",
        state=rng.normal(size=(frames, 3)).astype(np.float32),
        action=rng.normal(size=(frames, 2)).astype(np.float32),
        dataset_reward=success.astype(np.float32),
        done=last,
        success=success,
        terminated=success.copy(),
        truncated=last & ~success,
        episode_index=np.repeat(np.arange(len(lengths)), lengths),
        episode_start=(end - lengths).astype(np.int64),
        episode_end=end.astype(np.int64),
        episode_ids=np.arange(len(lengths)),
        episode_success=solved,
        task_index=np.zeros(frames, dtype=np.int64),
        tasks=("task",),
        image_keys=(),
        fps=10.0,
        state_names=("x", "y", "z"),
        action_names=("dx", "dy"),
    )
