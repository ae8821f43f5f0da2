"""Where the thing is that an instruction names, in lite kitchens."""

import numpy as np
import pytest

from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.landmarks import landmark, landmarks
from deas_vla.errors import DeasError


def kitchen(task: str) -> KitchenEnv:
    env = KitchenEnv(KitchenConfig(task=task, assets="lite", split="train"))
    env.reset(3)
    return env


@pytest.mark.slow
def test_every_knob_of_a_stove_can_be_asked_for() -> None:
    env = kitchen("TurnOnStove")
    found = landmarks(env)
    own = env.observe(images=False).task
    assert next(iter(found)) == own and len(found) == 4
    np.testing.assert_array_equal(found[own], landmark(env))
    for row in ("front", "rear"):
        left, right = (
            found[f"Turn on the {row} {side} burner of the stove."] for side in ("left", "right")
        )
        to_right = -env.privileged()["base_mat"][:, 1]  # the robot stands before the stove
        assert 0.25 < (right - left) @ to_right < 0.6
        assert abs(left[2] - right[2]) < 0.01
    env.close()


@pytest.mark.slow
def test_a_handle_moves_with_its_drawer() -> None:
    env = kitchen("CloseDrawer")
    before = landmark(env)
    env.kitchen.drawer.set_door_state(min=0.0, max=0.0, env=env.kitchen)
    env.kitchen.sim.forward()
    away = env.privileged()["base_mat"][:, 0]
    assert 0.15 < (landmark(env) - before) @ away < 0.6
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["OpenCabinet", "OpenMicrowave", "CloseFridge", "CoffeeSetupMug"])
def test_doors_have_handles_and_objects_are_where_they_lie(task: str) -> None:
    env = kitchen(task)
    at = landmark(env)
    assert np.linalg.norm(at[:2] - env.privileged()["base_pos"][:2]) < 1.5
    if task == "CoffeeSetupMug":
        mug = env.kitchen.sim.data.body_xpos[env.kitchen.obj_body_id["obj"]]
        np.testing.assert_array_equal(at, mug)
        env.kitchen.objects = {}
        with pytest.raises(DeasError, match="'CoffeeSetupMug' names no handle, knob or object"):
            landmark(env)
    elif task != "OpenCabinet":
        assert 0.1 < np.linalg.norm(at - np.array(env.kitchen.fxtr.pos)) < 1.5
    env.close()
