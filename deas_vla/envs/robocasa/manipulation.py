"""Scripted experts that move the hand from point to point: drawers, a microwave, knobs, a mug."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import SimEnv
from deas_vla.envs.robocasa.experts import HingedPart, hinged_part, signed_angle
from deas_vla.envs.robocasa.kitchen import KitchenEnv
from deas_vla.envs.robocasa.landmarks import landmark
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
        sloppiness: Probability that an episode leaves off too early, or aims beside what it should
            touch, in [0, 1].
        jitter: Standard deviation of the noise on every motion command.
        speed: Largest motion command; 1 is the controller's limit.
    """

    sloppiness: float = 0.5
    jitter: float = 0.05
    speed: float = 1.0


_DOWN = facing([0.0, 0.0, -1.0], [0.0, 1.0, 0.0])
_FOREVER = 10_000  # steps: longer than any episode
_LEFT_OPEN = 0.13  # metres: of a drawer less open than that a sloppy push leaves off
_LEFT_AJAR = 0.6  # radians, of a door likewise
_FOLDED = 0.26  # metres before the base: what is nearer the arm cannot fold to

# What a task's expert plans with: the environment, where the hand is, and how sloppy the episode is
# (0 where it is careful, about 1 where it is not).
Planner = Callable[[KitchenEnv, Pose, float], list[Waypoint]]


class ReachExpert:
    """Follows the points that a task's planner gives, and asks for more when they are used up.

    Attributes:
        meant: float32 (12,), the last command without the jitter.
    """

    meant: NDArray[np.float32]

    def __init__(self, config: ReachExpertConfig) -> None:
        self.config = config

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))  # apart from the simulator's own stream
        self._sloppy = float(self._rng.random() < self.config.sloppiness)
        self._sloppy *= self._rng.uniform(0.8, 1.2)
        self._path: list[Waypoint] = []
        self._held: Vector | None = None
        self._steps = self._waited = 0

    def plan(self, env: SimEnv) -> Plan:
        assert isinstance(env, KitchenEnv)
        now = hand(env)
        if self._held is None:
            self._held = now.facing
        self._advance(now)
        if not self._path:
            self._path = PLANNERS[env.spec.name](env, now, self._sloppy)
        action = towards(self._path[0], now, self._held)
        action[5:11] *= self.config.speed
        self.meant = np.clip(action, -1, 1).astype(np.float32)
        action[5:8] += self._rng.normal(0, self.config.jitter, 3)
        action[8:11] += self._rng.normal(0, self.config.jitter / 4, 3)
        self._steps += 1
        return Plan(np.clip(action, -1, 1).astype(np.float32)[None])

    def replan(self) -> None:
        """Forget the way that was planned; the next one starts from where the hand then is."""
        self._path = []
        self._steps = self._waited = 0

    def _advance(self, now: Pose) -> None:
        """Drop the points that are reached and waited at, and those that take too long."""
        assert self._held is not None
        while self._path:
            goal = self._path[0]
            if self._waited or reached(goal, now, self._held):
                self._waited += 1
                if self._waited <= goal.wait:
                    return
            elif self._steps < goal.patience:
                return
            self._path.pop(0)
            self._steps = self._waited = 0


def check_reach_expert(task: str) -> None:
    """DeasError for a task that `ReachExpert` has no planner for."""
    if task not in PLANNERS:
        raise DeasError(f"task '{task}' has no reaching expert: use some of {list(PLANNERS)}")


def _drawer(env: KitchenEnv) -> tuple[Vector, float]:
    """Middle of the running task's drawer handle, and how far the drawer is out, metres."""
    sim, joint = env.kitchen.sim, f"{env.kitchen.drawer.name}_slidejoint"
    out = -float(sim.data.qpos[sim.model.get_joint_qpos_addr(joint)])
    return from_base(env, landmark(env)), out


