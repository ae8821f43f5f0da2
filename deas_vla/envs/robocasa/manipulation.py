"""Scripted experts that move the hand from point to point: drawers, stove knobs, a mug."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deas_vla.envs.env import SimEnv
from deas_vla.envs.robocasa.kitchen import KitchenEnv
from deas_vla.envs.robocasa.reaching import (
    FIST,
    OPEN,
    Pose,
    Vector,
    Waypoint,
    facing,
    from_base,
    hand,
    reached,
    towards,
)
from deas_vla.envs.rollout import Plan
from deas_vla.errors import DeasError


@dataclass(frozen=True)
class ReachExpertConfig:
    """How well the expert does it.

    Attributes:
        sloppiness: Probability that an episode aims beside what it should touch, in [0, 1].
        jitter: Standard deviation of the noise on every motion command.
        speed: Largest motion command; 1 is the controller's limit.
    """

    sloppiness: float = 0.5
    jitter: float = 0.05
    speed: float = 1.0


# What a task's expert plans with: the environment, where the hand is, and by how much it misses
# (0 where it is careful, 1 where it is sloppy).
Planner = Callable[[KitchenEnv, Pose, float], list[Waypoint]]


class ReachExpert:
    """Follows the points that a task's planner gives, and asks for more when they are used up."""

    def __init__(self, config: ReachExpertConfig) -> None:
        self.config = config

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))  # apart from the simulator's own stream
        self._miss = float(self._rng.random() < self.config.sloppiness)
        self._miss *= self._rng.uniform(0.8, 1.2)
        self._path: list[Waypoint] = []
        self._held: Vector | None = None
        self._steps = 0

    def plan(self, env: SimEnv) -> Plan:
        assert isinstance(env, KitchenEnv)
        now = hand(env)
        if self._held is None:
            self._held = now.facing
        self._advance(now)
        if not self._path:
            self._path = PLANNERS[env.spec.name](env, now, self._miss)
        action = towards(self._path[0], now, self._held)
        action[5:11] *= self.config.speed
        action[5:8] += self._rng.normal(0, self.config.jitter, 3)
        action[8:11] += self._rng.normal(0, self.config.jitter / 4, 3)
        self._steps += 1
        return Plan(np.clip(action, -1, 1).astype(np.float32)[None])

    def _advance(self, now: Pose) -> None:
        assert self._held is not None
        while self._path:
            goal = self._path[0]
            if reached(goal, now, self._held) and goal.wait > 0:
                self._path[0] = Waypoint(goal.at, goal.facing, goal.grip, 1e9, goal.wait)
                self._steps = 0
                return
            if self._steps < goal.patience and not (goal.within < 1e8 and reached(goal, now, self._held)):
                return
            self._path.pop(0)
            self._steps = 0


def check_reach_expert(task: str) -> None:
    """DeasError for a task that `ReachExpert` has no planner for."""
    if task not in PLANNERS:
        raise DeasError(f"task '{task}' has no reaching expert: use some of {list(PLANNERS)}")


def _drawer(env: KitchenEnv) -> tuple[Vector, float]:
    """Middle of the running task's drawer handle, and how far the drawer is out, metres."""
    kitchen = env.kitchen
    sim, drawer = kitchen.sim, kitchen.drawer
    handle = sim.data.geom_xpos[sim.model.geom_name2id(drawer.handle_name)]
    out = -float(sim.data.qpos[sim.model.get_joint_qpos_addr(f"{drawer.name}_slidejoint")])
    return from_base(env, handle), out


def _close_drawer(env: KitchenEnv, now: Pose, miss: float) -> list[Waypoint]:
    """From above to before the handle, then push; a sloppy one pushes past the drawer's side."""
    handle, out = _drawer(env)
    side = np.sign(handle[1])
    beside = np.array([0.0, side * miss * (0.5 * float(env.kitchen.drawer.width) + 0.06), 0.0])
    before = handle + [-0.09, 0.0, -0.03] + beside
    above = np.array([before[0], before[1], 0.42])
    through = before + [out + 0.14, 0.0, 0.0]
    lift = np.array([now.at[0] - 0.05, now.at[1], 0.45])
    return [
        Waypoint(lift, within=0.05),
        Waypoint(above, within=0.04),
        Waypoint(before),
        Waypoint(through, patience=80),
    ]


def _open_drawer(env: KitchenEnv, now: Pose, miss: float) -> list[Waypoint]:
    """Take the handle from the front, fingers above and below it, and pull."""
    handle, out = _drawer(env)
    forward = facing([1.0, 0.0, 0.0], [0.0, 0.0, -1.0])
    aim = handle + [0.0, 0.0, 0.07 * miss]
    away = aim + [-0.12, 0.0, 0.0]
    pull = aim + [out - 0.42, 0.0, 0.02]
    return [
        Waypoint(away, forward, OPEN, within=0.03, patience=100),
        Waypoint(aim, forward, OPEN, within=0.012, speed=0.5, patience=60),
        Waypoint(aim, forward, FIST, within=0.05, wait=8),
        Waypoint(pull, forward, FIST, patience=80),
    ]


PLANNERS: dict[str, Planner] = {
    "CloseDrawer": _close_drawer,
    "OpenDrawer": _open_drawer,
}
