"""What a critic's ranking of chunks is measured against, and how often it is right."""

from dataclasses import replace

import numpy as np
import pytest
from offline_cases import EVERY, H, frame_critic
from table_cases import make_table

from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import mean_over
from deas_vla.evaluation.offline.ranking import (
    Rivals,
    chunks_of_other_episodes,
    groups_of,
    noised_chunks,
    time_shifted_chunks,
    win_rate,
)
from deas_vla.evaluation.offline.scoring import score_dataset_chunks


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_rivals_are_what_they_say() -> None:
    table = make_table()
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())

    others = chunks_of_other_episodes(chunks, rng(), count=50)
    own = {
        chunk.tobytes(): episode
        for chunk, episode in zip(chunks.chunk, chunks.episode, strict=True)
    }
    donors = np.array([own[chunk.tobytes()] for chunk in others.chunk])
    assert (donors != chunks.episode[others.row]).all()
    assert set(zip(chunks.episode[others.row].tolist(), donors.tolist(), strict=True)) == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }

    shifted = time_shifted_chunks(chunks)
    frame = {
        chunk.tobytes(): frame for chunk, frame in zip(chunks.chunk, chunks.frame, strict=True)
    }
    moved = (
        np.array([frame[chunk.tobytes()] for chunk in shifted.chunk]) - chunks.frame[shifted.row]
    )
    # Of 6, 9, 4 and 7 chunks in a row: 2, 5, 0 and 3 have a later one H steps away.
    assert sorted(moved.tolist()) == [-H] * 10 + [H] * 10
    for times, steps in (((-1,), -H), ((1,), H)):
        one = time_shifted_chunks(chunks, times)
        donors = np.array([frame[chunk.tobytes()] for chunk in one.chunk])
        assert (donors - chunks.frame[one.row]).tolist() == [steps] * 10

    noised = noised_chunks(chunks, 0.5, np.ones(2, np.float32), rng(), count=3)
    assert noised.row.tolist() == sorted(list(range(len(chunks))) * 3)
    difference = noised.chunk - chunks.chunk[noised.row]
    assert 0.3 < difference.std() < 0.55
    for dimension in range(2):
        assert noised.chunk[..., dimension].max() <= chunks.chunk[..., dimension].max()


def test_successes_are_looked_at_by_instruction_where_there_are_several() -> None:
    table = make_table()
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    assert list(groups_of(chunks, table)) == ["all", "successes", "failures"]
    told = replace(
        table,
        tasks=["Open it.", "Close it."],
        task_index=np.repeat([0, 1, 0, 1], table.episode_lengths),
    )
    groups = groups_of(chunks, told)
    solved = np.flatnonzero(groups["successes"])
    parts = [groups[f"successes: {task}"] for task in told.tasks]
    assert sorted(np.concatenate([np.flatnonzero(part) for part in parts])) == solved.tolist()
    assert all({*chunks.episode[part]} <= {k, k + 2} for k, part in enumerate(parts))


def test_ranking_needs_two_episodes() -> None:
    table = make_table()
    critic = frame_critic(table)
    alone = score_dataset_chunks(critic, table, EVERY[:1], RewardConfig())
    with pytest.raises(DeasError, match="needs two episodes"):
        chunks_of_other_episodes(alone, rng())


def test_win_rate_counts_rivals_and_halves_ties() -> None:
    table = make_table()
    critic = frame_critic(table)
    chunks = score_dataset_chunks(critic, table, EVERY, RewardConfig())
    own = chunks.chunk[[0, 0, 0, 2]]
    rivals = Rivals(np.array([0, 0, 0, 2]), own + np.float32([-1, 1, 0, -1])[:, None, None])
    won = win_rate(critic, chunks, rivals)
    assert won[0] == 0.5 and won[2] == 1.0 and np.isnan(won[1])
    mean = mean_over(won, chunks.episode, rng(), 10)
    assert mean.value == 0.75
    assert np.isnan(mean_over(won[3:], chunks.episode[3:], rng(), 10).value)
