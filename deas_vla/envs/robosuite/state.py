"""Saving and restoring a robosuite simulation: physics, and what its Python objects remember.

MuJoCo's state is not all of it: controllers keep goals and interpolators, grippers their last
command, buffers their history, observables their clocks, tasks their counters.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Where robosuite keeps things that remember, as attributes of an environment and of those parts.
_PARTS = (
    "robots",
    "composite_controller",
    "part_controllers",
    "gripper",
    "interpolator",
    "interpolator_pos",
    "interpolator_ori",
    "recent_qpos",
    "recent_actions",
    "recent_torques",
    "recent_ee_forcetorques",
    "recent_ee_pose",
    "recent_ee_vel",
    "recent_ee_vel_buffer",
    "recent_ee_acc",
    "_observables",
)


@dataclass(frozen=True)
class SimulatorState:
    """All that the next steps depend on.

    Attributes:
        physics: MuJoCo's integration state, float64.
        derived: What MuJoCo last derived from it, by name: between steps it lags behind by part of
            a step, and controllers look at it before it is derived anew.
        memory: Objects and their plain attributes.
    """

    physics: NDArray[np.float64]
    derived: dict[str, NDArray[np.generic]]
    memory: list[tuple[Any, dict[str, Any]]]


def save_state(env: Any) -> SimulatorState:
    """The state of a robosuite environment, to be restored into the same one."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: array.copy() for name, array in _arrays(data)}
    memory = [
        (part, {name: deepcopy(value) for name, value in vars(part).items() if _is_plain(value)})
        for part in _parts(env)
    ]
    return SimulatorState(physics, derived, memory)


def restore_state(env: Any, state: SimulatorState) -> None:
    """Bring ``env`` back to where `save_state` found it."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_setState(model, data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, array in _arrays(data):
        if array.shape == state.derived[name].shape:
            array[...] = state.derived[name]
    for part, values in state.memory:
        for name, value in values.items():
            setattr(part, name, deepcopy(value))


def _arrays(data: Any) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """MuJoCo's arrays, but those of contacts and constraints, which every step finds anew."""
    for name in dir(data):
        if not name.startswith(("_", "efc_", "iefc_", "contact", "moment_", "ten_J", "flexedge_J")):
            value = getattr(data, name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                yield name, value


def _parts(env: Any) -> Iterator[Any]:
    """The environment and every part of it that remembers, each once."""
    seen: set[int] = set()
    waiting = [env]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif hasattr(part, "__dict__") and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [vars(part)[name] for name in _PARTS if name in vars(part)]


def _is_plain(value: Any) -> bool:
    """Whether a value is data alone, and no part of the simulator's machinery."""
    if isinstance(value, dict):
        return all(_is_plain(each) for each in [*value, *value.values()])
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str | np.ndarray | np.generic)
