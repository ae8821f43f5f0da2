"""How often a row is drawn: shares of datasets, balance of outcomes and tasks."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.errors import DeasError

Balance = Literal["none", "outcome", "task", "outcome_task"]


def row_weights(
    table: EpisodeTable,
    starts: NDArray[np.int64],
    shares: Sequence[float] | None = None,
    balance: str = "none",
) -> NDArray[np.float64] | None:
    """How likely each row is, summing to 1.

    ``shares`` fix what part of the rows comes from each dataset. A balance then makes groups
    equally likely, whatever their datasets: ``outcome`` rows of episodes that succeed and of those
    that fail; ``task`` rows of each instruction; ``outcome_task`` each instruction, and within it
    each outcome that it has. Within a group datasets keep their proportions.

    Args:
        table: The episodes.
        starts: int64 (M,), the frame that each row starts at.
        shares: One for each of ``table.sources``, above 0; None: every row as likely.
        balance: Which groups are equally likely.

    Returns:
        float64 (M,), or None where all rows are as likely as each other.

    Raises:
        DeasError: A dataset without a row, another number of shares, an unknown balance.
    """
    if balance not in get_args(Balance):
        raise DeasError(
            f"critic.balance '{balance}' is unknown: use one of {', '.join(get_args(Balance))}"
        )
    if shares is None and balance == "none":
        return None
    weights: NDArray[np.float64] = np.full(len(starts), 1.0 / max(1, len(starts)))
    if shares is not None:
        weights = _shared(table, starts, shares)
    episode = np.searchsorted(table.episode_start, starts, side="right") - 1
    solved = table.episode_success[episode].astype(np.int64)
    task = table.task_index[table.episode_start][episode]
    if balance == "outcome":
        weights = _equal(weights, solved)
    elif balance == "task":
        weights = _equal(weights, task)
    elif balance == "outcome_task":
        cells = _equal(weights, 2 * task + solved)
        weights = _equal(cells, task)
    return weights


def draw_rows(weights: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows by inversion of their cumulative weights.

    Args:
        weights: (M,) cumulative, from `np.cumsum`.
        uniform: (B,) in [0, 1).
    """
    rows = np.searchsorted(weights, uniform * weights[-1], side="right")
    return np.minimum(rows, len(weights) - 1).astype(np.int64)


def _shared(
    table: EpisodeTable, starts: NDArray[np.int64], shares: Sequence[float]
) -> NDArray[np.float64]:
    sources = table.sources
    if len(shares) != len(sources):
        raise DeasError(
            f"{len(shares)} weights for {len(sources)} datasets: give each dataset one, or none"
        )
    end = np.cumsum([source.num_frames for source in sources])
    owner = np.searchsorted(end, starts, side="right")
    rows = np.bincount(owner, minlength=len(sources))
    for source, count in zip(sources, rows, strict=True):
        if count == 0:
            raise DeasError(
                f"dataset {source.root} has a weight but nothing to train on: leave it out, or "
                "hold out less of it"
            )
    share = np.asarray(shares, dtype=np.float64) / np.sum(shares)
    weights: NDArray[np.float64] = (share / rows)[owner]
    return weights


def _equal(weights: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same weights inside each group, groups as likely as each other."""
    total = np.bincount(groups, weights=weights)
    present = np.count_nonzero(np.bincount(groups))
    scaled: NDArray[np.float64] = weights / total[groups] / present
    return scaled
