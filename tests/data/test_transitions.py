"""Chunk transitions against a plain reference that is written straight from the table of cases."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deas_vla.data.rewards import RewardConfig, rewards_from_success
from deas_vla.data.transitions import (
    chunk_transitions,
    gather_chunks,
    monte_carlo_chunk_returns,
    steps_until_limit,
)
from deas_vla.errors import DeasError


@dataclass
class Reference:
    start: int
    next: int
    reward: float
    bootstrap: float
    terminated: bool
    valid_steps: int


def reference_transition(reward, terminated, first, end, t, horizon, g1, g2, tail):
    """One row of the table, or None where the table says drop. Frames are global."""
    if any(terminated[first:t]):
        return None
    total = 0.0
    for k in range(horizon):
        if t + k >= end:
            break
        total += g1**k * reward[t + k]
        if terminated[t + k]:
            return Reference(t, t, total, 0.0, True, k + 1)
    if t + horizon < end:
        return Reference(t, t + horizon, total, g2**horizon, False, horizon)
    steps = end - 1 - t
    if tail == "drop" or steps < 1:
        return None
    total = sum(g1**k * reward[t + k] for k in range(steps))
    return Reference(t, end - 1, total, g2**steps, False, steps)


def reference_transitions(reward, terminated, starts, ends, horizon, g1, g2, tail):
    rows = [
        reference_transition(reward, terminated, first, end, t, horizon, g1, g2, tail)
        for first, end in zip(starts, ends, strict=True)
        for t in range(first, end)
    ]
    return [row for row in rows if row is not None]


def reference_return(reward, terminated, first, end, t, horizon, g1, g2):
    """(value, remaining) by following the chunks, one after another."""
    value, weight = 0.0, 1.0
    while t < end - 1 or (t == end - 1 and terminated[t]):
        row = reference_transition(
            reward, terminated, first, end, t, horizon, g1, g2, tail="bootstrap"
        )
        value += weight * row.reward
        weight *= row.bootstrap
        if row.terminated:
            return value, 0.0
        t = row.next
    return value, weight


@st.composite
def episodes(draw):
    """A few episodes of 1..3H frames, each with a terminal at some position or a time limit."""
    horizon = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 3 * horizon), min_size=1, max_size=5))
    terminated = np.zeros(sum(lengths), dtype=bool)
    starts = np.cumsum([0, *lengths[:-1]])
    for first, length in zip(starts, lengths, strict=True):
        terminal = draw(st.none() | st.integers(0, length - 1))
        if terminal is not None:
            # After the first terminal anything may have been recorded.
            later = draw(st.lists(st.booleans(), min_size=length, max_size=length))
            terminated[first + terminal : first + length] = later[terminal:]
            terminated[first + terminal] = True
    config = draw(
        st.builds(
            RewardConfig,
            kind=st.sampled_from(["success_minus_one", "sparse", "dataset"]),
            success_bonus=st.sampled_from([0.0, 2.5]),
        )
    )
    size = len(terminated)
    column = np.array(draw(st.lists(st.floats(-3, 3, width=32), min_size=size, max_size=size)))
    reward = rewards_from_success(terminated, column, config)
    return reward, terminated, starts, starts + np.array(lengths), horizon


discounts = st.sampled_from([0.5, 0.9, 0.99, 1.0])


@settings(max_examples=300, deadline=None)
@given(episodes(), discounts, discounts, st.sampled_from(["drop", "bootstrap"]))
def test_transitions_equal_the_table(case, g1, g2, tail):
    reward, terminated, starts, ends, horizon = case
    got = chunk_transitions(
        reward, terminated, starts, ends, horizon=horizon, g1=g1, g2=g2, tail=tail
    )
    want = reference_transitions(
        reward.tolist(), terminated.tolist(), starts, ends, horizon, g1, g2, tail
    )
    assert len(got) == len(want)
    for name in ("start", "next", "terminated", "valid_steps"):
        np.testing.assert_array_equal(getattr(got, name), [getattr(row, name) for row in want])
    np.testing.assert_allclose(got.reward, [row.reward for row in want], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.bootstrap, [row.bootstrap for row in want], rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(episodes(), discounts, discounts)
def test_returns_follow_the_chunks(case, g1, g2):
    reward, terminated, starts, ends, horizon = case
    got = monte_carlo_chunk_returns(reward, terminated, starts, ends, horizon=horizon, g1=g1, g2=g2)
    for i, t in enumerate(got.start):
        row = int(np.searchsorted(ends, t, side="right"))
        value, remaining = reference_return(
            reward.tolist(), terminated.tolist(), starts[row], ends[row], int(t), horizon, g1, g2
        )
        assert got.value[i] == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert got.remaining[i] == pytest.approx(remaining, rel=1e-5)
        assert got.last[i] == ends[row] - 1


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("tail", ["drop", "bootstrap"])
def test_every_length_and_every_terminal_position(horizon, tail):
    for length in range(1, 3 * horizon + 1):
        for terminal in [None, *range(length)]:
            terminated = np.zeros(length + 2, dtype=bool)  # two frames of a neighbouring episode
            if terminal is not None:
                terminated[1 + terminal] = True
            reward = np.linspace(-1, 1, length + 2)
            got = chunk_transitions(
                reward, terminated, [1], [1 + length], horizon=horizon, g1=0.9, g2=0.99, tail=tail
            )
            want = reference_transitions(
                reward, terminated, [1], [1 + length], horizon, 0.9, 0.99, tail
            )
            np.testing.assert_array_equal(got.start, [row.start for row in want])
            np.testing.assert_array_equal(got.next, [row.next for row in want])
            np.testing.assert_array_equal(got.terminated, [row.terminated for row in want])
            np.testing.assert_array_equal(got.valid_steps, [row.valid_steps for row in want])
            np.testing.assert_allclose(got.reward, [row.reward for row in want], rtol=1e-5)


def test_success_inside_the_chunk_cuts_bootstrap_and_padding():
    """Known mistake 2: a terminal inside the chunk must cut the bootstrap, and padding earns 0."""
    success = np.array([False, False, True, False, False])
    reward = rewards_from_success(success, None, RewardConfig())
    got = chunk_transitions(reward, success, [0], [5], horizon=4, g1=0.5, g2=0.9)
    np.testing.assert_array_equal(got.start, [0, 1, 2])  # none after the terminal
    np.testing.assert_array_equal(got.terminated, [True] * 3)
    np.testing.assert_array_equal(got.bootstrap, [0.0] * 3)
    np.testing.assert_array_equal(got.valid_steps, [3, 2, 1])
    np.testing.assert_allclose(got.reward, [-1.5, -1.0, 0.0])


def test_truncation_is_not_termination():
    reward = np.full(6, -1.0)
    nothing = np.zeros(6, dtype=bool)
    dropped = chunk_transitions(reward, nothing, [0], [6], horizon=4, g1=1.0, g2=0.5)
    np.testing.assert_array_equal(dropped.start, [0, 1])
    np.testing.assert_array_equal(dropped.next, [4, 5])
    kept = chunk_transitions(reward, nothing, [0], [6], horizon=4, g1=1.0, g2=0.5, tail="bootstrap")
    np.testing.assert_array_equal(kept.next, [4, 5, 5, 5, 5])
    np.testing.assert_allclose(kept.bootstrap, [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2])
    np.testing.assert_allclose(kept.reward, [-4, -4, -3, -2, -1])
    assert not kept.terminated.any()


def test_gather_chunks_reads_on_and_stops_at_the_last_frame():
    actions = torch.arange(10, dtype=torch.float32).reshape(5, 2)
    chunks = gather_chunks(actions, torch.tensor([0, 4]), horizon=3)
    assert chunks.tolist() == [[[0, 1], [2, 3], [4, 5]], [[8, 9]] * 3]


def test_steps_until_limit_counts_recorded_actions():
    terminated = np.array([False, True, False, False, False])
    np.testing.assert_array_equal(steps_until_limit(terminated, [0, 3], [3, 5]), [2, 1, 0, 2, 1])


def test_subset_of_episodes_keeps_global_frames():
    reward, terminated = np.zeros(30), np.zeros(30, dtype=bool)
    got = chunk_transitions(reward, terminated, [20], [30], horizon=8, g1=1.0, g2=1.0)
    np.testing.assert_array_equal(got.start, [20, 21])


def test_million_steps_in_under_a_second():
    reward = np.full(1_000_000, -1.0, dtype=np.float32)
    terminated = np.zeros(1_000_000, dtype=bool)
    terminated[-1] = True
    begin = time.process_time()
    got = chunk_transitions(reward, terminated, [0], [1_000_000], horizon=16, g1=0.9, g2=0.99)
    assert time.process_time() - begin < 1.0
    assert len(got) == 1_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "critic chunk length is 0"),
        ({"g1": 0.0}, "discount g1 is 0.0"),
        ({"g2": 1.5}, "discount g2 is 1.5"),
        ({"tail": "keep"}, "tail is 'keep'"),
    ],
)
def test_bad_settings_are_named(change, message):
    arguments = {"horizon": 2, "g1": 0.9, "g2": 0.9, "tail": "drop"} | change
    with pytest.raises(DeasError, match=message):
        chunk_transitions(np.zeros(3), np.zeros(3, dtype=bool), [0], [3], **arguments)


def test_bad_bounds_are_named():
    with pytest.raises(DeasError, match=r"episode 1 spans frames 3\.\.3 of 4"):
        chunk_transitions(
            np.zeros(4), np.zeros(4, dtype=bool), [0, 3], [3, 3], horizon=1, g1=1.0, g2=1.0
        )
