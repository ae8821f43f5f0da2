"""Scripted experts for kitchen tasks in which something hinged has to be closed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import SimEnv
from deas_vla.envs.robocasa.kitchen import KitchenEnv
from deas_vla.envs.rollout import Plan
from deas_vla.errors import DeasError

Vector = NDArray[np.float64]

# Task to the joint that has to be brought back to where it is closed.
_JOINTS: dict[str, Callable[[Any], str]] = {
    "CloseStandMixerHead": lambda kitchen: kitchen.stand_mixer._joint_names["head"],
    "CloseMicrowave": lambda kitchen: next(iter(kitchen.fxtr.door_joint_names)),
    "CloseElectricKettleLid": lambda kitchen: kitchen.electric_kettle._joint_names["lid"],
}


@dataclass(frozen=True)
class SweepExpertConfig:
    """How well the expert does it.

    Attributes:
        sloppiness: Probability that an episode sweeps beside the hinged part, in [0, 1].
        aim_error: Range by which such an episode passes the part's near edge, metres.
        speed: Largest action magnitude; 1 is the controller's limit.
        jitter: Standard deviation of the noise on every motion command.
    """

    sloppiness: float = 0.5
    aim_error: tuple[float, float] = (0.04, 0.08)
    speed: float = 1.0
    jitter: float = 0.1


class SweepExpert:
    """Reach behind a raised lid, head or door and sweep it shut around its hinge."""

    METRES_PER_ACTION = 0.05  # of the PandaOmron's arm controller
    CLEARANCE = 0.06  # between the part and the closed fingers before the sweep, metres
    PUSH = 0.05  # how far beyond the closed position the sweep aims, metres
    STRIDE = 0.04  # between the sweep's waypoints, metres
    REACHED = 0.03  # a waypoint counts as reached from here, metres

    def __init__(self, config: SweepExpertConfig) -> None:
        self.config = config

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))  # apart from the simulator's own stream
        self._sloppy = self._rng.random() < self.config.sloppiness
        self._error = self._rng.uniform(*self.config.aim_error)
        self._path: list[Vector] | None = None

    def plan(self, env: SimEnv) -> Plan:
        assert isinstance(env, KitchenEnv)
        world = env.privileged()
        if self._path is None:
            self._path = self._waypoints(env)
        while (
            len(self._path) > 1 and np.linalg.norm(self._path[0] - world["eef_pos"]) < self.REACHED
        ):
            self._path.pop(0)
        error = world["base_mat"].T @ (self._path[0] - world["eef_pos"])
        motion = np.clip(error / self.METRES_PER_ACTION, -1, 1) * self.config.speed
        action = np.zeros(12, dtype=np.float32)
        action[5:8] = motion + self._rng.normal(0, self.config.jitter, 3)
        action[8:11] = self._rng.normal(0, self.config.jitter / 10, 3)
        action[11] = 1.0  # a fist
        return Plan(np.clip(action, -1, 1)[None])

    def _waypoints(self, env: KitchenEnv) -> list[Vector]:
        """The way in, then an arc from behind the raised part to beyond where it is closed."""
        part, world = hinged_part(env), env.privileged()
        along = float(np.mean(part.axial))
        if self._sloppy:  # on the robot's side, where nothing is in the way
            forward = np.sign(world["base_mat"][:, 0] @ part.axis)
            near = part.axial[0] if forward > 0 else part.axial[1]
            along = float(near - forward * self._error)
        angles = np.arange(
            part.face + self.CLEARANCE / part.radius,
            -self.PUSH / part.radius,
            -self.STRIDE / part.radius,
        )
        arc = [part.point(float(angle), along) for angle in angles]
        return [*self._approach(world, arc[0], part), *arc]

    def _approach(self, world: dict[str, Vector], goal: Vector, part: "HingedPart") -> list[Vector]:
        """Around the part on the robot's side: back a little, across, then in."""
        to_base, origin = world["base_mat"].T, world["base_pos"]
        eef, end = to_base @ (world["eef_pos"] - origin), to_base @ (goal - origin)
        front = min(eef[0], part.nearest(world) - 0.08)
        points = [(front, eef[1], max(eef[2], end[2])), (front, end[1], end[2])]
        return [origin + world["base_mat"] @ np.array(point) for point in points]


