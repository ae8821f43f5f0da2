"""Our simulators as environments of LeRobot's kind, in LeRobot's vector environments."""

import numpy as np
import pytest

from deas_vla.envs.env import IMAGE_PREFIX, STATE_KEY
from deas_vla.envs.lerobot_envs import DeasKitchenEnv, SimEnvConfig
from deas_vla.errors import DeasError


def test_an_environment_says_what_it_is_and_makes_it() -> None:
    with pytest.raises(TypeError, match=r"abstract methods '?make'?, '?spec'?"):
        SimEnvConfig()  # type: ignore[abstract]


@pytest.mark.slow
def test_a_kitchen_in_lerobots_vector_environment() -> None:
    """Two of the same seed are the same episode; it ends in time and then stays as it is."""
    pytest.importorskip("robocasa")
    from lerobot.envs.factory import make_env, make_env_config
    from lerobot.envs.utils import NEW_ROLLOUT_OPTION, preprocess_observation

    config = make_env_config(
        "deas_kitchen", task="TurnOnStove", assets="lite", split="test", image_size=32,
        episode_length=3,
    )  # fmt: skip
    assert isinstance(config, DeasKitchenEnv) and config.fps == 20
    cameras = {key.removeprefix("pixels/") for key in config.features if "pixels" in key}
    assert config.features_map["agent_pos"] == STATE_KEY and len(cameras) == 3
    env = make_env(config, n_envs=2)["deas_kitchen"][0]
    seen, info = env.reset(seed=[5, 5], options={NEW_ROLLOUT_OPTION: True})
    assert seen["pixels"].keys() == cameras and seen["agent_pos"].shape == (2, 16)
    for pictures in seen["pixels"].values():
        assert pictures.shape == (2, 32, 32, 3) and pictures.std() > 10
        np.testing.assert_array_equal(pictures[0], pictures[1])
    batch = preprocess_observation(seen)
    assert {f"{IMAGE_PREFIX}{camera}" for camera in cameras} <= batch.keys()
    assert not info["is_success"].any()
    assert all("stove" in task.lower() for task in env.call("task_description"))
    actions = np.stack([np.zeros(12), np.r_[np.zeros(5), 1.0, np.zeros(6)]]).astype(np.float32)
    ends = []
    for _ in range(3):
        seen, reward, terminated, truncated, _ = env.step(actions)
        ends.append(truncated.tolist())
        assert not terminated.any() and not reward.any()
    assert ends == [[False, False], [False, False], [True, True]]
    assert np.abs(seen["agent_pos"][0] - seen["agent_pos"][1]).max() > 1e-3  # one of them moved
    env.close()


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(DeasError, match="OpenSesame"):
        DeasKitchenEnv(task="OpenSesame", assets="lite")
