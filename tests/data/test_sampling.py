"""How often rows are drawn, counted exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from table_cases import make_table

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.joining import join_tables
from deas_vla.data.sampling import draw_rows, row_weights
from deas_vla.errors import DeasError
from deas_vla.training.loop import index_batches

# Six episodes: outcome, instruction, frames.
OUTCOMES = (True, False, False, True, False, False)
TASKS = (0, 0, 1, 1, 1, 2)
LENGTHS = (2, 3, 4, 1, 5, 6)


def table() -> EpisodeTable:
    """Of two datasets: the first two episodes, and the other four."""
    task = np.repeat(TASKS, LENGTHS)
    parts = [
        replace(
            make_table(LENGTHS[part], OUTCOMES[part]),
            tasks=("a", "b", "c"),
            task_index=np.repeat(TASKS[part], LENGTHS[part]),
        )
        for part in (slice(0, 2), slice(2, 6))
    ]
    joined = join_tables(parts)
    np.testing.assert_array_equal(joined.task_index, task)
    return joined


def exact_counts(weights: np.ndarray, draws: int) -> np.ndarray:
    """How often each row comes when the unit interval is walked through evenly."""
    uniform = (np.arange(draws) + 0.5) / draws
    return np.bincount(draw_rows(np.cumsum(weights), uniform), minlength=len(weights))


EPISODE = np.repeat(np.arange(6), LENGTHS)


@pytest.mark.parametrize(
    ("shares", "balance", "expected"),
    [
        # Each row of a group as likely; the number below is a row's chance in episodes 0 to 5.
        ([3.0, 1.0], "none", [0.75 / 5, 0.75 / 5, *[0.25 / 16] * 4]),
        (None, "outcome", [0.5 / 3, 0.5 / 18, 0.5 / 18, 0.5 / 3, 0.5 / 18, 0.5 / 18]),
        (None, "task", [1 / 15, 1 / 15, 1 / 30, 1 / 30, 1 / 30, 1 / 18]),
        (None, "outcome_task", [1 / 12, 1 / 18, 1 / 54, 1 / 6, 1 / 54, 1 / 18]),
        # Among successes two rows are of the first dataset, a frame of which weighs 48/5 of one of
        # the second; the same among failures, 3 to 15.
        (
            [3.0, 1.0],
            "outcome",
            [
                *(0.5 * 9.6 / (2 * 9.6 + 1), 0.5 * 9.6 / (3 * 9.6 + 15), 0.5 / (3 * 9.6 + 15)),
                *(0.5 / (2 * 9.6 + 1), 0.5 / (3 * 9.6 + 15), 0.5 / (3 * 9.6 + 15)),
            ],
        ),
    ],
)
def test_frequencies(shares: list[float] | None, balance: str, expected: list[float]) -> None:
    starts = np.arange(sum(LENGTHS))
    weights = row_weights(table(), starts, shares, balance)
    assert weights is not None
    np.testing.assert_allclose(weights, np.array(expected)[EPISODE], rtol=1e-12)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    draws = 1_000_000
    counts = exact_counts(weights, draws)
    assert np.abs(counts - draws * np.array(expected)[EPISODE]).max() <= 1


def test_batches_are_balanced_and_the_same_for_any_number_of_processes() -> None:
    whole = table()
    starts = np.arange(sum(LENGTHS))
    weights = row_weights(whole, starts, None, "outcome")
    assert weights is not None

    def rows(steps: range, **share: int) -> torch.Tensor:
        drawn = index_batches(len(starts), 64, steps, seed=5, weights=weights, **share)
        return torch.stack([draw.rows for draw in drawn])

    alone = rows(range(40))
    halves = [rows(range(40), rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), alone)
    assert torch.equal(rows(range(30, 40)), alone[30:])
    solved = whole.episode_success[EPISODE[alone.flatten().numpy()]]
    assert abs(solved.mean() - 0.5) < 4 * 0.5 / len(solved) ** 0.5  # of 3 in 21 frames


def test_without_weights_every_row_is_as_likely() -> None:
    assert row_weights(table(), np.arange(21)) is None


@pytest.mark.parametrize(
    ("starts", "shares", "balance", "message"),
    [
        (21, [1.0], "none", "1 weights for 2 datasets"),
        (5, [1.0, 1.0], "none", "has a weight but nothing to train on"),
        (21, None, "outcomes", "critic.balance 'outcomes' is unknown"),
    ],
)
def test_mistakes(starts: int, shares: list[float] | None, balance: str, message: str) -> None:
    with pytest.raises(DeasError, match=message):
        row_weights(table(), np.arange(starts), shares, balance)
