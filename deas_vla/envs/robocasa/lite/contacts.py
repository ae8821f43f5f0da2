"""Contacts that lite kitchens do without: those between a fixture's moving parts and itself.

A door that is shut lies against its frame, and a drawer in its housing, at every step; the limits
and axes of their joints hold them there all the same. Robot and objects touch all as before.
"""

import itertools
import xml.etree.ElementTree as ET


def spare_own_contacts(xml: str) -> str:
    """Exclude contacts within each fixture of a robosuite model that has joints.

    Objects, which float freely, and the robot keep all of theirs.
    """
    root = ET.fromstring(xml)
    world = root.find("worldbody")
    assert world is not None
    contact = root.find("contact")
    if contact is None:
        contact = ET.SubElement(root, "contact")
    for fixture in world.findall("body"):
        name = fixture.get("name", "")
        jointed = fixture.findall(".//joint") and not fixture.findall(".//freejoint")
        floats = any(joint.get("type") == "free" for joint in fixture.iter("joint"))
        if not jointed or floats or name.startswith(("robot", "mobilebase", "gripper")):
            continue
        parts = list(_parts(fixture, 0, itertools.count(1)))
        for (one, part), (other, another) in itertools.combinations(parts, 2):
            if part != another:
                ET.SubElement(contact, "exclude", body1=one, body2=other)
    return ET.tostring(root, encoding="unicode")


def _parts(body: ET.Element, part: int, numbers: "itertools.count[int]") -> "list[tuple[str, int]]":
    """Bodies that have shapes, each with the number of the rigid part that it belongs to."""
    if body.find("joint") is not None:
        part = next(numbers)
    found = [(body.get("name", ""), part)] if _touches(body) else []
    for child in body.findall("body"):
        found += _parts(child, part, numbers)
    return found


def _touches(body: ET.Element) -> bool:
    return any(geom.get("contype", "1") != "0" for geom in body.findall("geom"))
