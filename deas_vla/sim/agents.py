"""A policy as an agent of the rollout loop."""

from typing import Any

import numpy as np
import torch

from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.sim.env import STATE_KEY, Observation, SimEnv
from deas_vla.sim.rollout import Plan


class PolicyAgent:
    """Looks at the cameras only when it decides, and executes the chunk open loop."""

    def __init__(self, policy: ValueGuidedPolicy) -> None:
        self.policy = policy

    def reset(self, seed: int) -> None:
        self.policy.reset([seed])

    def plan(self, env: SimEnv) -> Plan:
        chunk = self.policy.predict_action_chunk(observation_batch([env.observe()]))
        decision = self.policy.last_decision
        assert decision is not None
        info: dict[str, Any] = {"chosen": int(decision.chosen[0])}
        if decision.scores is not None:
            info["scores"] = [round(float(score), 4) for score in decision.scores[0]]
        return Plan(chunk[0].cpu().numpy().astype(np.float32), info)


def observation_batch(observations: list[Observation]) -> dict[str, Any]:
    """B observations as a LeRobot batch: pictures uint8 (B, C, H, W), state float32 (B, S)."""
    batch: dict[str, Any] = {
        key: torch.from_numpy(np.stack([o.images[key] for o in observations])).permute(0, 3, 1, 2)
        for key in observations[0].images
    }
    batch[STATE_KEY] = torch.from_numpy(np.stack([o.state for o in observations]))
    batch["task"] = [o.task for o in observations]
    return batch
