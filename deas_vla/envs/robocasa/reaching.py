"""Moving the PandaOmron's hand along points that are given in the robot's own frame."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.robocasa.kitchen import KitchenEnv

Vector = NDArray[np.float64]

OPEN, FIST = -1.0, 1.0
_METRES = 0.05  # of one unit of a position command
_RADIANS = 0.25  # of one unit of a rotation command, as far as the arm follows in one step


@dataclass(frozen=True)
class Waypoint:
    """Where the hand should be.

    Attributes:
        at: Between the finger tips, (3,) forward, left, up from the robot's base, metres.
        facing: Rotation of the hand in the same frame (3, 3), as `facing` makes it; as it was at
            the start of the episode where None.
        grip: `OPEN` or `FIST`.
        within: Counts as reached from here, metres; also within 0.15 radians of ``facing``.
        patience: Steps after which the next point is taken although this one was not reached.
        wait: Steps to stay once it is reached.
        speed: Largest command, of 1.
        drive: Instead of moving the arm, drive the base forward at this command, -1 to 1, for
            ``patience`` steps; points planned before are void afterwards.
    """

    at: Vector
    facing: Vector | None = None
    grip: float = FIST
    within: float = 0.02
    patience: int = 60
    wait: int = 0
    speed: float = 1.0
    drive: float = 0.0


@dataclass(frozen=True)
class Pose:
    """The hand in the frame of the robot's base: ``at`` (3,), ``facing`` (3, 3)."""

    at: Vector
    facing: Vector


def facing(approach: Any, closing: Any) -> Vector:
    """Rotation of a hand whose fingers point along ``approach`` and close along ``closing``."""
    z = np.asarray(approach, float) / np.linalg.norm(approach)
    x = np.asarray(closing, float) - (np.asarray(closing, float) @ z) * z
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def hand(env: KitchenEnv) -> Pose:
    """Where the hand is."""
    world = env.privileged()
    turn = world["base_mat"].T
    return Pose(turn @ (world["eef_pos"] - world["base_pos"]), turn @ world["eef_mat"])


def from_base(env: KitchenEnv, point: Vector) -> Vector:
    """A point of the world in the frame of the robot's base."""
    world = env.privileged()
    return np.asarray(world["base_mat"].T @ (np.asarray(point) - world["base_pos"]))


def towards(goal: Waypoint, now: Pose, held: Vector) -> NDArray[np.float64]:
    """Action (12,) that brings the hand nearer to ``goal``; ``held`` is what None faces."""
    action = np.zeros(12)
    action[11] = goal.grip
    if goal.drive:
        action[0], action[4] = goal.drive, 1.0
        return action
    action[5:8] = np.clip((goal.at - now.at) / _METRES, -1, 1) * goal.speed
    turn = _rotation_vector((held if goal.facing is None else goal.facing) @ now.facing.T)
    action[8:11] = np.clip(turn / _RADIANS, -1, 1) * goal.speed
    return action


def reached(goal: Waypoint, now: Pose, held: Vector) -> bool:
    if goal.drive:
        return False
    turn = _rotation_vector((held if goal.facing is None else goal.facing) @ now.facing.T)
    near = np.linalg.norm(goal.at - now.at) < goal.within
    return bool(near and np.linalg.norm(turn) < 0.15)


def _rotation_vector(turn: Vector) -> Vector:
    """Axis times angle of a rotation matrix."""
    cosine = np.clip((np.trace(turn) - 1) / 2, -1, 1)
    angle = np.arccos(cosine)
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    length = np.linalg.norm(axis)
    return axis * (angle / length) if length > 1e-6 else np.zeros(3)
