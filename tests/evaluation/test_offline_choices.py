"""How far a choice is from what succeeded: by hand, for a critic whose Q is the mean action."""

import numpy as np
import pytest
from offline_cases import EVERY, frame_critic
from table_cases import make_table

from deas_vla.data.rewards import RewardConfig
from deas_vla.evaluation.offline.choices import candidate_counts, choice_distances
from deas_vla.evaluation.offline.report import choice_rows
from deas_vla.evaluation.offline.scoring import score_dataset_chunks
from deas_vla.guidance.config import SelectionConfig


def test_a_critic_that_wants_more_of_everything_is_led_away_by_more_candidates() -> None:
    table = make_table()
    critic = frame_critic(table)
    chunks = score_dataset_chunks(critic, table, EVERY, RewardConfig())
    asked = np.arange(len(chunks))
    offset = np.float32([0.5, -1.0, 2.0, -3.0, 4.0])  # of five samples, in every step
    sampled = chunks.chunk[:, None] + offset[:, None, None]
    half = np.zeros(len(chunks), dtype=bool)
    half[np.flatnonzero(chunks.terminated)[:3]] = True
    groups = {"successes": chunks.terminated, "successes: Open it.": half}
    found = choice_distances(
        critic, chunks, groups, asked, sampled, np.float32([1.0, 1.0]), SelectionConfig(),
        np.random.default_rng(0), 20,
    )  # fmt: skip
    any_sample = np.abs(offset).mean()
    for of in found.values():  # the largest offset among the first N is taken
        values = {n: each.value for n, each in of.items()}
        assert values == pytest.approx(
            {n: max(offset[:n]) - any_sample for n in (2, 4, 5)}, abs=1e-5
        )
    scaled = choice_distances(
        critic, chunks, groups, asked[:9], sampled[:9], np.float32([2.0, 2.0]), SelectionConfig(),
        np.random.default_rng(0), 20,
    )  # fmt: skip
    assert scaled["successes"][5].value == pytest.approx((4.0 - any_sample) / 2, abs=1e-5)
    names = [row["metric"] for row in choice_rows(found)]
    assert names == [
        "choice.distance_of_2", "choice.distance_of_4", "choice.distance",
        "choice.distance.Open it.",
    ]  # fmt: skip


def test_a_rule_that_draws_is_measured_by_its_chances() -> None:
    table = make_table()
    critic = frame_critic(table)
    chunks = score_dataset_chunks(critic, table, EVERY, RewardConfig())
    offset = np.float32([0.5, -1.0, 2.0, -3.0, 4.0])
    sampled = chunks.chunk[:, None] + offset[:, None, None]
    found = choice_distances(
        critic, chunks, {"successes": chunks.terminated}, np.arange(len(chunks)), sampled,
        np.float32([1.0, 1.0]), SelectionConfig(rule="softmax", temperature=2.0),
        np.random.default_rng(0), 20,
    )["successes"]  # fmt: skip
    for n in (2, 4, 5):
        chance = np.exp(offset[:n] / 2)
        expected = (chance / chance.sum() * np.abs(offset[:n])).sum() - np.abs(offset).mean()
        assert found[n].value == pytest.approx(expected, abs=1e-4)
    control = choice_distances(
        critic, chunks, {"successes": chunks.terminated}, np.arange(len(chunks)), sampled,
        np.float32([1.0, 1.0]), SelectionConfig(rule="medoid"), np.random.default_rng(0), 20,
    )  # fmt: skip
    assert control == {} and choice_rows(control) == []


def test_the_members_are_made_one_as_the_policy_does_it() -> None:
    """The smallest member turns over at 0 and takes the lower chunk, the mean goes on upwards."""
    table = make_table()
    critic = frame_critic(table)
    chunks = score_dataset_chunks(critic, table, EVERY, RewardConfig())
    critic.critic.turn = 0.0
    zero = np.zeros((1, 2, *chunks.chunk.shape[1:]), dtype=np.float32)
    sampled = zero + np.float32([1.0, -1.0])[:, None, None]  # members 1, -2 and -1, -1
    of_min = critic.scores(chunks.frame[:1], sampled)
    of_mean = critic.scores(chunks.frame[:1], sampled, SelectionConfig(ensemble="mean"))
    assert of_min.tolist() == [[-2.0, -1.0]] and of_mean.tolist() == [[-0.5, -1.0]]


def test_counts_are_powers_of_two_and_all() -> None:
    assert [candidate_counts(n) for n in (1, 2, 3, 8, 12)] == [
        [],
        [2],
        [2, 3],
        [2, 4, 8],
        [2, 4, 8, 12],
    ]
