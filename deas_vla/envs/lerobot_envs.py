"""Our simulators as environments of LeRobot's kind: ``--env.type=deas_lift``, ``deas_kitchen``.

LeRobot steps a gym environment and looks at its cameras after every step, so that this is slower
than `envs.rollout`, which renders only where the policy plans; the episodes are the same ones.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from numpy.typing import NDArray

from deas_vla.envs.env import IMAGE_PREFIX, STATE_KEY, EnvSpec, SimEnv


class LeRobotEnv(gym.Env):
    """One of our simulators as LeRobot's `rollout` uses it.

    The simulator starts with the first reset, in the process that uses it.

    Args:
        spec: The environment's fixed facts.
        make: Makes its simulator; of a picklable kind, for LeRobot's processes.
    """

    def __init__(self, spec: EnvSpec, make: Callable[[], SimEnv]) -> None:
        self.sim_spec, self._make = spec, make
        self._sim: SimEnv | None = None
        self._steps = 0
        self._max_episode_steps = spec.horizon  # LeRobot asks for these three by name
        self.task = spec.name
        self.task_description = spec.instruction
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": spec.fps}
        self.render_mode = "rgb_array"
        pictures: dict[str, spaces.Space[Any]] = {
            camera: spaces.Box(0, 255, (*size, 3), np.uint8)
            for camera, size in spec.image_sizes.items()
        }
        state = spaces.Box(-np.inf, np.inf, (len(spec.state_names),), np.float32)
        self.observation_space = spaces.Dict({"pixels": spaces.Dict(pictures), "agent_pos": state})
        self.action_space = spaces.Box(-1.0, 1.0, (len(spec.action_names),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode that ``seed`` alone determines; without one, of the next own seed."""
        super().reset(seed=seed)
        if self._sim is None:
            self._sim = self._make()
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        self._sim.reset(own)
        self._steps = 0
        return self._look(), {"is_success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action (A,). The step that solves the task has reward 1 and is the last."""
        assert self._sim is not None, "reset() comes first"
        solved = self._sim.step(np.asarray(action, np.float32))
        self._steps += 1
        out_of_time = self._steps >= self.sim_spec.horizon and not solved
        return self._look(), float(solved), solved, out_of_time, {"is_success": solved}

    def render(self) -> NDArray[np.uint8]:
        """The first camera's picture, as of the last look: (H, W, 3)."""
        return next(iter(self._pictures.values()))

    def close(self) -> None:
        if self._sim is not None:
            self._sim.close()
            self._sim = None

    def _look(self) -> dict[str, Any]:
        assert self._sim is not None
        seen = self._sim.observe()
        self.task_description = seen.task
        self._pictures = {
            key.removeprefix(IMAGE_PREFIX): picture for key, picture in seen.images.items()
        }
        return {"pixels": self._pictures, "agent_pos": seen.state}


@dataclass
class SimEnvConfig(EnvConfig):
    """What LeRobot wants to know of one of our simulators, from its `EnvSpec`.

    Attributes:
        image_size: Height and width of the pictures, pixels.
        episode_length: Steps until truncation; the task's own when 0.
    """

    image_size: int = 64
    episode_length: int = 0

    def __post_init__(self) -> None:
        spec = self.spec()
        self.fps = spec.fps  # of the task, whatever was asked for
        kinds: dict[str, tuple[Any, tuple[int, ...], str]] = {
            "action": (FeatureType.ACTION, (len(spec.action_names),), "action"),
            "agent_pos": (FeatureType.STATE, (len(spec.state_names),), STATE_KEY),
        }
        for camera, size in spec.image_sizes.items():
            kinds[f"pixels/{camera}"] = (FeatureType.VISUAL, (*size, 3), IMAGE_PREFIX + camera)
        for name, (kind, shape, key) in kinds.items():
            self.features[name] = PolicyFeature(kind, shape)
            self.features_map[name] = key

    @abstractmethod
    def spec(self) -> EnvSpec:
        """The environment's fixed facts."""

    @abstractmethod
    def make(self) -> SimEnv:
        """Its simulator."""

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """LeRobot's ``{suite: {task_id: environments}}``: one task, ``n_envs`` episodes at once."""
        one = freeze_after_episode_end(partial(LeRobotEnv, self.spec(), self.make))
        mode = gym.vector.AutoresetMode.NEXT_STEP
        envs: gym.vector.VectorEnv
        if use_async_envs and n_envs > 1:
            envs = gym.vector.AsyncVectorEnv([one] * n_envs, context="spawn", autoreset_mode=mode)
        else:
            envs = gym.vector.SyncVectorEnv([one] * n_envs, autoreset_mode=mode)
        return {self.type: {0: envs}}


@EnvConfig.register_subclass("deas_lift")
@dataclass
class DeasLiftEnv(SimEnvConfig):
    """robosuite's Lift."""

    task: str | None = "Lift"

    def spec(self) -> EnvSpec:
        from deas_vla.envs.robosuite.lift import lift_spec

        return lift_spec(self._config())

    def make(self) -> SimEnv:
        from deas_vla.envs.robosuite.lift import LiftEnv

        return LiftEnv(self._config())

    def _config(self) -> Any:
        from deas_vla.envs.robosuite.lift import LiftConfig

        horizon = self.episode_length or LiftConfig.horizon
        return LiftConfig(image_size=self.image_size, horizon=horizon)


@EnvConfig.register_subclass("deas_kitchen")
@dataclass
class DeasKitchenEnv(SimEnvConfig):
    """A task in RoboCasa's kitchens, or in the lite ones that come with this package.

    Attributes:
        assets: ``robocasa``, ``lite`` or ``auto``: as in `KitchenConfig`, like all others.
    """

    task: str | None = "CloseDrawer"
    image_size: int = 256
    assets: str = "auto"
    split: str = "target"

    def spec(self) -> EnvSpec:
        from deas_vla.envs.robocasa.kitchen import kitchen_spec

        return kitchen_spec(self._config())

    def make(self) -> SimEnv:
        from deas_vla.envs.robocasa.kitchen import KitchenEnv

        return KitchenEnv(self._config())

    def _config(self) -> Any:
        from deas_vla.envs.robocasa.kitchen import KitchenConfig

        return KitchenConfig(
            task=self.task or "CloseDrawer",
            assets=self.assets,
            split=self.split,
            image_size=self.image_size,
            horizon=self.episode_length,
        )
