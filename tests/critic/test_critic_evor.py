"""EVOR: the flow learns the distribution of the reward-to-go; what is asked of it comes later."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from critic_cases import random_batch, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from semi_mdps import Discounts, bandit, to_batch

from deas_vla.critic import Critic, CriticConfig, InferenceConfig, make_critic
from deas_vla.critic.evor import Evor, flow_matching, mid_quantiles, velocity

Build = Callable[..., Critic]


class Straight(torch.nn.Module):
    """The exact velocity of a flow from noise to one point c: ``(c - z) / (1 - x)``."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        z, x = inputs[..., -2:-1], inputs[..., -1:]
        return (self.c - z) / (1 - x)


def test_euler_steps_of_an_exact_flow_end_at_its_point(build: Build) -> None:
    critic = build("evor")
    assert isinstance(critic, Evor)
    mid, half = (critic.support.v_min + critic.support.v_max) / 2, 5.5
    z = critic._sample(Straight(0.25), torch.zeros(4, 3), torch.randn(4, generator=seeded()), 5)
    torch.testing.assert_close(z, torch.full((4,), mid + 0.25 * half))
    outside = critic._sample(Straight(9.0), torch.zeros(4, 3), torch.zeros(4), 5)
    assert outside.eq(critic.support.v_max).all()  # clamped to the support


def test_the_target_bootstraps_from_a_sample_of_the_target_flow(build: Build) -> None:
    """``z* = R + bootstrap (1 - terminated) z'`` with a flow whose every sample is known."""
    critic, batch = build("evor"), random_batch()
    critic.target_flows = Straight(0.25)
    next_z = (-10.0 + 1.0) / 2 + 0.25 * 5.5
    z_star = batch.reward + batch.bootstrap * ~batch.terminated * next_z
    _, metrics = critic(batch, seeded())
    torch.testing.assert_close(metrics["target_mean"], z_star.mean())
    torch.testing.assert_close(metrics["target_min"], z_star.min())
    torch.testing.assert_close(metrics["target_max"], z_star.max())


def test_flow_matching_of_the_exact_flow_costs_nothing() -> None:
    z_star = torch.full((2, 8), 0.25, dtype=torch.float64)
    loss, points_at = flow_matching(Straight(0.25), torch.zeros(8, 3).double(), z_star, seeded())
    assert loss.max() < 1e-12
    torch.testing.assert_close(points_at, z_star)


def test_velocity_sees_state_point_and_time() -> None:
    z, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.1, 0.2]])
    condition = torch.tensor([[5.0], [6.0]])
    seen = velocity(torch.nn.Identity(), z, x, condition)
    torch.testing.assert_close(seen, torch.tensor([[[5.0, 1.0, 0.1], [6.0, 2.0, 0.2]]]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.floats(0.05, 20), st.floats(1.05, 10))
def test_the_value_falls_from_the_maximum_to_the_mean_as_eta_grows(
    seed: int, eta: float, factor: float
) -> None:
    critic = make_critic(
        CriticConfig("evor", state_dim=2, action_dim=1, horizon=2, hidden=[16],
                     value_width=8, value_depth=0, v_min=-10.0, v_max=1.0,
                     inference=InferenceConfig(samples=16, flow_steps=3)),
        generator=seeded(seed),
    )  # fmt: skip
    state = torch.randn(3, 2, generator=seeded(seed))

    def value(eta: float) -> torch.Tensor:
        critic.inference = dataclasses.replace(critic.inference, eta=eta)
        return critic.value(torch.zeros(3, 0), state)

    with torch.no_grad():
        assert (value(eta * factor) <= value(eta) + 1e-4).all()
        assert (value(1e4) <= value(eta) + 1e-2).all()
        assert (value(eta) <= value(1e-3) + 0.1).all()


def test_scores_repeat_and_a_generator_draws_them_anew(build: Build) -> None:
    critic, batch = build("evor"), random_batch()
    ask = (batch.feature, batch.state, batch.next_candidates)
    assert torch.equal(critic.score(*ask), critic.score(*ask))
    assert torch.equal(critic.score(*ask, seeded(1)), critic.score(*ask, seeded(1)))
    assert not torch.equal(critic.score(*ask, seeded(1)), critic.score(*ask, seeded(2)))


def test_mid_quantiles() -> None:
    q = mid_quantiles(1000, torch.zeros(0, dtype=torch.float64))
    assert q.mean().abs() < 1e-12 and q.var() == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_the_flow_learns_both_outcomes_and_eta_chooses_between_them() -> None:
    """A chunk that earns 0 twice in three times, else -3, and one that always earns -2.

    ``Q* = eta log(2/3 + 1/3 exp(-3/eta))``: the mean -1 for a large eta, the best outcome 0 for a
    small one, all from one training; V* is the same over the behaviour's mixture of the two.
    """
    rows = 8 * bandit(Discounts(1, 0.9, 0.9, 0.7))
    batch = to_batch(rows, 1, next_actions=torch.zeros(len(rows), 1, 1))
    config = CriticConfig(
        algorithm="evor", state_dim=1, action_dim=1, horizon=1, hidden=[64], value_width=64,
        value_depth=0, v_min=-4.0, v_max=1.0, lr=3e-3, target_flow_steps=1,
        inference=InferenceConfig(samples=128, flow_steps=20),
    )  # fmt: skip
    critic = make_critic(config, generator=seeded())
    optimizer, generator = critic.make_optimizer(), seeded(1)
    steps = 600
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    for _ in range(steps):
        loss, _ = critic(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    nothing, state = torch.zeros(1, 0), torch.ones(1, 1)
    chunks = torch.tensor([[[[-1.0]], [[1.0]]]])
    for eta in (0.5, 1.0, 4.0, 100.0):
        critic.inference = dataclasses.replace(critic.inference, eta=eta)
        with torch.no_grad():
            score = critic.score(nothing, state, chunks)[0].tolist()
            value = critic.value(nothing, state).item()
        risky = eta * math.log(2 / 3 + math.exp(-3 / eta) / 3)
        mixture = eta * math.log(2 / 8 + math.exp(-3 / eta) / 8 + 5 / 8 * math.exp(-2 / eta))
        print(f"eta {eta}: {score} for {-2.0, risky}, value {value} for {mixture}")
        assert score == pytest.approx([-2.0, risky], abs=0.2)
        assert value == pytest.approx(mixture, abs=0.2)
