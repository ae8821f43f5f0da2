"""Q where the task is being solved, by what stands behind the terminal step."""

import numpy as np
import pytest
import torch
from offline_cases import EVERY, G1, H, frame_critic
from table_cases import make_table

from deas_vla.data.rewards import RewardConfig
from deas_vla.evaluation.offline.tails import solving_chunks, tail_errors


def test_solving_chunks_are_those_with_success_inside() -> None:
    table = make_table()
    config = frame_critic(table).critic.config
    found = solving_chunks(table, EVERY, RewardConfig(), config)
    # Episodes 0 (9 frames) and 2 (7 frames) are solved at their last step.
    assert found.frame.tolist() == [5, 6, 7, 8, 24, 25, 26, 27]
    assert found.episode.tolist() == [0] * 4 + [2] * 4
    assert found.valid_steps.tolist() == [4, 3, 2, 1] * 2
    paid = [-(1 + G1 + G1**2), -(1 + G1), -1.0, 0.0]
    np.testing.assert_allclose(found.returns, paid * 2, rtol=1e-6)


def test_some_of_them_are_the_same_chunks() -> None:
    table = make_table()
    critic = frame_critic(table)
    every = solving_chunks(table, EVERY, RewardConfig(), critic.critic.config)
    some = every.some(np.array([1, 6]))
    assert (some.frame.tolist(), some.episode.tolist()) == ([6, 26], [0, 2])
    assert some.valid_steps.tolist() == [3, 2] and torch.equal(some.chunk[1], every.chunk[6])
    np.testing.assert_array_equal(some.returns, every.returns[[1, 6]])


def test_errors_by_hand_for_a_critic_that_reads_the_tail() -> None:
    """Q is the chunk's mean action: zeros, or the last action held, are worked out here."""
    table = make_table()
    critic = frame_critic(table)  # support of length 100
    chunks = solving_chunks(table, EVERY, RewardConfig(), critic.critic.config)
    proposed = np.full((len(chunks.frame), 3, H, 2), 7.0, dtype=np.float32)
    rng = np.random.default_rng(0)
    found = tail_errors(critic, table, chunks, proposed, rng, resamples=20)
    assert set(found) == {"hold", "steps", "chunks", "policy", "zero"}
    expected = dict.fromkeys(("zero", "hold", "policy"), 0.0)
    for frame, valid, paid in zip(chunks.frame, chunks.valid_steps, chunks.returns, strict=True):
        executed = table.action[frame : frame + valid]
        for kind, tail in (("zero", 0.0), ("hold", executed[-1].mean()), ("policy", 7.0)):
            q = (executed.mean(1).sum() + (H - valid) * tail) / H
            expected[kind] += abs(q - paid) / 100 / len(chunks.frame)
    for kind, value in expected.items():
        assert found[kind].value == pytest.approx(value, rel=1e-4)


def test_a_critic_that_is_right_whatever_the_tail_has_no_error() -> None:
    table = make_table()
    critic = frame_critic(table)
    chunks = solving_chunks(table, EVERY, RewardConfig(), critic.critic.config)
    returns = dict(zip(chunks.frame.tolist(), chunks.returns.tolist(), strict=True))
    critic.scores = lambda frames, filled: np.repeat(  # type: ignore[method-assign]
        [[returns[int(f)]] for f in frames], filled.shape[1], axis=1
    )
    found = tail_errors(critic, table, chunks, None, np.random.default_rng(0), resamples=20)
    assert "policy" not in found
    assert all(each.value == 0 for each in found.values())
