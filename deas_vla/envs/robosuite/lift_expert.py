"""Scripted experts: demonstrations of known quality."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import SimEnv
from deas_vla.envs.rollout import Plan


@dataclass(frozen=True)
class LiftExpertConfig:
    """How well the expert does it.

    Attributes:
        sloppiness: Probability that an episode aims beside the cube, in [0, 1].
        aim_error: Range of the horizontal aim error of such an episode, metres.
        speed: Largest action magnitude; 1 is the controller's limit.
        jitter: Standard deviation of the noise on every motion command.
    """

    sloppiness: float = 0.5
    aim_error: tuple[float, float] = (0.035, 0.06)
    speed: float = 0.6
    jitter: float = 0.1


class LiftExpert:
    """Hover over the aim, descend, close, lift. A sloppy episode aims beside the cube."""

    HOVER, GRASP, LIFT = 0.10, 0.005, 0.15  # heights over the cube's resting centre, metres
    CLOSE_STEPS = 4

    def __init__(self, config: LiftExpertConfig, metres_per_action: float = 0.05) -> None:
        self.config = config
        self._metres_per_action = metres_per_action

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))  # apart from the simulator's own stream
        sloppy = self._rng.random() < self.config.sloppiness
        radius = self._rng.uniform(*self.config.aim_error) if sloppy else 0.0
        angle = self._rng.uniform(0, 2 * np.pi)
        self._aim_offset = radius * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._phase = "hover"
        self._closed = 0
        self._cube: NDArray[np.float64] | None = None

    def plan(self, env: SimEnv) -> Plan:
        world = env.privileged()
        if self._cube is None:  # where it was at first: a pushed cube is not chased
            self._cube = world["cube_pos"]
        height = {"hover": self.HOVER, "descend": self.GRASP, "close": self.GRASP}
        target = self._cube + self._aim_offset
        target[2] += height.get(self._phase, self.LIFT)
        error = target - world["eef_pos"]
        self._advance(error)
        motion = np.clip(error / self._metres_per_action, -1, 1) * self.config.speed
        action = np.zeros(7, dtype=np.float32)
        action[:3] = motion + self._rng.normal(0, self.config.jitter, 3)
        action[3:6] = self._rng.normal(0, self.config.jitter / 10, 3)
        action[6] = 1.0 if self._phase in ("close", "lift") else -1.0
        return Plan(np.clip(action, -1, 1)[None])

    def _advance(self, error: NDArray[np.float64]) -> None:
        """Move on to the next phase where this one has reached its goal."""
        if self._phase == "hover" and np.linalg.norm(error) < 0.02:
            self._phase = "descend"
        elif self._phase == "descend" and abs(error[2]) < 0.012:
            self._phase = "close"
        elif self._phase == "close":
            self._closed += 1
            if self._closed >= self.CLOSE_STEPS:
                self._phase = "lift"
