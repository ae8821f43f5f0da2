"""Episodes of a LeRobot dataset as arrays: what the critic needs except the images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deas_vla.data.layout import DatasetLayout, open_dataset, vectors
from deas_vla.errors import DeasError

_COLUMNS = (
    "episode_index",
    "task_index",
    "observation.state",
    "action",
    "next.reward",
    "next.done",
    "next.success",
)


@dataclass(frozen=True)
class EpisodeTable:
    """All frames of `E` episodes, `T` rows in time order, episode after episode.

    Frame `t` holds the observation at `t`, the action taken there, and the reward and flags that
    came after that action. An "episode row" is a position 0..E-1; `episode_ids` says which
    `episode_index` of the dataset it is (they are the same when the whole dataset was loaded).

    Attributes:
        repo_id, root, fingerprint: where the data comes from, and the sha256 of its content.
        state: float32 (T, S) proprioceptive state, in the dataset's units.
        action: float32 (T, A), in the dataset's units.
        dataset_reward: float32 (T,) `next.reward`, or None when the dataset has no such column.
        done: bool (T,) `next.done`.
        success: bool (T,) the task was solved after this frame's action.
        terminated: bool (T,) a true terminal, which is success at its step.
        truncated: bool (T,) last frame of an episode that never succeeded (a time limit).
        episode_index: int64 (T,) the dataset's own episode number of each frame.
        episode_start, episode_end: int64 (E,) first row of each episode, and one past its last.
        episode_ids: int64 (E,) the dataset's own episode number of each episode row.
        episode_success: bool (E,) success at any step, not only the last.
        task_index: int64 (T,) position of each frame's instruction in `tasks`.
        tasks: instruction strings.
        image_keys: cameras, `observation.images.<camera>`.
        fps: frames per second.
        state_names, action_names: one name per dimension.
        robot_type: e.g. `panda`; None where the dataset does not say.
        parts: the tables that `join_tables` made this one of, none for a dataset by itself.
    """

    repo_id: str
    root: Path
    fingerprint: str
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    dataset_reward: NDArray[np.float32] | None
    done: NDArray[np.bool_]
    success: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episode_index: NDArray[np.int64]
    episode_start: NDArray[np.int64]
    episode_end: NDArray[np.int64]
    episode_ids: NDArray[np.int64]
    episode_success: NDArray[np.bool_]
    task_index: NDArray[np.int64]
    tasks: tuple[str, ...]
    image_keys: tuple[str, ...]
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    robot_type: str | None = None
    parts: tuple["EpisodeTable", ...] = ()

    @property
    def num_frames(self) -> int:
        """`T`."""
        return len(self.action)

    @property
    def num_episodes(self) -> int:
        """`E`."""
        return len(self.episode_start)

    @property
    def sources(self) -> tuple["EpisodeTable", ...]:
        """The datasets that the episodes come from, in order: `parts`, or this table itself."""
        return self.parts or (self,)

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """int64 (E,) frames of each episode."""
        return self.episode_end - self.episode_start

    def frames(self, episode: int) -> slice:
        """Rows of one episode (given by its row)."""
        return slice(int(self.episode_start[episode]), int(self.episode_end[episode]))

    def frames_of(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of several episodes (given by theirs), episode after episode."""
        start, length = self.episode_start[episodes], self.episode_lengths[episodes]
        first = np.cumsum(length) - length  # of each episode, in what is returned
        rows: NDArray[np.int64] = np.arange(length.sum()) + np.repeat(start - first, length)
        return rows

    def task(self, episode: int) -> str:
        """Instruction of one episode (given by its row), that of its first frame."""
        return self.tasks[int(self.task_index[self.episode_start[episode]])]


