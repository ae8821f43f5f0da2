"""RoboCasa's kitchens in the real simulator."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from kitchen_cases import TASK, fingerprint

from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.tasks import ASSETS_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kitchen_assets")]


@pytest.fixture(scope="module")
def env(kitchen_assets: None) -> Iterator[KitchenEnv]:
    env = KitchenEnv(KitchenConfig(task=TASK, image_size=64))
    yield env
    env.close()


def test_observation_matches_the_spec(env: KitchenEnv) -> None:
    env.reset(0)
    look = env.observe()
    assert tuple(look.images) == env.spec.image_keys
    for image in look.images.values():
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 10
    assert look.state.shape == (len(env.spec.state_names),) and look.state.dtype == np.float32
    assert look.task != env.spec.instruction and look.task.endswith(".")
    assert env.observe(images=False).images == {}
    assert env.step(np.zeros(len(env.spec.action_names), dtype=np.float32)) is False


def test_seed_alone_determines_an_episode(env: KitchenEnv) -> None:
    """In a used simulator, in any order, and in another process with other hashes."""
    code = (
        "import json; from kitchen_cases import fingerprint_of_seeds as f;"
        "print(json.dumps(f([4, 3])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONHASHSEED": "7",
            "PATH": "/usr/bin:/bin",
            ASSETS_VARIABLE: os.environ.get(ASSETS_VARIABLE, ""),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    there = json.loads(done.stdout.splitlines()[-1])
    here = []
    for seed in (3, 4):
        env.reset(seed)
        env.step(np.ones(12, dtype=np.float32))  # leaves no trace
        env.reset(seed)
        here.append(fingerprint(env))
    assert here == there[::-1] and here[0] != here[1]


def test_looking_changes_nothing(env: KitchenEnv) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 12)).astype(np.float32)
    states = []
    for look in (False, True):
        env.reset(5)
        for action in actions:
            env.step(action)
            env.observe(images=look)
        states.append(np.array(env.kitchen.sim.data.qpos))
        assert (env._renderer is not None) is look
    assert np.array_equal(*states)


def test_pictures_states_and_physics_are_lerobots(env: KitchenEnv) -> None:
    from lerobot.envs.robocasa import RoboCasaEnv

    registries = env.config.object_registries
    theirs = RoboCasaEnv(
        TASK,
        observation_width=64,
        observation_height=64,
        split="target",
        obj_registries=registries,
    )
    env.reset(6)
    with env._assets():
        theirs._ensure_env()
        observation, _ = theirs.reset(seed=6)
    # Moves the arm, then the base, and closes the gripper.
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 12)).astype(np.float32)
    actions[:3, 4], actions[3:, 4], actions[:, 11] = 0, 1, 1
    for action in actions:
        look = env.observe()
        assert np.array_equal(look.state, observation["agent_pos"])
        for camera, picture in observation["pixels"].items():
            assert np.array_equal(look.images[f"observation.images.{camera}"], picture)
        observation, _, done, _, info = theirs.step(action)
        assert env.step(action) == info["is_success"] == done
    theirs.close()
