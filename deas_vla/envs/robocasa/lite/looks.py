"""Pictures of lite kitchens in a third of the time: what is drawn is simpler, physics is the same.

The robot is drawn by its collision shapes, which have a hundredth of the triangles. Bodies whose
mass came from the shapes that go get it stated instead, as MuJoCo computed it with them. Boxes are
drawn with two triangles a face, nothing reflects, and edges are not smoothed.
"""

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import numpy as np

from deas_vla.envs.robocasa.lite.contacts import spare_fixture_contacts
from deas_vla.envs.robocasa.tasks import robocasa_module

_QUALITY = {"numquads": "1", "numslices": "16", "numstacks": "8", "offsamples": "0"}
_UNTOUCHED = {"contype": "0", "conaffinity": "0", "mass": "0"}
_COLORS = {
    "gripper": "0.25 0.26 0.28 1",
    "robot": "0.9 0.91 0.92 1",
    "mobilebase": "0.4 0.42 0.45 1",
}


class PlainLooks:
    """Rewrites robosuite's models before they are compiled; one of these serves many episodes."""

    def __init__(self) -> None:
        self._inertia: dict[str, dict[str, str]] = {}  # body to what states its mass

    @contextlib.contextmanager
    def building(self, kitchen: Any) -> Iterator[None]:
        """Have a robosuite environment build models that are quick to draw, from the block on.

        Inside the block robosuite also skips compiling the robot by itself, for whole-body inverse
        kinematics that no wheeled robot uses: it takes longer than the rest of the kitchen.
        """
        kitchen.set_xml_processor(self._rewrite)
        kitchen.set_xml_processor(spare_fixture_contacts)
        robots = robocasa_module("robosuite.models.robots.robot_model").RobotModel
        before, robots.set_mujoco_model = robots.set_mujoco_model, lambda *_: None
        try:
            yield
        finally:
            robots.set_mujoco_model = before

    def _rewrite(self, xml: str) -> str:
        root = ET.fromstring(xml)
        robots = [body for body in root.iter("body") if _part(body.get("name", "")) is not None]
        heavy = [
            b for b in robots if b.find("inertial") is None and next(_looks(b), None) is not None
        ]
        missing = {b.get("name", "") for b in heavy} - self._inertia.keys()
        if missing:
            self._inertia.update(_inertia(xml, missing))
        for body in robots:
            _replace_looks(body)
        for body in heavy:
            body.insert(0, ET.Element("inertial", self._inertia[body.get("name", "")]))
        used = {geom.get("mesh") for geom in root.iter("geom")}
        assets = root.find("asset")
        assert assets is not None
        for mesh in assets.findall("mesh"):
            if mesh.get("name") not in used:
                assets.remove(mesh)
        for material in assets.findall("material"):
            material.set("reflectance", "0")
        visual = root.find("visual")
        visual = visual if visual is not None else ET.SubElement(root, "visual")
        ET.SubElement(visual, "quality", _QUALITY)
        return ET.tostring(root, encoding="unicode")


def _part(name: str) -> str | None:
    """Which part of the robot a body or mesh belongs to, by robosuite's prefixes."""
    return next((part for part in _COLORS if name.startswith(part)), None)


def _looks(body: ET.Element) -> Iterator[ET.Element]:
    """The meshes of a body that are seen and not touched."""
    for geom in body.findall("geom"):
        if geom.get("group") == "1" and geom.get("type") == "mesh":
            yield geom


def _replace_looks(body: ET.Element) -> None:
    """Show a body's collision shapes instead of its visual meshes.

    The meshes' names stay, as dots that are never drawn: robosuite and RoboCasa look them up.
    """
    looks = list(_looks(body))
    shapes = [g for g in body.findall("geom") if g.get("group") in (None, "0")]
    if not looks or not shapes:
        return
    for look in looks:
        name = look.get("name", "")
        look.attrib.clear()
        look.attrib.update(name=name, type="sphere", size="0.001", **_UNTOUCHED, group="5")
    color = _COLORS[str(_part(body.get("name", "")))]
    for shape in shapes:
        kept = ("name", "type", "pos", "quat", "size", "mesh")
        seen = {key: value for key, value in shape.attrib.items() if key in kept}
        seen["name"] = f"{seen.get('name', body.get('name'))}_seen"
        if seen.get("mesh", "").endswith("link1"):  # its collision mesh is as fine as its looks
            seen["type"] = "capsule"
        seen.update(_UNTOUCHED, group="1", rgba=color)
        body.append(ET.Element("geom", seen))


def _inertia(xml: str, bodies: set[str]) -> dict[str, dict[str, str]]:
    import mujoco

    model = mujoco.MjModel.from_xml_string(xml)
    return {
        name: {
            "mass": repr(float(model.body(name).mass[0])),
            "pos": _text(model.body(name).ipos),
            "quat": _text(model.body(name).iquat),
            "diaginertia": _text(model.body(name).inertia),
        }
        for name in bodies
    }


def _text(numbers: Any) -> str:
    return " ".join(repr(float(n)) for n in np.asarray(numbers))
