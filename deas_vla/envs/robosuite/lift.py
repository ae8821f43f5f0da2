"""robosuite's Lift with a Panda arm."""

import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import IMAGE_PREFIX, EnvSpec, Observation
from deas_vla.envs.gl import gl_failure, use_headless_gl
from deas_vla.envs.packages import import_package
from deas_vla.envs.robosuite.addresses import convert_addresses
from deas_vla.envs.robosuite.state import SimulatorState, restore_state, save_state
from deas_vla.errors import DeasError

ROBOT_TYPE = "panda"  # of its datasets
_STATE_NAMES = (
    *(f"eef_pos.{axis}" for axis in "xyz"),
    *(f"eef_quat.{axis}" for axis in "xyzw"),
    "gripper.left",
    "gripper.right",
)
_ACTION_NAMES = (
    *(f"eef_delta_pos.{axis}" for axis in "xyz"),
    *(f"eef_delta_rot.{axis}" for axis in "xyz"),
    "gripper",
)


def _errors_only(record: logging.LogRecord) -> bool:
    """robosuite warns at length about parts of other robots on every start."""
    return record.levelno >= logging.ERROR


@dataclass(frozen=True)
class LiftConfig:
    """The task's size and difficulty.

    Attributes:
        image_size: Height and width of both cameras, pixels.
        fps: Control frequency, Hz.
        horizon: Steps until truncation.
        placement: The cube lies within +- this distance of the table's centre, metres.
        rotation: and is turned by up to +- this angle, radians.
    """

    image_size: int = 64
    fps: int = 10
    horizon: int = 48
    placement: float = 0.10
    rotation: float = 0.3
    cameras: tuple[str, ...] = field(default=("agentview", "robot0_eye_in_hand"))


def lift_spec(config: LiftConfig) -> EnvSpec:
    """The task's fixed facts, without starting a simulator."""
    size = (config.image_size, config.image_size)
    return EnvSpec(
        name="Lift",
        instruction="lift the red cube",
        image_sizes={camera.removeprefix("robot0_"): size for camera in config.cameras},
        state_names=_STATE_NAMES,
        action_names=_ACTION_NAMES,
        fps=config.fps,
        horizon=config.horizon,
        embodiment="robosuite_panda",
    )


class LiftEnv:
    """Pick the cube up from the table; success as soon as it is 4 cm above it."""

    def __init__(self, config: LiftConfig) -> None:
        use_headless_gl()
        # A filter, because importing robosuite resets its logger's level.
        logging.getLogger("robosuite_logs").addFilter(_errors_only)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an escape in its banner
            robosuite = import_package("robosuite")
        from robosuite import load_composite_controller_config
        from robosuite.utils.placement_samplers import UniformRandomSampler

        self.config = config
        self.spec = lift_spec(config)
        table_offset = np.array((0.0, 0.0, 0.8))
        self._sampler = UniformRandomSampler(
            name="ObjectSampler",
            x_range=[-config.placement, config.placement],
            y_range=[-config.placement, config.placement],
            rotation=(-config.rotation, config.rotation),
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=table_offset,
            z_offset=0.01,
        )
        self._env = robosuite.make(
            "Lift",
            robots="Panda",
            controller_configs=load_composite_controller_config(controller="BASIC", robot="Panda"),
            placement_initializer=self._sampler,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=config.fps,
            ignore_done=True,
            hard_reset=False,
            seed=0,  # fixes the cube's size; episodes are seeded in reset()
        )
        self._renderer: Any = None

    def reset(self, seed: int) -> None:
        self._env.rng = self._sampler.rng = np.random.default_rng(seed)
        self._env.reset()
        convert_addresses(self._env)

    def observe(self, *, images: bool = True) -> Observation:
        robot = self._env.robots[0]
        data = self._env.sim.data
        site = robot.eef_site_id["right"]
        quat = self._quaternion(data.site_xmat[site])
        gripper = [data.get_joint_qpos(name) for name in robot.gripper["right"].joints]
        state = np.concatenate([data.site_xpos[site], quat, gripper]).astype(np.float32)
        pictures = self._render() if images else {}
        return Observation(images=pictures, state=state, task=self.spec.instruction)

    def step(self, action: NDArray[np.float32]) -> bool:
        self._env.step(np.clip(action, -1.0, 1.0))
        return bool(self._env._check_success())

    def save_state(self) -> SimulatorState:
        return save_state(self._env)

    def restore_state(self, state: SimulatorState) -> None:
        restore_state(self._env, state)

    def privileged(self) -> dict[str, NDArray[np.float64]]:
        data = self._env.sim.data
        return {
            "cube_pos": np.array(data.body_xpos[self._env.cube_body_id]),
            "eef_pos": np.array(data.site_xpos[self._env.robots[0].eef_site_id["right"]]),
        }

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _render(self) -> dict[str, NDArray[np.uint8]]:
        import mujoco

        model, data = self._env.sim.model._model, self._env.sim.data._data
        size = self.config.image_size
        if self._renderer is None:
            # Multisampling halves the speed of software rendering and adds nothing at this size.
            model.vis.quality.offsamples = 0
            try:
                self._renderer = mujoco.Renderer(model, size, size)
            except Exception as error:  # every backend raises its own class
                raise DeasError(gl_failure(error)) from error
            self._visible = mujoco.MjvOption()
            self._visible.geomgroup[:] = (0, 1, 0, 0, 0, 0)  # robosuite's visual meshes
        pictures = {}
        for camera in self.config.cameras:
            self._renderer.update_scene(data, camera=camera, scene_option=self._visible)
            key = IMAGE_PREFIX + camera.removeprefix("robot0_")
            pictures[key] = self._renderer.render().copy()
        return pictures

    @staticmethod
    def _quaternion(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
        from robosuite.utils.transform_utils import mat2quat

        quat = mat2quat(rotation.reshape(3, 3))
        return quat if quat[np.argmax(np.abs(quat))] >= 0 else -quat  # one sign per rotation
