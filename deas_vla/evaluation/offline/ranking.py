"""The dataset's own chunks against rivals at the same observation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, mean_over
from deas_vla.evaluation.offline.scoring import FrameCritic, ScoredChunks


@dataclass(frozen=True)
class Rivals:
    """Chunks that compete with the dataset's own at the same observation.

    Attributes:
        row: int64 (R,), which of the `ScoredChunks`.
        chunk: float32 (R, H, A), environment units. A row may have several rivals, or none.
    """

    row: Indices
    chunk: NDArray[np.float32]

    def of(self, chosen: NDArray[np.bool_]) -> "Rivals":
        """Only those of the chosen chunks, bool (M,)."""
        keep = chosen[self.row]
        return Rivals(self.row[keep], self.chunk[keep])


def dataset_rivals(
    chunks: ScoredChunks,
    noise_levels: Sequence[float],
    scale: NDArray[np.float32],
    generator: np.random.Generator,
) -> dict[str, Rivals]:
    """Rivals that need no policy, by name: of another episode, shifted in time, noised.

    Args:
        chunks: The dataset's own.
        noise_levels: In units of ``scale``.
        scale: (A,), the spread of the training actions.
        generator: Of donors and noise.
    """
    rivals = {
        "another episode": chunks_of_other_episodes(chunks, generator),
        "time-shifted": time_shifted_chunks(chunks),
        "earlier": time_shifted_chunks(chunks, (-1,)),
        "later": time_shifted_chunks(chunks, (1,)),
    }
    for level in noise_levels:
        rivals[f"noise {level:g}"] = noised_chunks(chunks, level, scale, generator)
    return rivals


def chunks_of_other_episodes(
    chunks: ScoredChunks, generator: np.random.Generator, count: int = 8
) -> Rivals:
    """``count`` chunks for each row, drawn from all chunks of the other episodes.

    Raises:
        DeasError: Fewer than two episodes.
    """
    _, first, size = np.unique(chunks.episode, return_index=True, return_counts=True)
    if len(first) < 2:
        raise DeasError("ranking against another episode needs two episodes: evaluate more")
    # Rows are ordered by episode: drawing among the others is drawing around one block.
    group = np.repeat(np.arange(len(first)), size)
    row = np.repeat(np.arange(len(chunks)), count)
    own_first, own_size = first[group[row]], size[group[row]]
    donor = generator.integers(len(chunks) - own_size)
    donor += own_size * (donor >= own_first)
    return Rivals(row, chunks.chunk[donor])


def time_shifted_chunks(chunks: ScoredChunks, times: Sequence[int] = (-1, 1)) -> Rivals:
    """The chunks H steps earlier and later in the same episode, where they exist.

    Args:
        chunks: The dataset's own.
        times: By how many times H, later where above 0. A critic in a hurry puts later chunks
            above the one that is due, which the earlier ones hide where both are counted.
    """
    horizon = chunks.chunk.shape[1]
    rows, donors = [], []
    for shift in (horizon * time for time in times):
        donor = np.searchsorted(chunks.frame, chunks.frame + shift).clip(max=len(chunks) - 1)
        there = chunks.frame[donor] == chunks.frame + shift
        there &= chunks.episode[donor] == chunks.episode
        rows.append(np.flatnonzero(there))
        donors.append(donor[there])
    return Rivals(np.concatenate(rows), chunks.chunk[np.concatenate(donors)])


def noised_chunks(
    chunks: ScoredChunks,
    level: float,
    scale: NDArray[np.float32],
    generator: np.random.Generator,
    count: int = 4,
) -> Rivals:
    """The chunk itself with Gaussian noise of ``level`` times ``scale`` (A,) in every step.

    Clipped to the range of each action dimension in these chunks, so that noise is not told by
    values that no chunk has.
    """
    row = np.repeat(np.arange(len(chunks)), count)
    own = chunks.chunk[row]
    noise = level * scale * generator.standard_normal(own.shape, dtype=np.float32)
    low, high = (f(chunks.chunk, axis=(0, 1)) for f in (np.min, np.max))
    return Rivals(row, np.clip(own + noise, low, high).astype(np.float32))


def win_rate(critic: FrameCritic, chunks: ScoredChunks, rivals: Rivals) -> Floats:
    """Share of its rivals that each dataset chunk scores above, ties half: (M,), or NaN."""
    score = critic.scores(chunks.frame[rivals.row], rivals.chunk[:, None])[:, 0]
    own = chunks.q[rivals.row]
    won = (own > score) + 0.5 * (own == score)
    with np.errstate(invalid="ignore"):
        total = np.bincount(rivals.row, won, len(chunks))
        rate: Floats = total / np.bincount(rivals.row, minlength=len(chunks))
    return rate


def groups_of(chunks: ScoredChunks, table: EpisodeTable) -> dict[str, NDArray[np.bool_]]:
    """Masks (M,) of chunks that are looked at together.

    ``all``, ``successes``, ``failures``, and where episodes have several instructions the successes
    of each, as ``successes: <instruction>``.
    """
    task = np.array([table.task(int(episode)) for episode in chunks.episode])
    groups = {
        "all": np.ones(len(chunks), dtype=bool),
        "successes": chunks.terminated,
        "failures": ~chunks.terminated,
    }
    if len(told := np.unique(task)) > 1:
        groups |= {f"successes: {each}": chunks.terminated & (task == each) for each in told}
    return groups


def win_rates(
    critic: FrameCritic,
    chunks: ScoredChunks,
    table: EpisodeTable,
    rivals: Mapping[str, Rivals],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, dict[str, Estimate]]:
    """`win_rate` by name of the rivals and of the group of chunks (`groups_of`)."""
    groups = groups_of(chunks, table)
    rates: dict[str, dict[str, Estimate]] = {}
    for name, against in rivals.items():
        won = win_rate(critic, chunks, against)
        rates[name] = {
            group: mean_over(won[mask], chunks.episode[mask], generator, resamples)
            for group, mask in groups.items()
        }
    return rates
