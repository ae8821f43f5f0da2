"""Values along one episode, and which episodes are worth looking at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import iter_episode_frames
from deas_vla.evaluation.offline.intervals import Floats, Indices
from deas_vla.evaluation.offline.scoring import FrameCritic, ScoredChunks


@dataclass(frozen=True)
class ValueCurve:
    """One episode under a critic.

    Attributes:
        title: What the episode is.
        values: (T,) ``V`` of every frame.
        chunks: The episode's own chunks.
        pictures: uint8 (T, height, width, 3), one camera.
        fps: Frames per second.
    """

    title: str
    values: Floats
    chunks: ScoredChunks
    pictures: NDArray[np.uint8]
    fps: float


def typical_episodes(
    half_time: Floats, success: NDArray[np.bool_], episodes: Indices
) -> dict[str, int]:
    """Of each outcome the episode whose V at half its time is the median of its group's.

    Args:
        half_time: (E,) V at half of each episode.
        success: bool (E,).
        episodes: (E,) episode rows.

    Returns:
        Episode rows for ``success`` and ``failure``, where there are any.
    """
    typical = {}
    for outcome, solved in (("success", True), ("failure", False)):
        group = np.flatnonzero(success == solved)
        if len(group):
            order = np.argsort(half_time[group], kind="stable")
            typical[outcome] = int(episodes[group[order[len(order) // 2]]])
    return typical


def value_curve(
    critic: FrameCritic,
    table: EpisodeTable,
    chunks: ScoredChunks,
    episode: int,
    image_key: str,
    outcome: str,
) -> ValueCurve:
    """The curve of one episode row.

    Args:
        critic: Gives the values.
        table: The dataset with the pictures.
        chunks: Scored, of this episode among others.
        episode: Its row.
        image_key: The camera to show.
        outcome: For the title.
    """
    frames = np.arange(table.num_frames)[table.frames(episode)]
    _, pictures = next(iter_episode_frames(table.root, table, [image_key], [episode]))
    return ValueCurve(
        title=f"episode {table.episode_ids[episode]}, {outcome}: {table.task(episode)}",
        values=critic.values(frames),
        chunks=chunks.of_episode(episode),
        pictures=pictures[image_key],
        fps=table.fps,
    )
