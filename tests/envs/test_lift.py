"""Lift in the real simulator."""

from pathlib import Path

import numpy as np
import pytest

from deas_vla.data.layout import open_dataset
from deas_vla.envs.env import Observation
from deas_vla.envs.robosuite.lift import ROBOT_TYPE, LiftConfig, LiftEnv, lift_spec
from deas_vla.envs.robosuite.lift_expert import LiftExpert, LiftExpertConfig
from deas_vla.envs.rollout import rollout


@pytest.fixture(scope="module")
def env() -> LiftEnv:
    return LiftEnv(LiftConfig())


def expert(sloppiness: float) -> LiftExpert:
    return LiftExpert(LiftExpertConfig(sloppiness=sloppiness))


def test_careful_expert_succeeds_and_sloppy_one_fails(env: LiftEnv) -> None:
    careful = [rollout(env, expert(0.0), seed) for seed in range(10)]
    sloppy = [rollout(env, expert(1.0), seed) for seed in range(10)]
    assert sum(episode.success for episode in careful) >= 8
    assert sum(episode.success for episode in sloppy) <= 2


def test_an_episode_ends_with_success_or_at_the_horizon(env: LiftEnv) -> None:
    for sloppiness in (0.0, 1.0):
        episode = rollout(env, expert(sloppiness), 3)
        assert episode.terminated != episode.truncated
        assert episode.truncated == (episode.steps == env.spec.horizon and not episode.success)
        assert len(episode.actions) == episode.steps


def test_seed_alone_determines_an_episode(env: LiftEnv) -> None:
    first = rollout(env, expert(0.5), 11, record_images=lambda step: step == 0)
    rollout(env, expert(0.5), 12)  # whatever ran before leaves no trace
    again = rollout(env, expert(0.5), 11, record_images=lambda step: step == 0)
    assert np.array_equal(first.actions, again.actions)
    for a, b in zip(first.observations, again.observations, strict=True):
        assert np.array_equal(a.state, b.state)
    for key, image in first.observations[0].images.items():
        assert np.array_equal(image, again.observations[0].images[key])


def test_rendering_changes_nothing(env: LiftEnv) -> None:
    blind = rollout(env, expert(0.5), 21)
    filmed = rollout(env, expert(0.5), 21, record_images=lambda step: True)
    assert np.array_equal(blind.actions, filmed.actions) and blind.success == filmed.success


def test_observation_matches_the_spec(env: LiftEnv) -> None:
    env.reset(0)
    look: Observation = env.observe()
    assert tuple(look.images) == env.spec.image_keys
    for image in look.images.values():
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 5
    assert look.state.shape == (len(env.spec.state_names),) and look.state.dtype == np.float32
    assert env.observe(images=False).images == {}
    env.step(np.zeros(len(env.spec.action_names), dtype=np.float32))


def test_rollouts_can_join_the_demonstrations(repo_root: Path) -> None:
    """`data.merge` refuses datasets of different robots."""
    demos = open_dataset("deas_vla/lift_demos", repo_root / "deas_vla/assets/lift_demos")
    spec = lift_spec(LiftConfig())
    assert demos.info["robot_type"] == ROBOT_TYPE
    assert (demos.fps, demos.image_keys) == (spec.fps, spec.image_keys)
