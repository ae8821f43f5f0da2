"""RoboCasa365's kitchens with the PandaOmron, in LeRobot's observation and action layout."""

import contextlib
import functools
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import IMAGE_PREFIX, EnvSpec, Observation
from deas_vla.envs.gl import gl_failure
from deas_vla.envs.robocasa.lite import catalogue
from deas_vla.envs.robocasa.lite.looks import PlainLooks
from deas_vla.envs.robocasa.lite.scenes import instance_split, lite_scenes
from deas_vla.envs.robocasa.lite.tree import lite_tree
from deas_vla.envs.robocasa.overlay import AssetTree, mounted, package_tree
from deas_vla.envs.robocasa.tasks import (
    choose_assets,
    extra_assets,
    resolve_tasks,
    robocasa_module,
    task_horizon,
)
from deas_vla.envs.robosuite.addresses import convert_addresses
from deas_vla.envs.robosuite.state import SimulatorState, restore_state, save_state
from deas_vla.errors import DeasError

FPS = 20  # RoboCasa's control frequency, Hz
EMBODIMENT = "robocasa_panda_omron"
ROBOT_TYPE = "PandaOmron"  # of its datasets

# The 12 action dimensions, in the order of LeRobot's and RoboCasa's datasets.
ACTION_PARTS = {
    "base_motion": ("x", "y", "yaw", "torso"),
    "control_mode": ("",),
    "end_effector_position": ("x", "y", "z"),
    "end_effector_rotation": ("x", "y", "z"),
    "gripper_close": ("",),
}
# The 16 state dimensions, with the names under which robosuite observes them.
STATE_PARTS = {
    "base_position": ("robot0_base_pos", "xyz"),
    "base_rotation": ("robot0_base_quat", "xyzw"),
    "end_effector_position_relative": ("robot0_base_to_eef_pos", "xyz"),
    "end_effector_rotation_relative": ("robot0_base_to_eef_quat", "xyzw"),
    "gripper_qpos": ("robot0_gripper_qpos", "01"),
}
_ACTION_NAMES = tuple(
    f"{part}.{axis}".rstrip(".") for part, axes in ACTION_PARTS.items() for axis in axes
)
_STATE_NAMES = tuple(f"{part}.{axis}" for part, (_, axes) in STATE_PARTS.items() for axis in axes)


@dataclass(frozen=True)
class KitchenConfig:
    """Which task in which kitchens, and how it is looked at.

    Attributes:
        task: RoboCasa365's name of the task, or its name of 2024.
        assets: Whose kitchens: ``robocasa``, which have to be downloaded, ``lite``, which come with
            this package, or ``auto``: RoboCasa's where they are there.
        split: RoboCasa's kitchens and object instances: ``pretrain`` (layouts and styles 11 to
            60), ``target`` (ten others, and other objects) or ``all``. Of lite kitchens ``train``
            and ``test``, for which RoboCasa's names are accepted too, ``varied`` (2,304 made out
            of the 16 to train in), ``validation`` (others, to choose settings in) or ``all``.
        layouts: Keep only these layouts of the split; all of them when empty. RoboCasa's have
            numbers, lite ones names.
        styles: Keep only these styles of the split; all of them when empty.
        cameras: Cameras, by RoboCasa's names.
        image_size: Height and width of their pictures, pixels.
        object_registries: Where RoboCasa's objects are sampled from; lite kitchens have their own.
        horizon: Steps until truncation; RoboCasa's own for the task when 0.
    """

    task: str = "CloseDrawer"
    assets: str = "robocasa"
    split: str = "target"
    layouts: tuple[int | str, ...] = ()
    styles: tuple[int | str, ...] = ()
    cameras: tuple[str, ...] = (
        "robot0_agentview_left",
        "robot0_eye_in_hand",
        "robot0_agentview_right",
    )
    image_size: int = 256
    object_registries: tuple[str, ...] = ("objaverse", "lightwheel")
    horizon: int = 0


def kitchen_spec(config: KitchenConfig) -> EnvSpec:
    """The task's fixed facts, without starting a simulator.

    The instruction is the task's name in words; RoboCasa words it anew for each episode ("Close
    the left drawer."), which stands in every observation.

    Raises:
        DeasError: An unknown task or camera.
    """
    (task,) = resolve_tasks([config.task])
    known = known_cameras()
    for camera in config.cameras:
        if camera not in known:
            raise DeasError(f"camera '{camera}' is unknown to RoboCasa: use some of {known}")
    size = (config.image_size, config.image_size)
    return EnvSpec(
        name=task,
        instruction=" ".join(re.findall(r"[A-Z][a-z]*|\d+", task)).lower(),
        image_sizes=dict.fromkeys(config.cameras, size),
        state_names=_STATE_NAMES,
        action_names=_ACTION_NAMES,
        fps=FPS,
        horizon=config.horizon or task_horizon(task),
        embodiment=EMBODIMENT,
        assets=config.assets,
    )


