"""The guided policy under a latency budget, little memory and a chunk to go on from."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from groot_cases import config as vla_config
from groot_cases import observation

from deas_vla.critic import CriticConfig, make_critic
from deas_vla.data.pooling import PoolingConfig, feature_dim
from deas_vla.envs.env import Observation
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.agents import PolicyPlanner
from deas_vla.evaluation.engine.planning import Look
from deas_vla.guidance import startup
from deas_vla.guidance.configuration_guided import ValueGuidedConfig
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.speed import SpeedConfig
from deas_vla.policies import compiling
from deas_vla.policies.config import load_vla
from deas_vla.policies.vla import VLA, Tail


@pytest.fixture(scope="module")
def vla() -> VLA:
    return load_vla(vla_config())


@pytest.fixture()
def make(vla: VLA) -> Callable[..., ValueGuidedPolicy]:
    def make(candidates: int = 4, action_dim: int = 7, **speed: Any) -> ValueGuidedPolicy:
        width = feature_dim(PoolingConfig(), 2, vla.spec.token_dim)
        critic = make_critic(
            CriticConfig(feature_dim=width, state_dim=9, action_dim=action_dim, hidden=[32],
                         value_depth=1, v_min=0.0, v_max=1.0),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        settings = ValueGuidedConfig(
            vla=vla_config(), candidates=candidates, speed=SpeedConfig(**speed), adapter=False
        )
        return ValueGuidedPolicy(settings, vla, critic.eval())

    return make


@pytest.fixture()
def tails(vla: VLA, monkeypatch: pytest.MonkeyPatch) -> list[Tail | None]:
    """What every decision goes on from."""
    seen: list[Tail | None] = []
    sample = type(vla).sample

    def watched(self: Any, encoding: Any, noise: Any, tail: Tail | None = None) -> Any:
        seen.append(tail)
        return sample(self, encoding, noise, tail)

    monkeypatch.setattr(type(vla), "sample", watched)
    return seen


def test_what_cannot_be_chosen_among_is_refused(make: Callable[..., ValueGuidedPolicy]) -> None:
    with pytest.raises(DeasError, match="candidates 0: use 1"):
        make(candidates=0)
    with pytest.raises(DeasError, match="critic scores 6 action dimensions, the policy has 7"):
        make(action_dim=6)
    with pytest.raises(DeasError, match=r"guidance\.warm_every 1"):
        make(warm_every=1)


def test_a_compiled_decision_is_the_same_and_one_graph_a_part(
    make: Callable[..., ValueGuidedPolicy], vla: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole (no break in a graph), without waiting for a compiler of machine code."""
    batch, noise = observation(2), torch.randn(2, 4, *vla.spec.noise_shape)
    plain = make()
    expected = plain.predict_action_chunk(batch, noise=noise)
    frames: list[str] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        frames.append(str(graph.graph))
        return graph.forward

    whole = partial(torch.compile, backend=traced, fullgraph=True)
    monkeypatch.setattr(compiling.torch, "compile", lambda f, dynamic, mode: whole(f))
    monkeypatch.setattr(vla, "flow", vla.flow)  # put back after the test
    policy = make(compile=True)
    policy.start(batch, 4)
    chosen = policy.predict_action_chunk(batch, noise=noise)
    torch._dynamo.reset()
    assert sorted("scaled_dot_product" in graph for graph in frames) == [False, True]  # Q, head
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=0)
    assert policy.last_decision is not None and plain.last_decision is not None
    assert torch.equal(policy.last_decision.chosen, plain.last_decision.chosen)


