from pathlib import Path

import numpy as np
import pytest
import torch

from deas_vla.data.dataset import Draw, TransitionDataset, bootstrap_episodes
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.tails import TailConfig
from deas_vla.data.transitions import chunk_transitions
from deas_vla.errors import DeasError
from deas_vla.training.loop import index_batches

HORIZON = 4


def make_table(lengths=(11, 6, 9), solved=(True, False, True)):
    """A table without a dataset behind it; a solved episode ends at its last frame."""
    generator = np.random.default_rng(0)
    end = np.cumsum(lengths)
    start = end - lengths
    success = np.zeros(end[-1], dtype=bool)
    success[end[list(solved)] - 1] = True
    frames = len(success)
    return EpisodeTable(
        repo_id="test/table",
        root=Path("unused"),
        fingerprint="0",
        state=generator.normal(size=(frames, 3)).astype(np.float32),
        action=generator.normal(size=(frames, 2)).astype(np.float32),
        dataset_reward=None,
        done=success,
        success=success,
        terminated=success,
        truncated=np.zeros(frames, dtype=bool),
        episode_index=np.repeat(np.arange(len(lengths)), lengths),
        episode_start=start,
        episode_end=end,
        episode_ids=np.arange(len(lengths)),
        episode_success=np.array(solved),
        task_index=np.zeros(frames, dtype=np.int64),
        tasks=("task",),
        image_keys=(),
        fps=20.0,
        state_names=("x", "y", "z"),
        action_names=("dx", "dy"),
    )


@pytest.fixture
def table():
    return make_table()


@pytest.fixture
def features(table, tmp_path):
    """Memory-mapped (T, 5) features."""
    values = np.random.default_rng(1).normal(size=(table.num_frames, 5)).astype(np.float16)
    np.save(tmp_path / "features.npy", values)
    return np.load(tmp_path / "features.npy", mmap_mode="r")


def draw(rows, seed: int = 0) -> Draw:
    """Transitions and seeded tails."""
    rows = torch.as_tensor(rows)
    return Draw(rows, torch.arange(len(rows)) + 1000 * seed)


@pytest.fixture
def transitions(table):
    return chunk_transitions(
        table.success - 1.0,
        table.terminated,
        table.episode_start,
        table.episode_end,
        horizon=HORIZON,
        g1=0.9,
        g2=0.99,
        tail="bootstrap",
    )


@pytest.mark.parametrize("resident", [True, False])
def test_batch_holds_the_transitions(table, features, transitions, resident):
    data = TransitionDataset(table, features, transitions, HORIZON, resident=resident)
    assert len(data) == len(transitions) and data.resident == resident
    rows = np.array([5, 0, len(transitions) - 1, 5])
    batch = data.batch(draw(rows))
    start, following = transitions.start[rows], transitions.next[rows]
    np.testing.assert_array_equal(batch.feature, features[start].astype(np.float32))
    np.testing.assert_array_equal(batch.next_feature, features[following].astype(np.float32))
    np.testing.assert_array_equal(batch.state, table.state[start])
    np.testing.assert_array_equal(batch.next_state, table.state[following])
    for chunk, at, valid in zip(batch.actions, start, transitions.valid_steps[rows], strict=True):
        np.testing.assert_array_equal(chunk[:valid], table.action[at : at + valid])
    np.testing.assert_array_equal(batch.reward, transitions.reward[rows])
    np.testing.assert_array_equal(batch.bootstrap, transitions.bootstrap[rows])
    np.testing.assert_array_equal(batch.terminated, transitions.terminated[rows])
    assert batch.feature.dtype == torch.float32 and batch.next_actions is None


def test_next_actions_stop_at_the_episode(table, features, transitions):
    hold = TailConfig(hold=1, steps=0, chunks=0, policy=0)
    data = TransitionDataset(table, features, transitions, HORIZON, next_actions=True, tails=hold)
    batch = data.batch(draw(np.arange(len(data))))
    for row in range(len(data)):
        following = int(transitions.next[row])
        end = int(table.episode_end[np.searchsorted(table.episode_end, following, side="right")])
        steps = min(HORIZON, end - following)
        executed = table.action[following : following + steps]
        expected = np.concatenate([executed, np.repeat(executed[-1:], HORIZON - steps, axis=0)])
        np.testing.assert_array_equal(batch.next_actions[row], expected)


@pytest.mark.parametrize("resident", [True, False])
def test_batches_follow_their_draws(table, features, transitions, resident):
    data = TransitionDataset(table, features, transitions, HORIZON, resident=resident)
    generator = torch.Generator().manual_seed(0)
    draws = [draw(torch.randint(len(data), (8,), generator=generator), k) for k in range(5)]
    got = list(data.batches(iter(draws)))
    assert len(got) == 5
    for each, batch in zip(draws, got, strict=True):
        torch.testing.assert_close(batch.feature, data.batch(each).feature, rtol=0, atol=0)
        torch.testing.assert_close(batch.actions, data.batch(each).actions, rtol=0, atol=0)


def test_split_over_processes_is_the_global_batch(table, features, transitions):
    data = TransitionDataset(table, features, transitions, HORIZON)
    whole = next(index_batches(len(data), 12, range(1), seed=3))
    parts = [
        data.batch(next(index_batches(len(data), 12, range(1), seed=3, rank=rank, world=3)))
        for rank in range(3)
    ]
    for name in ("reward", "actions"):
        split = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(split, getattr(data.batch(whole), name), rtol=0, atol=0)


def test_batches_do_not_share_memory_with_the_data(table, features, transitions):
    """Known mistake 1: what a loss changes in place must not reach the next batch."""
    data = TransitionDataset(table, features, transitions, HORIZON)
    rows = draw(np.arange(4))
    data.batch(rows).feature.zero_()
    data.batch(rows).actions.zero_()
    np.testing.assert_array_equal(data.batch(rows).feature, features[transitions.start[:4]])
    assert data.batch(rows).actions.any()


def test_other_features_and_no_transitions_are_refused(table, features, transitions):
    with pytest.raises(DeasError, match="features have 25 rows, dataset test/table has 26 frames"):
        TransitionDataset(table, features[1:], transitions, HORIZON)
    none = chunk_transitions(
        np.zeros(26), np.zeros(26, dtype=bool), [0], [2], horizon=8, g1=0.9, g2=0.9
    )
    with pytest.raises(DeasError, match="has no chunk of 8 steps"):
        TransitionDataset(table, features, none, 8)


def test_each_member_has_a_bootstrap_of_the_episodes_of_its_own(table, features, transitions):
    weights = bootstrap_episodes(3, np.array([0, 2]), 3, np.random.default_rng(0))
    assert weights.shape == (3, 3) and weights.sum(1).tolist() == [2, 2, 2]
    assert not weights[:, 1].any() and len({tuple(row) for row in weights}) > 1
    data = TransitionDataset(table, features, transitions, HORIZON, member_weights=weights)
    batch = data.batch(draw(np.arange(len(data))))
    episode = table.episode_index[transitions.start]
    np.testing.assert_array_equal(batch.member_weight, weights.T[episode])
