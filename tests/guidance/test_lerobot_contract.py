"""What LeRobot's loops ask of a policy: resets, batches of robots, a queue of actions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deas_vla.bundle import open_bundle
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy


@pytest.fixture(scope="module")
def policy(bundle: Path) -> ValueGuidedPolicy:
    policy = open_bundle(bundle)
    policy.config.candidates = 3
    return policy


def observation(policy: ValueGuidedPolicy, robots: int) -> dict[str, Any]:
    """The same look for every robot."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    batch: dict[str, Any] = dict.fromkeys(
        policy.vla.spec.image_keys, pictures.expand(robots, -1, -1, -1)
    )
    batch["observation.state"] = torch.zeros(robots, policy.vla.spec.state_dim)
    batch["task"] = ["lift the red cube"] * robots
    return batch


def test_a_batch_of_robots_after_a_bare_reset(policy: ValueGuidedPolicy) -> None:
    """Four robots that see the same have noise of their own, and a queue of one chunk."""
    policy.reset()
    batch = observation(policy, 4)
    actions = [policy.select_action(batch) for _ in range(policy.config.n_action_steps)]
    assert all(action.shape == (4, policy.vla.spec.action_dim) for action in actions)
    assert len({tuple(row.tolist()) for row in actions[0]}) == 4
    assert policy.last_decision is not None
    chunk = policy.last_decision.chunk
    torch.testing.assert_close(torch.stack(actions, 1), chunk[:, : len(actions)])


def test_every_reset_has_noise_of_its_own(policy: ValueGuidedPolicy) -> None:
    batch = observation(policy, 1)
    chunks = []
    for _ in range(3):
        policy.reset()
        chunks.append(policy.predict_action_chunk(batch))
    assert not torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[1], chunks[2])


def test_given_seeds_begin_the_same_episodes_again(policy: ValueGuidedPolicy) -> None:
    batch = observation(policy, 2)
    policy.reset([3, 4])
    first = policy.predict_action_chunk(batch)
    policy.reset([3, 4])
    assert torch.equal(policy.predict_action_chunk(batch), first)


def test_a_fresh_policy_begins_with_its_configured_seed(
    bundle: Path, policy: ValueGuidedPolicy
) -> None:
    fresh = open_bundle(bundle)
    fresh.config.candidates = 3
    policy.reset([fresh.config.seed])
    batch = observation(policy, 1)
    assert torch.equal(fresh.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def test_another_number_of_robots_without_a_reset_is_refused(policy: ValueGuidedPolicy) -> None:
    policy.reset()
    policy.predict_action_chunk(observation(policy, 2))
    with pytest.raises(DeasError, match=r"batch of 3 episodes, the policy runs 2: call reset\(\)"):
        policy.predict_action_chunk(observation(policy, 3))
