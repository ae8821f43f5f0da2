"""Addresses of joints and motors that numpy need not convert: the same episode, bit for bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deas_vla.envs.robocasa import kitchen
from deas_vla.envs.robosuite import lift


def lite_kitchen() -> tuple[Any, Callable[[], Any]]:
    env = kitchen.KitchenEnv(kitchen.KitchenConfig(task="CloseDrawer", assets="lite"))
    return env, lambda: env.kitchen


def table() -> tuple[Any, Callable[[], Any]]:
    env = lift.LiftEnv(lift.LiftConfig())
    return env, lambda: env._env


@pytest.mark.parametrize(("module", "make"), [(kitchen, lite_kitchen), (lift, table)])
def test_an_episode_is_the_same_bit_for_bit(
    module: Any, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def episode() -> tuple[list[NDArray[np.float64]], Any]:
        env, simulator = make()
        rng, states = np.random.default_rng(0), []
        for seed in (3, 4):  # the second reset meets what the first one left
            env.reset(seed)
            for _ in range(40):
                env.step(rng.uniform(-1, 1, len(env.spec.action_names)).astype(np.float32))
                data = simulator().sim.data
                states.append(np.concatenate([data.qpos, data.qvel, data.ctrl]))
        motors = simulator().robots[0]._ref_actuators_indexes_dict["right"]
        env.close()
        return states, motors

    fast, motors = episode()
    monkeypatch.setattr(module, "convert_addresses", lambda env: None)
    slow, listed = episode()
    assert isinstance(motors, slice) and isinstance(listed, list)
    assert np.abs(slow[0] - slow[39]).max() > 0.1  # the robot moves
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))
