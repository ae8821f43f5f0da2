"""Where a camera of a robot sees a point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class View:
    """A pinhole camera that is fixed to a robot's base or to its hand.

    Attributes:
        on_hand: Whether it moves with the hand.
        at: Where it is, metres in the frame of what it is fixed to.
        facing: Its rotation there, quaternion (x, y, z, w); it looks along its -z, x is right.
        fovy: Angle between the upper and the lower edge of its square pictures, degrees.
    """

    on_hand: bool
    at: tuple[float, float, float]
    facing: tuple[float, float, float, float]
    fovy: float

    def seen(self, points: NDArray, hand: NDArray, hand_facing: NDArray) -> NDArray[np.float32]:
        """Where points are in the picture; what hides them is not known.

        Args:
            points: (m, 3), metres in the robot's frame.
            hand: (m, 3), where the hand is, likewise.
            hand_facing: (m, 4), its quaternion (x, y, z, w).

        Returns:
            (m, 3): shares of the picture's width and height from its upper left corner, and metres
            before the camera; NaN for what is outside.
        """
        turn, at = Rotation.from_quat(self.facing), np.array(self.at)
        if self.on_hand:
            held = Rotation.from_quat(hand_facing)
            turn, at = held * turn, hand + held.apply(at)
        x, y, z = turn.apply(points - at, inverse=True).T  # into the camera's frame
        with np.errstate(divide="ignore", invalid="ignore"):
            half = -z * np.tan(np.radians(self.fovy) / 2)
            found = np.stack([0.5 + x / half / 2, 0.5 - y / half / 2, -z], axis=1)
        outside = (z >= 0) | (found[:, :2] < 0).any(axis=1) | (found[:, :2] >= 1).any(axis=1)
        found[outside] = np.nan
        return found.astype(np.float32)
