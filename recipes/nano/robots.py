"""The robots that the nano GR00T is pretrained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from views import View

from deas_vla.envs.robocasa import kitchen
from deas_vla.envs.robosuite.lift import LiftConfig, lift_spec

HORIZON = 16  # steps of a chunk that both robots use, of the 40 that the head has
FREE = "new_embodiment"
EMBODIMENTS = 32  # as in the public checkpoint, and these numbers too
FREE_NUMBER = 10


@dataclass(frozen=True)
class Robot:
    """One embodiment of the checkpoint.

    Attributes:
        tag: Embodiment tag.
        number: Which of the head's projectors it has, of 32.
        folder: Of its frames, below the data directory.
        cameras: In the order in which the backbone sees them.
        views: Where each of them is.
        hand: First of the state's seven numbers that say where the hand is, in the robot's frame:
            metres (3), quaternion (x, y, z, w).
        state_groups: Name to dimensions, in the state's order.
        action_groups: Likewise of the action.
        ranges: ``state.<group>`` or ``action.<group>`` to what it is normalised by, where that is
            not the range of its frames.
    """

    tag: str
    number: int
    folder: str
    cameras: tuple[str, ...]
    views: tuple[View, ...]
    hand: int
    state_groups: Mapping[str, int]
    action_groups: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def state_dim(self) -> int:
        return sum(self.state_groups.values())

    @property
    def action_dim(self) -> int:
        return sum(self.action_groups.values())

    @property
    def image_keys(self) -> tuple[str, ...]:
        return tuple(f"observation.images.{camera}" for camera in self.cameras)

    def seen(self, points: NDArray, state: NDArray) -> NDArray[np.float32]:
        """Where each of the C cameras sees points, as `View.seen` has it.

        Args:
            points: (m, 3), metres in the robot's frame.
            state: (m, S), observed at the same moments.

        Returns:
            (m, C, 3).
        """
        at, facing = np.split(state[:, self.hand : self.hand + 7], [3], axis=1)
        return np.stack([view.seen(points, at, facing) for view in self.views], axis=1)


PANDA = Robot(
    tag=lift_spec(LiftConfig()).embodiment,
    number=3,
    folder="lift",
    cameras=("agentview", "eye_in_hand"),
    views=(
        View(False, (0.5, 0.0, 1.35), (0.2706, 0.2706, 0.6533, 0.6533), 45),
        View(True, (0.0, 0.05, -0.097), (0.0, 1.0, 0.0, 0.0), 75),
    ),
    hand=0,
    state_groups={"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2},
    action_groups={"eef_delta": 6, "gripper": 1},
)
PANDA_OMRON = Robot(
    tag=kitchen.EMBODIMENT,
    number=13,
    folder="kitchens",
    cameras=kitchen.KitchenConfig.cameras,
    views=(
        View(False, (-0.5, 0.35, 1.05), (-0.2994, 0.3768, 0.6775, -0.5562), 60),
        View(True, (0.05, 0.0, -0.097), (0.7071, 0.7071, 0.0, 0.0), 75),
        View(False, (-0.5, -0.35, 1.05), (0.3768, -0.2994, -0.5562, 0.6775), 60),
    ),
    hand=7,
    state_groups={name: len(axes) for name, (_, axes) in kitchen.STATE_PARTS.items()},
    action_groups={name: len(axes) for name, axes in kitchen.ACTION_PARTS.items()},
    ranges={
        # Where the robot stands in the world tells kitchens apart and not what to do in them: in
        # this range it does not stand out, and no other kitchen lies outside.
        "state.base_position": (-10.0, 10.0),
        "state.base_rotation": (-1.0, 1.0),
        "state.end_effector_rotation_relative": (-1.0, 1.0),
        **{f"action.{name}": (-1.0, 1.0) for name in kitchen.ACTION_PARTS},
        "action.control_mode": (0.0, 1.0),
        "action.gripper_close": (-1.0, 1.0),
    },
)
ROBOTS = (PANDA, PANDA_OMRON)
