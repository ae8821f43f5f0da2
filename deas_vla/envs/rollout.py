"""The one rollout loop: every simulator, expert and policy goes through it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import Observation, SimEnv


@dataclass(frozen=True)
class Plan:
    """What an agent decided to do next.

    Attributes:
        actions: float32 (h, A), executed open loop, environment units.
        info: Anything worth keeping about the decision (scores of the candidates, for example).
        rest: float32 (T, A), what the agent had in mind for afterwards; None where it says nothing.
    """

    actions: NDArray[np.float32]
    info: dict[str, Any] = field(default_factory=dict)
    rest: NDArray[np.float32] | None = None


class Agent(Protocol):
    """Decides on action chunks."""

    def reset(self, seed: int) -> None:
        """Forget the last episode; ``seed`` fixes this episode's randomness."""

    def plan(self, env: SimEnv) -> Plan:
        """Look at ``env`` and return the next actions."""


@dataclass
class Episode:
    """One finished rollout of T steps.

    ``terminated`` (the task was solved) and ``truncated`` (time ran out) exclude each other.

    Attributes:
        seed: Seed of the initial state.
        instruction: What the policy was told.
        success: Whether the task counted as solved after any step.
        steps: T.
        observations: T observations, one before each action, when recorded; else empty.
        actions: float32 (T, A).
        plans: (step, info) of every decision.
    """

    seed: int
    instruction: str
    success: bool
    steps: int
    observations: list[Observation]
    actions: NDArray[np.float32]
    plans: list[tuple[int, dict[str, Any]]]

    @property
    def terminated(self) -> bool:
        return self.success

    @property
    def truncated(self) -> bool:
        return not self.success


def rollout(
    env: SimEnv,
    agent: Agent,
    seed: int,
    *,
    agent_seed: int | None = None,
    record_images: Callable[[int], bool] | None = None,
) -> Episode:
    """Run one episode to success or to the time limit, whichever comes first.

    Args:
        env: The simulator.
        agent: Decides on chunks; it renders the cameras itself where it needs them.
        seed: Fixes scene, objects and initial state.
        agent_seed: Fixes the agent's own randomness, ``seed`` when left out.
        record_images: Tells for each step whether to keep an observation with pictures; when
            given, observations of all steps are kept (without pictures where it says no).

    Returns:
        The episode; it ends at the first step after which the task counts as solved.
    """
    env.reset(seed)
    instruction = env.observe(images=False).task
    agent.reset(seed if agent_seed is None else agent_seed)
    observations: list[Observation] = []
    actions: list[NDArray[np.float32]] = []
    plans: list[tuple[int, dict[str, Any]]] = []
    queue: list[NDArray[np.float32]] = []
    success = False
    while not success and len(actions) < env.spec.horizon:
        if not queue:
            plan = agent.plan(env)
            plans.append((len(actions), plan.info))
            queue = list(plan.actions)
        if record_images is not None:
            observations.append(env.observe(images=record_images(len(actions))))
        action = queue.pop(0)
        success = env.step(action)
        actions.append(action)
    return Episode(seed, instruction, success, len(actions), observations, np.stack(actions), plans)