def test_too_many_candidates_are_told_before_the_first_step(
    make: Callable[..., ValueGuidedPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make(candidates=100_000)
    monkeypatch.setattr(startup, "free_bytes", lambda device: 40_000_000)
    with pytest.raises(
        DeasError, match=r"candidates 100000 need .* GB are free: use at most (\d+)"
    ):
        policy.select_action(observation(1))
    assert policy.last_decision is None
    policy.config.candidates = 4
    assert policy.select_action(observation(1)).shape == (1, 7)


def test_a_budget_sets_the_number_of_candidates(
    make: Callable[..., ValueGuidedPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "decision_ms", lambda decide, n: 20.0 + n)
    policy = make(candidates=64, budget_ms=23.5)
    policy.predict_action_chunk(observation(1))
    assert policy.last_decision is not None
    assert policy.last_decision.candidates.shape[1] == 3
    unlimited = make(candidates=3)
    unlimited.predict_action_chunk(observation(1))
    assert unlimited.last_decision is not None
    assert torch.equal(unlimited.last_decision.candidates, policy.last_decision.candidates)


def test_the_next_decision_goes_on_from_what_was_not_executed(
    make: Callable[..., ValueGuidedPolicy], tails: list[Tail | None]
) -> None:
    policy = make(warm_every=2)
    policy.predict_action_chunk(observation(1))
    first = policy.last_decision
    tails.clear()
    policy.predict_action_chunk(observation(1, seed=1))
    (tail,) = tails
    assert first is not None and tail is not None
    assert torch.equal(tail.actions, first.chunk[:, 8:])
    assert tail.warm.tolist() == [False, True, False, True]
    tails.clear()
    policy.reset()
    policy.predict_action_chunk(observation(1))
    assert tails == [None]


def test_lerobots_real_time_arguments(
    make: Callable[..., ValueGuidedPolicy], tails: list[Tail | None]
) -> None:
    policy = make(warm_every=2)
    chunk = policy.predict_action_chunk(observation(1), inference_delay=0)
    assert chunk.shape == (1, 16, 7)  # whole: what comes after the executed steps is wanted too
    left = chunk[0, 6:]
    moved = policy.predict_action_chunk(
        observation(1, seed=1), inference_delay=3, prev_chunk_left_over=left
    )
    tail, decision = tails[-1], policy.last_decision
    assert tail is not None and (tail.frozen, tail.overlap) == (3, 10)
    torch.testing.assert_close(moved[0, :3], left[:3], atol=1e-5, rtol=0)
    assert decision is not None and decision.scores is not None
    spread = decision.candidates.std(dim=1)[0].amax(1)  # (H,)
    assert bool((spread[:3] < 1e-6).all()) and bool((spread[3:] > 1e-4).all())


def two_looks(rest: Any = None, task: str = "lift the red cube") -> list[Look]:
    """Of two episodes; ``rest`` and ``task`` are the second one's."""
    pictures = observation(2)
    return [
        Look(
            Observation(
                {k: v[row].permute(1, 2, 0).numpy() for k, v in pictures.items() if "images" in k},
                np.asarray(pictures["observation.state"][row]),
                "lift the red cube" if row == 0 else task,
            ),
            seed=row,
            plan=row,
            candidates=4,
            rest=None if row == 0 else rest,
        )
        for row in range(2)
    ]


def test_a_longer_instruction_beside_it_changes_nothing(
    make: Callable[..., ValueGuidedPolicy],
) -> None:
    """GR00T's head attends to the padding that the longer one gives the shorter."""
    planner = PolicyPlanner(make(), batch_size=2)
    looks = two_looks(task="lift the red cube and hold it there until somebody says stop")
    for look, plan in zip(looks, planner.plan(looks), strict=True):
        (alone,) = planner.plan([look])
        np.testing.assert_array_equal(alone.actions, plan.actions)


def test_a_plan_goes_on_from_its_own_episode_alone(
    make: Callable[..., ValueGuidedPolicy],
) -> None:
    planner = PolicyPlanner(make(warm_every=2), batch_size=2)
    looks = two_looks(rest=np.full((8, 7), 0.1, np.float32))
    together = planner.plan(looks)
    assert together[0].rest is not None and together[0].rest.shape == (8, 7)
    for look, plan in zip(looks, together, strict=True):
        (alone,) = planner.plan([look])
        np.testing.assert_array_equal(alone.actions, plan.actions)
    cold = PolicyPlanner(make(), batch_size=2).plan(looks)
    assert cold[0].rest is None
    np.testing.assert_array_equal(cold[0].actions, together[0].actions)
