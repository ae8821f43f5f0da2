"""The measure that picks a checkpoint: within a state, and on held-out successes."""

import numpy as np
import pytest
import torch

from deas_vla.critic import Critic
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.critic import offline_metric
from deas_vla.training.critic_data import new_critic

CONFIG = CriticTrainingConfig(horizon=4, hidden=[16], value_width=16, value_depth=1)


@pytest.fixture
def table(tiny_dataset) -> EpisodeTable:
    return load_episodes("test/tiny", tiny_dataset)


def measure(critic: Critic, table: EpisodeTable) -> float:
    features = np.zeros((table.num_frames, 2), dtype=np.float16)
    return offline_metric(critic, table, features, np.arange(table.num_episodes), CONFIG)


def fresh(table: EpisodeTable) -> Critic:
    features = np.zeros((table.num_frames, 2), dtype=np.float16)
    return new_critic(table, features, np.arange(table.num_episodes), CONFIG, seed=0)


class Opinion(torch.nn.Module):
    """A critic's scores from a function of states and chunks."""

    def __init__(self, critic: Critic, score) -> None:
        super().__init__()
        self.config, self.normalizer, self.value = critic.config, critic.normalizer, critic.value
        self.member_scores = lambda *seen: score(*seen).unsqueeze(0)  # an ensemble of one


def test_a_critic_that_is_blind_to_actions_is_at_chance(table: EpisodeTable) -> None:
    """Its Q may know everything about the state: ties are halves."""
    blind = Opinion(fresh(table), lambda f, s, actions: s.sum(1, keepdim=True).expand(
        -1, actions.shape[1]
    ))  # fmt: skip
    assert measure(blind, table) == 0.5


def test_one_that_knows_the_executed_chunks_is_always_right(table: EpisodeTable) -> None:
    executed = torch.from_numpy(table.action).unfold(0, 4, 1).transpose(1, 2)  # (T - 3, H, A)

    def distance(feature, state, actions):
        flat = actions.flatten(0, 1).flatten(1)
        row = (
            (torch.from_numpy(table.state).unsqueeze(0) == state.unsqueeze(1))
            .all(2)
            .int()
            .argmax(1)
        )
        own = executed[row].flatten(1).repeat_interleave(actions.shape[1], 0)
        return -(flat - own).square().sum(1).view(actions.shape[:2])

    assert measure(Opinion(fresh(table), distance), table) == 1.0


def test_its_cost_does_not_grow_with_the_dataset(
    table: EpisodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of `evor` is 320 passes through its network: at 5,000 chunks, minutes."""
    scored = 0

    def count(feature, state, actions):
        nonlocal scored
        scored += actions.shape[:2].numel()
        return actions.flatten(2).sum(2)

    measure(Opinion(fresh(table), count), table)
    chunks, rivals = 5, 4
    assert scored > chunks * (1 + rivals)

    monkeypatch.setattr("deas_vla.training.critic._METRIC_CHUNKS", chunks)
    scored = 0
    assert 0 <= measure(Opinion(fresh(table), count), table) <= 1
    assert chunks < scored <= chunks * (1 + rivals)


def test_it_needs_a_success_and_another_episode(table: EpisodeTable) -> None:
    critic = fresh(table)
    features = np.zeros((table.num_frames, 2), dtype=np.float16)
    failures = np.flatnonzero(~table.episode_success)
    for held_out in (failures, np.array([], dtype=np.int64)):
        assert np.isnan(offline_metric(critic, table, features, held_out, CONFIG))
