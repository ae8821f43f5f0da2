"""What the tests of lite kitchens share."""

import numpy as np

from deas_vla.envs.robocasa.kitchen import KitchenEnv


def settle(env: KitchenEnv, steps: int = 8) -> bool:
    """Whether the task's own check says yes after a few steps in which the robot rests."""
    done = False
    for _ in range(steps):
        done = env.step(np.zeros(12, dtype=np.float32))
    return done


def solve(env: KitchenEnv) -> bool:
    """Set the running episode to a state in which its task is done; what the task's check says.

    Nothing but joints is set: physics has to keep it so, and RoboCasa's check has to see it.
    """
    kitchen, task = env.kitchen, env.spec.name
    part = next((p for p in ("drawer", "fxtr") if hasattr(kitchen, p)), None)
    if part is not None:
        fixture = getattr(kitchen, part)
        if task == "OpenDrawer":
            fixture.set_door_state(min=1.0, max=1.0, env=kitchen)
        elif task.startswith("Open"):
            fixture.open_door(env=kitchen, min=1.0, max=1.0)
        else:
            fixture.close_door(env=kitchen)
    elif task in ("TurnOnStove", "TurnOffStove"):
        mode = "on" if task == "TurnOnStove" else "off"
        kitchen.stove.set_knob_state(kitchen, np.random.default_rng(0), kitchen.knob, mode)
    else:
        data, obj = kitchen.sim.data, kitchen.objects["obj"]
        if task == "CoffeeSetupMug":
            name = f"{kitchen.coffee_machine.naming_prefix}receptacle_place_site"
            goal = data.site_xpos[kitchen.sim.model.site_name2id(name)]
        else:
            container = kitchen.objects["container"]
            goal = data.body_xpos[kitchen.obj_body_id["container"]] + container.top_offset
        place = np.array([*(goal + [0, 0, 0.005] - obj.bottom_offset), 1, 0, 0, 0])
        data.set_joint_qpos(obj.joints[0], place)
    kitchen.sim.forward()
    return settle(env)
