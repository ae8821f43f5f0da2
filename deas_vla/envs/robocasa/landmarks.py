"""Where the thing is that a kitchen's instruction names: a handle, a knob, an object.

Scripted experts go there, and a backbone that is to know kitchens learns to tell where it is.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.robocasa.kitchen import KitchenEnv
from deas_vla.errors import DeasError

Vector = NDArray[np.float64]


def landmark(env: KitchenEnv) -> Vector:
    """Where the thing is that the running episode's instruction names, world (3,), metres.

    The middle of a drawer's or door's handle (of both, where there are two doors), of a knob's bar,
    or of the object to be taken.

    Raises:
        DeasError: A task that names none of these.
    """
    kitchen = env.kitchen
    if hasattr(kitchen, "knob"):
        return _knob(kitchen, kitchen.knob)
    for name in ("drawer", "fxtr"):
        if (fixture := getattr(kitchen, name, None)) is not None:
            return _geoms(kitchen, _handles(fixture, env.spec.name))
    if "obj" in kitchen.objects:
        return np.array(kitchen.sim.data.body_xpos[kitchen.obj_body_id["obj"]])
    raise DeasError(f"task '{env.spec.name}' names no handle, knob or object that is known here")


def landmarks(env: KitchenEnv) -> dict[str, Vector]:
    """Instruction to where the thing is that it names, world (3,): the episode's own comes first.

    The others are what the same task could have asked for in this kitchen: the other burners of a
    stove, which look like the one that is meant.

    Raises:
        DeasError: As `landmark`.
    """
    own = env.observe(images=False).task
    found = {own: landmark(env)}
    kitchen = env.kitchen
    if hasattr(kitchen, "knob"):
        said = kitchen.knob.replace("_", " ")
        for burner, joint in kitchen.stove.knob_joints.items():
            if joint is not None and burner != kitchen.knob:
                other = own.replace(said, burner.replace("_", " "))
                found[other] = _knob(kitchen, burner)
    return found


def _knob(kitchen: Any, burner: str) -> Vector:
    return _geoms(kitchen, [f"{kitchen.stove.naming_prefix}knob_{burner}_main"])


def _handles(fixture: Any, task: str) -> list[str]:
    """Names of the handle's geoms, whichever way RoboCasa's class of fixture has them."""
    for names in (("handle_name",), ("left_handle_name", "right_handle_name")):
        if all(hasattr(fixture, name) for name in names):
            return [getattr(fixture, name) for name in names]
    if task.endswith("Fridge"):
        return [f"{fixture.naming_prefix}fridge_door_handle_main"]
    raise DeasError(f"task '{task}': a {type(fixture).__name__} has no handle that is known here")


def _geoms(kitchen: Any, names: list[str]) -> Vector:
    sim = kitchen.sim
    return np.asarray(np.mean([sim.data.geom_xpos[sim.model.geom_name2id(n)] for n in names], 0))
