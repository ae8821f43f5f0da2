"""A robot as LeRobot finds it: a configuration, and beside it the class of the same name."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

JOINTS = [f"joint_{k}.pos" for k in range(9)]
MOTORS = [f"motor_{k}.pos" for k in range(7)]


@RobotConfig.register_subclass("toy_of_deas_vla_tests")
@dataclass(kw_only=True)
class ToyRobotConfig(RobotConfig):
    eyes: tuple[str, ...] = ("agentview", "eye_in_hand")


class ToyRobot(Robot):
    """Sees noise, and remembers what it was told to do."""

    config_class = ToyRobotConfig
    name = "toy_robot"

    def __init__(self, config: ToyRobotConfig) -> None:
        super().__init__(config)
        self._eyes = config.eyes
        self._rng = np.random.default_rng(0)
        self.actions: list[dict[str, float]] = []

    @property
    def observation_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float) | dict.fromkeys(self._eyes, (48, 64, 3))

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(MOTORS, float)

    def get_observation(self) -> dict[str, Any]:
        joints = {
            name: float(x) for name, x in zip(JOINTS, self._rng.normal(0, 0.1, 9), strict=True)
        }
        return joints | {
            name: self._rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for name in self._eyes
        }

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.actions.append(action)
        return action

    is_connected = True
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None: ...

    def disconnect(self) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...
