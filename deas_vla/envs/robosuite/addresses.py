"""Where a robot's joints and motors stand in MuJoCo's arrays, as numpy reads it fastest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OF_CONTROLLERS = {"joint_index", "qpos_index", "qvel_index", "actuator_index"}


def convert_addresses(env: Any) -> None:
    """Replace the lists by which robosuite's controllers address joints and motors.

    numpy converts a list at each use, and controllers use some thirty of them in each of the 25
    physics steps of a control step: a ninth of a kitchen's control step, for the same bits.

    Args:
        env: robosuite's, after its reset, which makes the lists anew.
    """
    for robot in env.robots:
        motors = robot._ref_actuators_indexes_dict
        motors.update({part: _span(addresses) for part, addresses in motors.items()})
        for controller in robot.composite_controller.part_controllers.values():
            for name in _OF_CONTROLLERS & vars(controller).keys():
                # No slices: matrices that are views would go another way through their algebra.
                setattr(controller, name, _array(getattr(controller, name)))


def _span(addresses: Sequence[int] | slice | NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """A slice where ``addresses`` follow each other, else an array."""
    if isinstance(addresses, slice):
        return addresses
    found = _array(addresses)
    if len(found) and np.array_equal(found, np.arange(found[0], found[0] + len(found))):
        return slice(int(found[0]), int(found[-1]) + 1)
    return found


def _array(addresses: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp]:
    return np.asarray(addresses, dtype=np.intp)
