"""A policy as the planner of many simulators."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from deas_vla.envs.env import STATE_KEY, EnvSpec, Observation
from deas_vla.envs.rollout import Plan
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.planning import Look
from deas_vla.guidance.guided import Decision, ValueGuidedPolicy
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.vla import VLA, VLASpec


class PolicyPlanner:
    """Decides in calls of one fixed size.

    A matrix product of another shape rounds its last bits differently, and a contact-rich episode
    can turn on them. Calls are therefore filled up to ``batch_size`` by repeating the last look,
    and hold one instruction only: GR00T's head attends to the padding of a shorter one (LeRobot
    gives ``vl_self_attention`` no mask). Which simulators happen to wait together then changes
    nothing.

    Args:
        policy: In evaluation mode.
        batch_size: Looks per call; 1 on a CPU and 8 on a GPU when left out.
    """

    def __init__(self, policy: ValueGuidedPolicy, batch_size: int | None = None) -> None:
        on_cpu = policy.vla.device.type == "cpu"
        self.batch_size = batch_size or (1 if on_cpu else 8)
        if self.batch_size < 1:
            raise DeasError(f"batch_size {batch_size}: use 1 or more")
        self.policy = policy
        if on_cpu and "OMP_NUM_THREADS" not in os.environ:
            # Simulators want the cores; threads that wait for each other are many times slower.
            torch.set_num_threads(1)

    def start(self, candidates: int, world: int = 1) -> int:
        """Make the policy ready before the first episode: memory, compilation, latency budget.

        Args:
            candidates: The largest number of candidates.
            world: Processes that share the evaluation.

        Returns:
            The largest number to use: fewer, where a latency budget does not allow as many.

        Raises:
            DeasError: As `ValueGuidedPolicy.start`; or a budget, and processes that would each
                find another number.
        """
        speed = self.policy.config.speed
        if speed.budget_ms > 0 and world > 1:
            raise DeasError(
                f"guidance.budget_ms {speed.budget_ms} in {world} processes, which would each find "
                "another number of candidates: use one process, or --candidates alone"
            )
        return self.policy.start(blank_batch(self.policy.vla, self.batch_size), candidates)

    def plan(self, looks: Sequence[Look]) -> list[Plan]:
        """One plan per look.

        Each instruction is decided apart, and those that go on from an earlier chunk are, too.
        """
        groups: dict[tuple[str, bool], list[Look]] = {}
        for look in looks:
            groups.setdefault((look.observation.task, look.rest is None), []).append(look)
        plans = {id(look): plan for group in groups.values() for look, plan in self._decide(group)}
        return [plans[id(look)] for look in looks]

    def _decide(self, looks: Sequence[Look]) -> Iterator[tuple[Look, Plan]]:
        filled = [*looks, *[looks[-1]] * (self.batch_size - len(looks))]  # B
        streams = CandidateNoise([x.seed for x in filled], [x.plan for x in filled])
        batch = observation_batch([x.observation for x in filled])
        rests = [x.rest for x in filled if x.rest is not None]
        rest = torch.from_numpy(np.stack(rests)) if rests else None  # (B, T, A)
        decision = self.policy.decide(batch, streams, looks[0].candidates, rest)
        chunks = decision.chunk.cpu().numpy().astype(np.float32)  # (B, H, A)
        steps = self.policy.config.n_action_steps
        warm = self.policy.config.speed.warm_every > 0
        for row, look in enumerate(looks):
            rest_of_it = chunks[row, steps:] if warm else None
            yield look, Plan(chunks[row, :steps], _info(decision, row, look.keep), rest_of_it)


def _info(decision: Decision, row: int, keep: bool) -> dict[str, Any]:
    info: dict[str, Any] = {"chosen": int(decision.chosen[row])}
    if decision.scores is not None:
        info["scores"] = [round(float(score), 4) for score in decision.scores[row]]
    if not bool(decision.selection.finite[row]):
        info["not_finite"] = True
    if keep:
        info["candidates"] = decision.candidates[row].cpu().numpy()
        info["state"] = decision.state[row].cpu().numpy()
        if decision.feature is not None:
            info["feature"] = decision.feature[row].cpu().numpy()
    return info


def observation_batch(observations: Sequence[Observation]) -> dict[str, Any]:
    """B observations as a LeRobot batch: pictures uint8 (B, C, H, W), state float32 (B, S)."""
    batch: dict[str, Any] = {
        key: torch.from_numpy(np.stack([o.images[key] for o in observations])).permute(0, 3, 1, 2)
        for key in observations[0].images
    }
    batch[STATE_KEY] = torch.from_numpy(np.stack([o.state for o in observations]))
    batch["task"] = [o.task for o in observations]
    return batch


def blank_batch(vla: VLA, batch: int) -> dict[str, Any]:
    """Black pictures, a state of zeros and no instruction, B of each: for what only takes time."""
    height, width = vla.image_size
    pictures = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    state = torch.zeros(batch, vla.spec.state_dim)
    return {
        **dict.fromkeys(vla.spec.image_keys, pictures), STATE_KEY: state, "task": [""] * batch
    }  # fmt: skip


def check_embodiment(policy: VLASpec, env: EnvSpec, source: str) -> None:
    """DeasError for a policy of another robot: dimensions or cameras that the task lacks."""
    here = (policy.state_dim, policy.action_dim)
    there = (len(env.state_names), len(env.action_names))
    missing = sorted(set(policy.image_keys) - set(env.image_keys))
    if here != there or missing:
        raise DeasError(
            f"{source} is of embodiment '{policy.embodiment}' (state {here[0]}, action {here[1]}, "
            f"cameras {sorted(policy.image_keys)}), {env.name} has state {there[0]}, action "
            f"{there[1]}, cameras {sorted(env.image_keys)}: use a policy of {env.embodiment}"
        )