def load_episodes(
    repo_id: str, root: str | Path | None = None, episodes: Sequence[int] | None = None
) -> EpisodeTable:
    """Reads a LeRobotDataset v3 without decoding any video.

    Success comes from `next.success`. Where that column is missing, a `next.reward` of zeros and
    ones that no episode starts with a one of says it step by step (RoboCasa's datasets, whose
    demonstrations go on after the success); of any other an episode counts as solved at its last
    step if the reward there is positive, which is what sparse-reward datasets mean.

    Args:
        repo_id: `user/name`.
        root: the dataset's directory, or None for LeRobot's home and the Hub.
        episodes: values of `episode_index` to load, or None for all.

    Raises:
        DeasError: no dataset, wrong format, empty, columns missing, or values that are not finite.
    """
    layout = open_dataset(repo_id, root)
    chosen = None if episodes is None else _check_episodes(layout, episodes)
    table = layout.read_columns(_COLUMNS, chosen)
    _require_columns(layout, table)
    if table.num_rows == 0:
        raise DeasError(f"dataset {layout.root} is empty: record at least one episode")

    index = vectors(table["episode_index"]).astype(np.int64)
    start = np.flatnonzero(np.append(True, np.diff(index) != 0))
    end = np.append(start[1:], len(index))
    reward = _scalars(layout, table, "next.reward", index)
    success = _success(layout, table, reward, start, end)
    solved = np.logical_or.reduceat(success, start)
    last = np.zeros(len(index), dtype=bool)
    last[end - 1] = True
    done = vectors(table["next.done"]).astype(bool) if "next.done" in table.column_names else last
    features = layout.info["features"]
    state = _matrix(layout, table, "observation.state", index)
    action = _matrix(layout, table, "action", index)
    return EpisodeTable(
        repo_id=repo_id,
        root=layout.root,
        fingerprint=_fingerprint(layout, chosen),
        state=state,
        action=action,
        dataset_reward=reward,
        done=done,
        success=success,
        terminated=success.copy(),
        truncated=last & ~np.repeat(solved, end - start),
        episode_index=index,
        episode_start=start.astype(np.int64),
        episode_end=end.astype(np.int64),
        episode_ids=index[start],
        episode_success=solved,
        task_index=vectors(table["task_index"]).astype(np.int64),
        tasks=layout.tasks,
        image_keys=layout.image_keys,
        fps=layout.fps,
        state_names=_names(features["observation.state"], state.shape[1]),
        action_names=_names(features["action"], action.shape[1]),
        robot_type=layout.info.get("robot_type"),
    )


