"""Objects made of primitives, and what each collision shape needs to be seen."""

import copy
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError

Vector = NDArray[np.float64]
_UNSEEN = {"contype": "0", "conaffinity": "0", "mass": "0"}
_SIZES = {"box": 3, "ellipsoid": 3, "cylinder": 2}  # numbers that say how large a shape is


def object_mjcf(category: str, about: dict[str, Any], instance: dict[str, Any],
                colors: dict[str, list[float]]) -> str:  # fmt: skip
    """MJCF of one instance of an object category.

    The origin is the centre of its bounding box, which the region ``reg_bbox`` states.

    Args:
        category: Its name, for messages.
        about: ``parts`` as in ``objects.yaml``.
        instance: ``scale`` (3,) of the parts, and colour name to the colour instead of it.
        colors: Name to red, green, blue in 0 to 1.

    Raises:
        DeasError: A shape or a colour that is unknown.
    """
    scale = np.array(instance.get("scale", [1, 1, 1]), float)
    solids = [s for part in about["parts"] for s in _solids(category, part, scale)]
    touching = [s for s in solids if not s["look"]]
    if not touching:
        raise DeasError(f"object category '{category}' has no part that can be touched")
    low = np.min([s["pos"] - s["extent"] for s in touching], axis=0)
    high = np.max([s["pos"] + s["extent"] for s in touching], axis=0)
    centre, half = (low + high) / 2, (high - low) / 2

    root = ET.Element("mujoco", model=category)
    ET.SubElement(root, "asset")
    body = ET.SubElement(ET.SubElement(ET.SubElement(root, "worldbody"), "body"), "body")
    body.set("name", "object")
    ET.SubElement(body, "geom", name="reg_bbox", type="box", pos="0 0 0", size=_text(half))
    for solid in solids:
        color = instance.get(solid["color"], solid["color"])
        if color not in colors:
            raise DeasError(f"object category '{category}': color '{color}' is unknown")
        geom = ET.SubElement(
            body,
            "geom",
            type=solid["shape"],
            size=_text(solid["size"]),
            pos=_text(solid["pos"] - centre),
            quat=_text(solid["quat"]),
            rgba=_text([*colors[color], 1]),
        )
        if solid["look"]:
            geom.set("group", "1")
        elif solid["shape"] == "ellipsoid":
            geom.set("condim", "6")  # with rolling friction: a fruit stays where it is put
    show(root)
    return ET.tostring(root, encoding="unicode")


def show(root: ET.Element) -> None:
    """Make a model visible in place: collision shapes get a twin that is seen and not touched.

    RoboCasa hides what collides (group 0) and shows what does not (group 1); regions, whose names
    start with ``reg_``, are neither seen nor touched.
    """
    for parent in list(root.iter("body")):
        for geom in parent.findall("geom"):
            if geom.get("name", "").startswith("reg_"):
                geom.attrib.update({**_UNSEEN, "group": "1", "rgba": "0 1 0 0"})
            elif geom.get("group") == "1":
                geom.attrib.update(_UNSEEN)
            else:
                twin = copy.deepcopy(geom)
                twin.attrib.pop("name", None)
                twin.attrib.pop("condim", None)
                twin.attrib.update({**_UNSEEN, "group": "1"})
                twin.attrib.pop("density", None)
                geom.set("group", "0")
                parent.append(twin)


def _solids(category: str, part: dict[str, Any], scale: Vector) -> list[dict[str, Any]]:
    """A part as scaled primitives; a ring becomes boxes that stand around a circle."""
    at = np.array(part.get("pos", [0, 0, 0]), float) * scale
    if "ring" in part:
        radius, thick, height = np.array(part["size"], float) * [*scale[:2].mean(keepdims=True), 1,
                                                                scale[2]]  # fmt: skip
        angles = 2 * np.pi * np.arange(part["ring"]) / part["ring"]
        width = (radius + thick) * np.tan(np.pi / part["ring"])
        return [
            {
                "shape": "box",
                "size": np.array([thick, width, height]),
                "pos": at + [radius * np.cos(a), radius * np.sin(a), 0],
                "quat": [np.cos(a / 2), 0, 0, np.sin(a / 2)],
                "extent": np.array([
                    thick * abs(np.cos(a)) + width * abs(np.sin(a)),
                    thick * abs(np.sin(a)) + width * abs(np.cos(a)), height]),
                "color": part["color"],
                "look": part.get("look", False),
            }
            for a in angles
        ]  # fmt: skip
    shape, size = part.get("shape"), np.array(part["size"], float)
    if _SIZES.get(str(shape)) != len(size):
        raise DeasError(
            f"object category '{category}': shape '{shape}' with {len(size)} sizes is unknown: "
            f"use one of {_SIZES}"
        )
    half = size if len(size) == 3 else size[[0, 0, 1]]
    roll, pitch = np.radians(part.get("roll", 0)), np.radians(part.get("pitch", 0))
    about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll),
                        np.cos(roll)]])  # fmt: skip
    about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0,
                        np.cos(pitch)]])  # fmt: skip
    turn = np.abs(about_y @ about_x)
    half = half * (turn.T @ scale)
    quat = [
        np.cos(roll / 2) * np.cos(pitch / 2),
        np.sin(roll / 2) * np.cos(pitch / 2),
        np.cos(roll / 2) * np.sin(pitch / 2),
        -np.sin(roll / 2) * np.sin(pitch / 2),
    ]
    return [
        {
            "shape": shape,
            "size": half if len(size) == 3 else np.array([half[:2].mean(), half[2]]),
            "pos": at,
            "quat": quat,
            "extent": turn @ half,
            "color": part["color"],
            "look": part.get("look", False),
        }
    ]


def _text(numbers: Any) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)