def _close_drawer(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """From above to before the handle, then push; a sloppy one leaves off too early and rests."""
    handle, out = _drawer(env)
    before = handle + [-0.09, 0.0, -0.03]
    if out < _LEFT_OPEN * sloppy:
        beside = np.array([before[0], 0.5 * before[1], before[2]])
        return [Waypoint(beside, patience=_FOREVER, wait=_FOREVER)]
    push = Waypoint(before + [out + 0.14, 0.0, 0.0], patience=4 if sloppy else 80)
    if np.linalg.norm((now.at - before)[1:]) < 0.06 and now.at[0] < handle[0] + 0.03:  # there
        return [push] if now.at[0] > before[0] else [Waypoint(before), push]
    lift = np.array([now.at[0] - 0.05, now.at[1], 0.45])
    above = np.array([before[0], before[1], 0.42])
    return [Waypoint(lift, within=0.05), Waypoint(above, within=0.04), Waypoint(before), push]


def _close_microwave(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """Around the open door to its outer side, then an arc that shuts it.

    A sloppy one leaves off before the door is shut, and rests below it.
    """
    door = hinged_part(env)
    door = replace(door, radius=0.7 * door.radius)  # beside the handle, not on it
    if door.face < _LEFT_AJAR * sloppy:
        return [Waypoint(now.at + [-0.1, 0.0, -0.2], patience=_FOREVER, wait=_FOREVER)]
    behind = _behind(env, door)
    start = 0.1 / door.radius if behind is None else min(behind, 0.1)
    sweep = _sweep(env, door, door.face + start)
    if behind is not None:
        return sweep[1:3] if sloppy else sweep[1:]  # a sloppy one looks again
    back = min(now.at[0], float(door.nearest(env.privileged())) - 0.08)
    beside = np.array([back, *sweep[0].at[1:]])
    return [
        Waypoint(np.array([back, now.at[1], max(now.at[2], beside[2])]), within=0.03),
        Waypoint(beside, within=0.03),
        *(sweep[:2] if sloppy else sweep),
    ]


def _behind(env: KitchenEnv, door: HingedPart) -> float | None:
    """Radians by which the hand is on the outer side of an open door; None where it is not."""
    out = env.privileged()["eef_pos"] - door.anchor
    out -= (out @ door.axis - np.mean(door.axial)) * door.axis
    behind = signed_angle(door.closed, out, door.axis) - door.face
    beside = 0.0 < behind < 0.5 and 0.5 < np.linalg.norm(out) / door.radius < 1.2
    return behind if beside else None


def _sweep(env: KitchenEnv, door: HingedPart, start: float) -> list[Waypoint]:
    """Along an arc about the hinge, from an angle to beyond where the door is shut."""
    angles = np.arange(start, -0.1 / door.radius, -0.06 / door.radius)
    points = [door.point(float(angle), float(np.mean(door.axial))) for angle in angles]
    return [Waypoint(from_base(env, at), within=0.04, patience=12) for at in points]


def _open_drawer(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """Take the handle from the front, fingers above and below it, and pull.

    The wrist turns the way that lets the arm come down on the handle's side of the robot.
    """
    handle, out = _drawer(env)
    down = -1.0 if handle[1] > 0 else 1.0
    forward = facing([1.0, 0.0, 0.0], [0.0, 0.0, down])
    aim = handle + [0.0, 0.0, 0.07 * sloppy]
    away = aim + [-0.12, 0.0, 0.0]
    pull = aim + [out - 0.42, 0.0, 0.02]
    take = [Waypoint(aim, forward, FIST, within=0.05, wait=8),
            Waypoint(pull, forward, FIST, patience=80)]  # fmt: skip
    if out > 0.02 and np.linalg.norm(now.at - aim) < 0.04:
        return take  # it is in the hand
    return [
        Waypoint(away, forward, OPEN, within=0.03, patience=100),
        Waypoint(aim, forward, OPEN, within=0.012, speed=0.5, patience=60),
        *take,
    ]


def _turn_on(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """Strokes of the fist, from right to left, against the upper end of the knob's bar.

    Seen from the robot a knob opens counter-clockwise. A sloppy one leaves off before the stroke.
    """
    at = from_base(env, landmark(env))
    if at[0] < _FOLDED:
        return [Waypoint(now.at, drive=-0.5, patience=4)]
    first, last = at + [0.0, -0.065, 0.004], at + [0.0, 0.07, 0.004]
    above = np.array([0.0, 0.0, 0.1])
    come = [
        Waypoint(first + above, _DOWN, within=0.02, patience=80),
        Waypoint(first, _DOWN, within=0.01, speed=0.6, patience=40),
    ]
    stroke = [
        Waypoint(last, _DOWN, within=0.012, patience=40),
        Waypoint(last + above, _DOWN, within=0.04, patience=20),
    ]
    return come + (_leave(at, first) if sloppy else stroke)


def _turn_off(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """Round and round the knob clockwise: over it to the right, then down on its right side.

    The first half turns a bar that stands, the second one that lies. Neither asks how the bar lies,
    which a policy would have to see, and the way is a loop, so that where the hand is says what
    comes next. A sloppy one leaves off before the first half.
    """
    at = from_base(env, landmark(env))
    if at[0] < _FOLDED:
        return [Waypoint(now.at, drive=-0.5, patience=4)]
    left, right, over = 0.065, -0.065, 0.018
    side = -0.03
    first = at + [0.0, left, over]
    come = [
        Waypoint(first + [0.0, 0.0, 0.1], _DOWN, within=0.02, patience=80),
        Waypoint(first, _DOWN, within=0.01, speed=0.6, patience=40),
    ]
    halves = [
        Waypoint(at + [0.0, right, over], _DOWN, within=0.015, patience=30),
        Waypoint(at + [0.0, right, 0.06], _DOWN, within=0.015, patience=20),
        Waypoint(at + [0.0, side, 0.05], _DOWN, within=0.015, patience=20),
        Waypoint(at + [0.0, side, -0.015], _DOWN, within=0.01, patience=20),
        Waypoint(at + [-0.08, side, 0.015], _DOWN, within=0.03, patience=15),
        Waypoint(at + [-0.06, 0.02, 0.11], _DOWN, within=0.04, patience=20),
    ]
    return come + (_leave(at, first) if sloppy else halves)


def _leave(knob: Vector, now: Vector) -> list[Waypoint]:
    """Up from beside the knob, and to rest farther from the robot's middle than the way there."""
    away = np.array([-0.08, 0.12 * np.sign(knob[1]), 0.12])
    return [
        Waypoint(now + [0.0, 0.0, 0.1], _DOWN, within=0.03, patience=20),
        Waypoint(knob + away, _DOWN, patience=_FOREVER, wait=_FOREVER),
    ]


def _place_mug(env: KitchenEnv, now: Pose, sloppy: float) -> list[Waypoint]:
    """Take the mug below its rim, from the front and above, and put it under the dispenser.

    The fingers close beside the handle or above it; the mug keeps its turn. A sloppy one aims
    beside the mug.
    """
    kitchen = env.kitchen
    sim, prefix = kitchen.sim, kitchen.coffee_machine.naming_prefix
    mug = from_base(env, landmark(env))
    site = from_base(
        env, sim.data.site_xpos[sim.model.site_name2id(f"{prefix}receptacle_place_site")]
    )
    if mug[0] < 0.42:  # so near the hand cannot come down to it
        return [Waypoint(now.at, grip=OPEN, drive=-0.5, patience=4)]
    half = float(kitchen.objects["obj"].size[2]) / 2
    tilted = facing([0.75, 0.0, -0.66], [0.0, 1.0, 0.0])
    rim = np.array([0.0, 0.0, half - 0.012])
    back = np.array([-0.10, 0.0, 0.09])  # along the fingers, away from what they hold
    take = mug + rim + [0.0, 0.06 * sloppy, 0.0]
    put = np.array([site[0], site[1], site[2] + half]) + rim
    if np.linalg.norm(mug[:2] - site[:2]) < 0.04 and mug[2] < site[2] + half + 0.03:
        return [Waypoint(now.at, tilted, OPEN, within=0.05, wait=6),
                Waypoint(now.at + 3 * back, tilted, OPEN, within=0.03, patience=60)]  # fmt: skip
    return [
        Waypoint(take + 1.2 * back, tilted, OPEN, within=0.02, patience=80),
        Waypoint(take, tilted, OPEN, within=0.01, speed=0.5),
        Waypoint(take, tilted, FIST, within=0.03, wait=8),
        Waypoint(take + [-0.02, 0.0, 0.06], tilted, FIST, within=0.02),
        Waypoint(put + [-0.16, 0.0, 0.05], tilted, FIST, within=0.02),
        Waypoint(put + [0.0, 0.0, 0.035], tilted, FIST, within=0.012, speed=0.6),
        Waypoint(put + [0.0, 0.0, 0.004], tilted, FIST, within=0.008, speed=0.4, patience=25),
        Waypoint(put, tilted, OPEN, within=0.05, wait=6),
        Waypoint(put + 3.2 * back, tilted, OPEN, within=0.03),
    ]


PLANNERS: dict[str, Planner] = {
    "CoffeeSetupMug": _place_mug,
    "CloseDrawer": _close_drawer,
    "CloseMicrowave": _close_microwave,
    "OpenDrawer": _open_drawer,
    "TurnOnStove": _turn_on,
    "TurnOffStove": _turn_off,
}