def split_episodes(
    table: EpisodeTable, holdout_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits by episode, the same share of successes and of failures on both sides.

    Args:
        table: the episodes.
        holdout_fraction: in [0, 1); share of each outcome that is held out, rounded to episodes.
        seed: of the shuffle. The split depends on nothing else but the outcomes.

    Returns:
        Training and held-out episode rows, each sorted.

    Raises:
        DeasError: a fraction out of range.
    """
    if not 0.0 <= holdout_fraction < 1.0:
        raise DeasError(f"holdout fraction is {holdout_fraction}: set it in [0, 1)")
    generator = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    for outcome in (True, False):
        rows = generator.permutation(np.flatnonzero(table.episode_success == outcome))
        held.append(rows[: round(holdout_fraction * len(rows))])
    holdout = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(table.num_episodes), holdout).astype(np.int64), holdout


def check_dimensions(
    table: EpisodeTable, state_dim: int, action_dim: int, image_keys: Sequence[str] = ()
) -> None:
    """Compares a dataset with what a policy expects, before anything expensive starts.

    Raises:
        DeasError: state or action dimension differs, or a camera is missing.
    """
    for name, have, want in (
        ("observation.state", table.state.shape[1], state_dim),
        ("action", table.action.shape[1], action_dim),
    ):
        if have != want:
            raise DeasError(
                f"dataset {table.repo_id} has {have}-dim {name}, the policy expects {want}: "
                "use the dataset's own policy checkpoint or convert the dataset"
            )
    missing = [key for key in image_keys if key not in table.image_keys]
    if missing:
        raise DeasError(
            f"dataset {table.repo_id} lacks camera {missing[0]} (it has "
            f"{', '.join(table.image_keys) or 'none'}): rename the camera or choose another policy"
        )


def _check_episodes(layout: DatasetLayout, episodes: Sequence[int]) -> list[int]:
    known = set(layout.episodes.index)
    for episode in episodes:
        if episode not in known:
            raise DeasError(
                f"episode {episode} is not in dataset {layout.root}: choose from its {len(known)}"
            )
    return sorted({int(episode) for episode in episodes})


def _require_columns(layout: DatasetLayout, table: pa.Table) -> None:
    for name in ("episode_index", "task_index", "observation.state", "action"):
        if name not in table.column_names:
            raise DeasError(
                f"dataset {layout.root} has no column {name}: record it, "
                "it is part of every LeRobot policy dataset"
            )
    if not {"next.reward", "next.success"} & set(table.column_names):
        raise DeasError(
            f"dataset {layout.root} has neither next.success nor next.reward: add a next.success "
            "column (True at the step that solves the task), the critic learns from it"
        )


def _success(
    layout: DatasetLayout,
    table: pa.Table,
    reward: NDArray[np.float32] | None,
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
) -> NDArray[np.bool_]:
    if "next.success" in table.column_names:
        return vectors(table["next.success"]).reshape(-1).astype(np.float32) > 0.5
    assert reward is not None
    if np.isin(reward, (0, 1)).all() and not reward[episode_start].any():
        indicator: NDArray[np.bool_] = reward > 0
        return indicator
    success = np.zeros(len(reward), dtype=bool)
    success[episode_end - 1] = reward[episode_end - 1] > 0
    dense = int((reward[~success] > 0).sum())
    if dense:
        # A shaped reward is positive at any step, and would mark every episode as solved.
        raise DeasError(
            f"dataset {layout.root} has no next.success, and next.reward is positive at {dense} "
            "frames that end no episode: add a next.success column (True at the step that solves "
            "the task), and learn from the reward itself with --critic.reward.kind=dataset"
        )
    if not success.any() and (reward < 0).any():
        # A -1/0 reward would silently turn every episode into a failure.
        raise DeasError(
            f"dataset {layout.root} has no next.success and no episode ends with a positive "
            "next.reward: add a next.success column (True at the step that solves the task)"
        )
    return success


def _scalars(
    layout: DatasetLayout, table: pa.Table, name: str, episode_index: NDArray[np.int64]
) -> NDArray[np.float32] | None:
    """A column of numbers as float32 (T,), None where the dataset lacks it."""
    if name not in table.column_names:
        return None
    values = vectors(table[name]).reshape(-1).astype(np.float32)
    _check_finite(layout, name, values, episode_index)
    return values


def _matrix(
    layout: DatasetLayout, table: pa.Table, name: str, episode_index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """A column of vectors as float32 (T, D)."""
    try:
        values = vectors(table[name]).astype(np.float32).reshape(table.num_rows, -1)
    except ValueError as error:
        raise DeasError(
            f"dataset {layout.root}: {name} changes its length between frames: "
            "record every frame with the same dimensions"
        ) from error
    _check_finite(layout, name, values, episode_index)
    return values


def _check_finite(
    layout: DatasetLayout,
    name: str,
    values: NDArray[np.float32],
    episode_index: NDArray[np.int64],
) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    frame = int(np.argwhere(bad)[0, 0])
    raise DeasError(
        f"dataset {layout.root}: {name} is {values[bad][0]} at frame {frame} "
        f"(episode {episode_index[frame]}): repair or drop that episode"
    )


def _names(feature: dict[str, object], size: int) -> tuple[str, ...]:
    """Names of a vector's dimensions; LeRobot allows a list, a dict of lists, or nothing."""
    names = feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in group]
    if isinstance(names, list) and len(names) == size:
        return tuple(str(name) for name in names)
    return tuple(str(i) for i in range(size))


def _fingerprint(layout: DatasetLayout, episodes: Sequence[int] | None) -> str:
    content = layout.fingerprint()
    if episodes is None:
        return content
    return hashlib.sha256(f"{content}:{list(episodes)}".encode()).hexdigest()


def is_unchanged(table: EpisodeTable) -> bool:
    """Whether a dataset's files still are what a table of one dataset was read from."""
    layout = open_dataset(table.repo_id, table.root)
    chosen = table.episode_ids.tolist()
    return table.fingerprint in (_fingerprint(layout, None), _fingerprint(layout, chosen))


def episode_digests(table: EpisodeTable, episodes: NDArray[np.int64]) -> list[str]:
    """What tells an episode from all others, wherever it is copied to: one short hash for each.

    Over states, actions and success flags, so that neither a new name, nor a new number, nor newly
    encoded videos hide an episode that was trained on. For ``bundle.json``.
    """
    digests = []
    for episode in episodes:
        frames = table.frames(int(episode))
        digest = hashlib.sha256()
        for column in (table.state, table.action, table.success):
            digest.update(np.ascontiguousarray(column[frames]))
        digests.append(digest.hexdigest()[:16])
    return digests
