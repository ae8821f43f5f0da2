"""Episodes that begin alike and part: two chunks at one observation, and what became of each.

Two datasets of the same initial states, such as those of a careful and of a careless expert, hold
what a table of episodes else never does: at the very same observation a chunk after which the task
was solved and one after which it was not. That is the choice that best-of-N has to make.
"""

import numpy as np
from numpy.typing import NDArray

from deas_vla.critic.normalization import Normalizer
from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Indices
from deas_vla.evaluation.offline.ranking import Rivals
from deas_vla.evaluation.offline.scoring import ScoredChunks

_SAME = 0.05  # standard deviations: states that are no further apart show the same
_PARTED = 0.5  # standard deviations: actions that are further apart do something else


def twin_chunks(
    chunks: ScoredChunks,
    table: EpisodeTable,
    twins: EpisodeTable,
    normalizer: Normalizer,
) -> Rivals:
    """The chunks of failed twins at the observations that they share with a solved episode.

    Episode k of both tables starts alike. Their observations are the same up to the step at which
    their actions part; a row is asked about half of whose chunk, or more, lies beyond that step.

    Args:
        chunks: The dataset's own.
        table: The dataset.
        twins: Another dataset of the same initial states, episode by episode.
        normalizer: The critic's, for the spread of states and actions.

    Raises:
        DeasError: Episodes that are not twins, or none whose outcomes differ after they part.
    """
    horizon = chunks.chunk.shape[1]
    state_std, action_std = (
        std.cpu().numpy() for std in (normalizer.state_std, normalizer.action_std)
    )
    _check_twins(table, twins, chunks.episode, state_std)
    rows, rivals = [], []
    for episode in np.unique(chunks.episode):
        if not table.episode_success[episode] or twins.episode_success[episode]:
            continue
        own, other = table.episode_start[episode], twins.episode_start[episode]
        parting = _parting(table, twins, int(episode), state_std, action_std)
        step = chunks.frame - own
        shared = (chunks.episode == episode) & (step <= parting)
        shared &= step + horizon - parting >= horizon / 2
        shared &= step + horizon <= twins.episode_lengths[episode]
        row = np.flatnonzero(shared)
        rows.append(row)
        rivals.append(twins.action[other + step[row][:, None] + np.arange(horizon)])
    if not sum(map(len, rows)):
        raise DeasError(
            f"twins {twins.root}: no episode failed there that dataset {table.root} solved from "
            "the same start by other actions; record the same seeds carefully and carelessly"
        )
    return Rivals(np.concatenate(rows), np.concatenate(rivals))


def _check_twins(
    table: EpisodeTable, twins: EpisodeTable, episodes: Indices, state_std: NDArray[np.float32]
) -> None:
    if twins.num_episodes != table.num_episodes:
        raise DeasError(
            f"twins {twins.root} have {twins.num_episodes} episodes, dataset {table.root} has "
            f"{table.num_episodes}: record both from the same seeds"
        )
    for episode in map(int, np.unique(episodes)):
        first, theirs = table.episode_start[episode], twins.episode_start[episode]
        apart = np.abs(table.state[first] - twins.state[theirs]) > _SAME * state_std
        if apart.any() or table.task(episode) != twins.task(episode):
            raise DeasError(
                f"episode {table.episode_ids[episode]} of twins {twins.root} starts otherwise than "
                f"that of dataset {table.root}: record both from the same seeds, in the same order"
            )


def _parting(
    table: EpisodeTable,
    twins: EpisodeTable,
    episode: int,
    state_std: NDArray[np.float32],
    action_std: NDArray[np.float32],
) -> int:
    """The first step at which actions differ, of an episode and its twin; -1 where there is none.

    None as well where the states are apart before: then the observation is not shared.
    """
    length = min(table.episode_lengths[episode], twins.episode_lengths[episode])
    own, other = (
        slice(each.episode_start[episode], each.episode_start[episode] + length)
        for each in (table, twins)
    )
    differs = np.abs(table.action[own] - twins.action[other]) > _PARTED * action_std
    parted = np.flatnonzero(differs.any(axis=1))
    if not len(parted):
        return -1
    until = int(parted[0])
    apart = np.abs(table.state[own] - twins.state[other])[: until + 1] > _SAME * state_std
    return -1 if apart.any() else until
