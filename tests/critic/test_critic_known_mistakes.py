"""Mistakes of existing implementations (algorithms.md, section 7), put back to see the tests fail.

Each check is a function of a critic class: it passes on ours, and a subclass with the mistake in it
must not pass. The mistakes that live outside the critic are tested where they live.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from critic_cases import A, B, F, S, random_batch, random_statistics, seeded, small_config
from torch import Tensor

from deas_vla.critic import ChunkBatch, Critic, Statistics, make_critic
from deas_vla.critic.base import Metrics
from deas_vla.critic.deas import Deas
from deas_vla.critic.networks import initialize


def make(cls: type[Deas], statistics: Statistics | None = None) -> Deas:
    critic = cls(small_config(), statistics or random_statistics())
    initialize(critic, seeded())
    critic.update_target(rate=1.0)
    return critic


def fails(check: Callable[[type[Deas]], None], mistaken: type[Deas]) -> None:
    check(Deas)
    with pytest.raises(AssertionError):
        check(mistaken)


# 1. The feature transform applied twice to the online Q's input and once to the target's.


def check_one_input_for_both_critics(cls: type[Deas]) -> None:
    critic, batch = make(cls), random_batch()
    given = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    before = {name: value.clone() for name, value in given.items() if value is not None}
    seen: dict[str, Tensor] = {}
    for name in ("critics", "target_critics"):
        critic.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach())
        )
    critic(batch)
    assert torch.equal(seen["critics"], seen["target_critics"])
    for name, value in before.items():
        assert torch.equal(getattr(batch, name), value), f"{name} was changed in place"


class TransformsInPlace(Deas):
    """Normalises the batch's own state in place, as the dict of other implementations was."""

    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        batch.state.copy_(self.normalizer.state(batch.state))
        return super().loss(batch, generator)


class TransformsTwice(Deas):
    """Encodes for the target once, and again on top for the online critics."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        state = slice(self.observation_dim - S, self.observation_dim)

        def again(_: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
            x = inputs[0].clone()
            x[..., state] = self.normalizer.state(x[..., state])
            return x

        self.critics.register_forward_pre_hook(again)


@pytest.mark.parametrize("mistaken", [TransformsInPlace, TransformsTwice])
def test_feature_transform_applied_twice(mistaken: type[Deas]) -> None:
    fails(check_one_input_for_both_critics, mistaken)


def test_a_batch_cannot_be_reassigned() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_batch().feature = torch.zeros(B, F)


# 2. A terminal that doesn't cut the bootstrap (the critic's half; the chunk's half is in data).


def check_terminal_cuts_the_bootstrap(cls: type[Deas]) -> None:
    critic, batch = make(cls), random_batch()
    _, metrics = critic(dataclasses.replace(batch, terminated=torch.ones(B, dtype=torch.bool)))
    torch.testing.assert_close(metrics["target_mean"], batch.reward.mean())
    torch.testing.assert_close(metrics["target_min"], batch.reward.min())


class BootstrapsThroughTheEnd(Deas):
    def td_target(self, batch: ChunkBatch, next_value: Tensor) -> Tensor:
        return batch.reward + batch.bootstrap * next_value


def test_terminal_that_does_not_cut_the_bootstrap() -> None:
    fails(check_terminal_cuts_the_bootstrap, BootstrapsThroughTheEnd)


# 3. A critic learning rate that the config records and the optimizer never receives.


def check_first_step_is_the_recorded_rate(cls: type[Deas]) -> None:
    """Adam's first step is the learning rate wherever the gradient isn't tiny."""
    critic = make(cls)
    critic.config.lr = 7e-4
    optimizer = critic.make_optimizer()
    before = [p.detach().clone() for p in critic.trainable_parameters()]
    critic(random_batch())[0].backward()
    optimizer.step()
    steps = torch.cat(
        [
            (p.detach() - old).abs()[p.grad.abs() > 1e-4]
            for p, old in zip(critic.trainable_parameters(), before, strict=True)
            if p.grad is not None
        ]
    )
    assert len(steps) > 500
    torch.testing.assert_close(steps, torch.full_like(steps, 7e-4), rtol=1e-2, atol=1e-6)


class IgnoresItsRate(Deas):
    def make_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.trainable_parameters())


def test_learning_rate_that_never_arrives() -> None:
    fails(check_first_step_is_the_recorded_rate, IgnoresItsRate)


# 6. Candidates scored in the actor's normalisation by a critic trained in another.


def check_score_is_the_q_of_training(cls: type[Deas]) -> None:
    """The same environment-unit chunk has one value: as a candidate and in the loss."""
    critic, batch = make(cls), random_batch()
    seen: list[Tensor] = []
    critic.critics.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    critic(batch)
    in_training = critic.expect(seen[0]).amin(0)
    score = critic.score(batch.feature, batch.state, batch.actions.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(score, in_training)


class ScoresNormalisedActions(Deas):
    """Takes candidates as a policy's head emits them, in [-1, 1] of another set of statistics."""

    def member_scores(
        self,
        feature: Tensor,
        state: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return super().member_scores(feature, state, (actions - 0.3) / 2.0, generator)


def test_candidates_in_another_normalisation() -> None:
    fails(check_score_is_the_q_of_training, ScoresNormalisedActions)


@pytest.mark.parametrize("algorithm", ["deas", "iql", "evor"])
def test_the_units_of_state_and_action_do_not_matter(algorithm: str) -> None:
    """Metres or millimetres, joints offset or not: the statistics take it up, the values stay."""
    generator = seeded(3)
    scale_s, shift_s, scale_a, shift_a = (
        torch.rand(dim, generator=generator, dtype=torch.float64) * 3 + 0.5 for dim in (S, S, A, A)
    )
    ours = random_statistics()
    theirs = dataclasses.replace(
        ours,
        state_mean=ours.state_mean * scale_s + shift_s, state_std=ours.state_std * scale_s,
        action_mean=ours.action_mean * scale_a + shift_a, action_std=ours.action_std * scale_a,
    )  # fmt: skip
    batch = random_batch(dtype=torch.float64)
    candidates = batch.next_candidates
    assert candidates is not None

    def critic(statistics: Statistics) -> Critic:
        return make_critic(small_config(algorithm), statistics, seeded()).double()

    torch.testing.assert_close(
        critic(theirs).score(
            batch.feature, batch.state * scale_s + shift_s, candidates * scale_a + shift_a
        ),
        critic(ours).score(batch.feature, batch.state, candidates),
        rtol=0,
        atol=1e-5,
    )