def known_cameras() -> list[str]:
    """Names of all cameras that RoboCasa's kitchens have."""
    return list(robocasa_module("robocasa.utils.camera_utils").CAM_CONFIGS["DEFAULT"])


def scenes(config: KitchenConfig) -> list[tuple[int, int]] | list[tuple[str, str]]:
    """The (layout, style) pairs that episodes are drawn from, each as likely.

    Raises:
        DeasError: An unknown split, or nothing is left of it.
    """
    if config.assets == "lite":
        task = resolve_tasks([config.task])[0]
        return lite_scenes(task, config.split, config.layouts, config.styles)
    registry = robocasa_module("robocasa.models.scenes.scene_registry")
    if config.split == "target":
        pairs = [(k, k) for k in range(1, 11)]
    elif config.split in ("pretrain", "all"):
        group = -2 if config.split == "pretrain" else -3  # as RoboCasa's create_env has them
        styles = registry.unpack_style_ids(group)
        pairs = [(la, st) for la in registry.unpack_layout_ids(group) for st in styles]
    else:
        raise DeasError(f"split '{config.split}' is unknown: use pretrain, target or all")
    kitchens = robocasa_module("robocasa.environments.kitchen.kitchen").REGISTERED_KITCHEN_ENVS
    kitchen = kitchens[resolve_tasks([config.task])[0]]
    left = [
        (layout, style)
        for layout, style in pairs
        if (not config.layouts or layout in config.layouts)
        and (not config.styles or style in config.styles)
        and layout not in kitchen.EXCLUDE_LAYOUTS
        and style not in kitchen.EXCLUDE_STYLES
    ]
    if not left:
        raise DeasError(
            f"no kitchen of split '{config.split}' is left for {config.task} with layouts "
            f"{list(config.layouts)} and styles {list(config.styles)}: choose among layouts "
            f"{sorted({p[0] for p in pairs})} and styles {sorted({p[1] for p in pairs})}, of which "
            f"the task excludes {kitchen.EXCLUDE_LAYOUTS} and {kitchen.EXCLUDE_STYLES}"
        )
    return left