@dataclass(frozen=True)
class HingedPart:
    """A lid, head or door in cylinder coordinates around its hinge.

    Attributes:
        anchor: A point of the hinge, world (3,).
        axis: Its direction (3,), such that angles grow as the part opens.
        closed: Unit vector (3,) from the hinge along which the part's middle lies when closed.
        radius: Distance from the hinge at which to push.
        face: Angle of the face that is pushed, radians above where it is when closed.
        axial: Extent of the part along the axis, metres.
        corners: Corners of its shapes, world (n, 3).
    """

    anchor: Vector
    axis: Vector
    closed: Vector
    radius: float
    face: float
    axial: tuple[float, float]
    corners: Vector

    def point(self, angle: float, along: float) -> Vector:
        """World position at ``angle`` and the pushing radius, ``along`` the axis."""
        return self.anchor + self.radius * rotate(self.closed, self.axis, angle) + along * self.axis

    def nearest(self, world: dict[str, Vector]) -> float:
        """The part's smallest distance ahead of the robot's base."""
        return float(((self.corners - world["base_pos"]) @ world["base_mat"][:, 0]).min())


def check_expert(task: str) -> None:
    """DeasError for a task that no scripted expert here can do."""
    if task not in _JOINTS:
        raise DeasError(f"task '{task}' has no scripted expert: use some of {list(_JOINTS)}")


def hinged_part(env: KitchenEnv) -> HingedPart:
    """Measure what the running task wants closed.

    Raises:
        DeasError: The task is none that the sweeping expert knows.
    """
    check_expert(env.spec.name)
    model, data = env.kitchen.sim.model._model, env.kitchen.sim.data._data
    joint = model.joint(_JOINTS[env.spec.name](env.kitchen)).id
    low, high = model.jnt_range[joint]
    value = float(data.qpos[model.jnt_qposadr[joint]])
    shut = low if abs(low) < abs(high) else high  # hinged parts are closed at 0
    opening = 1.0 if value > shut else -1.0
    axis = opening * np.array(data.xaxis[joint])
    anchor = np.array(data.xanchor[joint])
    corners = _corners(model, data, int(model.jnt_bodyid[joint]))
    along = (corners - anchor) @ axis
    radial = corners - anchor - along[:, None] * axis
    distance = np.linalg.norm(radial, axis=1)
    middle = radial[distance > 0.75 * distance.max()].mean(axis=0)
    middle /= np.linalg.norm(middle)
    # The outer half on this side of the hinge: some mixers have a counterweight behind it.
    far = (distance > 0.6 * distance.max()) & (radial @ middle > 0.5 * distance)
    closed = rotate(middle, axis, -abs(value - shut))
    angles = [signed_angle(closed, vector, axis) for vector in radial[far]]
    return HingedPart(
        anchor=anchor,
        axis=axis,
        closed=closed,
        radius=0.85 * float(distance.max()),
        face=float(max(angles)),
        axial=(float(along[far].min()), float(along[far].max())),
        corners=corners,
    )


def rotate(vector: Vector, axis: Vector, angle: float) -> Vector:
    """``vector`` turned around the unit vector ``axis`` by ``angle`` (Rodrigues)."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned = cos * vector + sin * np.cross(axis, vector) + (1 - cos) * (axis @ vector) * axis
    return np.asarray(turned)


def signed_angle(start: Vector, end: Vector, axis: Vector) -> float:
    """Angle from ``start`` to ``end`` around ``axis``, -pi to pi."""
    return float(np.arctan2(np.cross(start, end) @ axis, start @ end))


def _corners(model: Any, data: Any, body: int) -> Vector:
    """Corners of the boxes around all colliding shapes of a body and of what hangs on it."""
    members = {body}
    for child in range(body + 1, model.nbody):  # parents come before children
        if model.body_parentid[child] in members:
            members.add(child)
    signs = np.array(list(np.ndindex(2, 2, 2))) * 2 - 1
    corners = []
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] in members and model.geom_contype[geom]:
            centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
            local = centre + half * signs
            corners.append(data.geom_xpos[geom] + local @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(corners)