class KitchenEnv:
    """One RoboCasa task over many kitchens.

    Each episode gets a simulator of its own, as its kitchen is another model anyway; so nothing
    of an earlier episode can leak into it. Success is the task's own check after each step, and
    nothing resets by itself.
    """

    def __init__(self, config: KitchenConfig) -> None:
        assets = choose_assets(config.assets, [config.task], config.object_registries)
        self.config = config = replace(config, assets=assets)
        self.spec = kitchen_spec(config)
        self._scenes = scenes(config)
        robosuite = robocasa_module("robosuite")
        _mend_robocasa()
        self._make = robosuite.make
        self._controllers = robosuite.load_composite_controller_config(robot="PandaOmron")
        self._unmap = robocasa_module("robocasa.wrappers.gym_wrapper").PandaOmronKeyConverter
        self._looks = PlainLooks()
        self._tree: AssetTree | None = None
        self._kitchen: Any = None
        self._renderer: Any = None

    @property
    def kitchen(self) -> Any:
        """RoboCasa's environment of the running episode, for scripted experts and checks."""
        if self._kitchen is None:
            raise RuntimeError("no episode is running: call reset() first")
        return self._kitchen

    @property
    def scene(self) -> tuple[int | str, int | str]:
        """Layout and style of the running episode."""
        if self.config.assets == "lite":
            return self._scene
        return int(self.kitchen.layout_id), int(self.kitchen.style_id)

    def reset(self, seed: int) -> None:
        self._end_episode()
        with self._assets():
            self._kitchen = self._make(
                self.spec.name,
                robots="PandaOmron",
                controller_configs=self._controllers,
                control_freq=FPS,
                seed=seed,
                ignore_done=True,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                renderer="mujoco",
                **self._origin(seed),
            )
            building = (
                self._looks.building(self._kitchen)
                if self.config.assets == "lite"
                else contextlib.nullcontext()
            )
            with building:
                self._raw = self._kitchen.reset()
        self._spare_sensors()
        convert_addresses(self.kitchen)
        self._task = self._kitchen.get_ep_meta()["lang"] or self.spec.instruction

    def _origin(self, seed: int) -> dict[str, Any]:
        """Kitchens and objects of an episode, as robosuite.make takes them."""
        split = self.config.split
        if self.config.assets == "lite":
            choice = np.random.default_rng((seed, 2)).integers(len(self._scenes))
            self._scene = layout, style = self._scenes[choice]
            return {
                "layout_and_style_ids": [
                    (catalogue.layout(str(layout)), catalogue.style(str(style)))
                ],
                "obj_instance_split": instance_split(split),
                "obj_registries": (catalogue.REGISTRY,),
            }
        return {
            "layout_and_style_ids": self._scenes,
            "obj_instance_split": None if split == "all" else split,
            "obj_registries": self.config.object_registries,
        }

    @contextlib.contextmanager
    def _assets(self) -> Iterator[None]:
        """While a kitchen is built, RoboCasa finds the assets of the configuration."""
        extra = extra_assets()
        if self.config.assets == "robocasa" and extra is None:
            yield
            return
        if self._tree is None:
            self._tree = lite_tree() if extra is None or self.config.assets == "lite" else (
                package_tree(extra)
            )  # fmt: skip
        with mounted(self._tree):
            yield

    def _spare_sensors(self) -> None:
        """Switch off the sensors that no state is made of, which each physics step asks in turn."""
        for name in self.kitchen.observation_names - {key for key, _ in STATE_PARTS.values()}:
            self.kitchen.modify_observable(name, "enabled", False)

    def observe(self, *, images: bool = True) -> Observation:
        state = np.concatenate([self._raw[key] for key, _ in STATE_PARTS.values()])
        pictures = self._render() if images else {}
        return Observation(images=pictures, state=state.astype(np.float32), task=self._task)

    def step(self, action: NDArray[np.float32]) -> bool:
        self._raw, _, _, _ = self.kitchen.step(self._controls(np.asarray(action)))
        return bool(self.kitchen._check_success())

    def save_state(self) -> tuple[SimulatorState, Any]:
        return save_state(self.kitchen), deepcopy(self._raw)

    def restore_state(self, state: tuple[SimulatorState, Any]) -> None:
        simulator, raw = state
        restore_state(self.kitchen, simulator)
        self._raw = deepcopy(raw)

    def privileged(self) -> dict[str, NDArray[np.float64]]:
        """Poses in the world: positions (3,) in metres, orientations as matrices (3, 3)."""
        data, robot = self.kitchen.sim.data, self.kitchen.robots[0]
        site = robot.eef_site_id["right"]
        base = self.kitchen.sim.model.site_name2id("mobilebase0_center")
        return {
            "eef_pos": np.array(data.site_xpos[site]),
            "eef_mat": np.array(data.site_xmat[site]).reshape(3, 3),
            "base_pos": np.array(data.site_xpos[base]),
            "base_mat": np.array(data.site_xmat[base]).reshape(3, 3),
        }

    def close(self) -> None:
        self._end_episode()
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    def _end_episode(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._kitchen is not None:
            self._kitchen.close()
            self._kitchen = None

    def _controls(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """LeRobot's flat action (12,) as robosuite's, whose parts stand in another order."""
        parts, start = {}, 0
        for name, axes in ACTION_PARTS.items():
            parts[f"action.{name}"] = action[start : start + len(axes)]
            start += len(axes)
        commands = self._unmap.unmap_action(parts)
        controller = self.kitchen.robots[0].composite_controller
        controls = np.zeros(controller.action_limits[0].shape)
        for part in controller.part_controllers:
            first, last = controller._action_split_indexes[part]
            controls[first:last] = commands[f"robot0_{part}"]
        controls[-1] = commands["robot0_base_mode"]
        return controls

    def _render(self) -> dict[str, NDArray[np.uint8]]:
        if self._renderer is None:
            self._start_renderer()
        pictures = {}
        for camera in self.config.cameras:
            data = self.kitchen.sim.data._data
            self._renderer.update_scene(data, camera=camera, scene_option=self._visible)
            pictures[IMAGE_PREFIX + camera] = self._renderer.render().copy()
        return pictures

    def _start_renderer(self) -> None:
        import mujoco

        model, size = self.kitchen.sim.model._model, self.config.image_size
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except Exception as error:  # every backend raises its own class
            raise DeasError(gl_failure(error)) from error
        self._visible = mujoco.MjvOption()
        self._visible.geomgroup[0] = 0  # collision shapes


def _mend_robocasa() -> None:
    """Make three habits fit for repeatable and frequent episodes; idempotent.

    Counters drop repeated regions through a set of XML elements, whose order follows memory
    addresses, and then draw one by index: the same seed can put an object elsewhere in another
    process. And every reset parses some seventy YAML files in pure Python, more than half of its
    time; libyaml reads the same. And robosuite puts the limits of all controllers together three
    times in each of a control step's 25 physics steps, a tenth of its time, though they stay.
    """
    import yaml

    class FastYaml:
        """What RoboCasa uses of the yaml module."""

        @staticmethod
        def safe_load(stream: Any) -> Any:
            return yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    robocasa_module("robocasa.models.fixtures.counter").set = dict.fromkeys  # keeps the order
    for name in ("models.scenes.scene_utils", "models.scenes.kitchen_arena", "utils.env_utils"):
        robocasa_module(f"robocasa.{name}").yaml = FastYaml
    controllers = robocasa_module("robosuite.controllers.composite.composite_controller")
    for kind in (controllers.CompositeController, controllers.HybridMobileBase):
        limits = vars(kind)["action_limits"]
        if isinstance(limits, property):  # once for each controller, whose attribute it then is
            assert limits.fget is not None
            kept = functools.cached_property(limits.fget)
            kept.__set_name__(kind, "action_limits")
            kind.action_limits = kept
