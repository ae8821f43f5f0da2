"""Contacts that lite kitchens do without: those between fixtures, a fixture and itself among them.

A door that is shut lies against its frame, and a drawer in its housing, at every step; the limits
and axes of their joints hold them there all the same. Robot and objects touch all as before. Most
pairs of shapes near each other are of fixtures: to look for these contacts alone took a fourteenth
of a control step.
"""

import xml.etree.ElementTree as ET

_ROBOT = ("robot", "mobilebase", "gripper")


def spare_fixture_contacts(xml: str) -> str:
    """Have the fixtures of a robosuite model touch only what is none.

    Of two shapes one has to allow the other by ``conaffinity``: fixtures allow none, while the
    robot, and objects, which float freely, allow all.
    """
    root = ET.fromstring(xml)
    world = root.find("worldbody")
    assert world is not None
    for body in world.findall("body"):
        floats = any(joint.get("type") == "free" for joint in body.iter("joint"))
        floats = floats or body.find(".//freejoint") is not None
        if floats or body.get("name", "").startswith(_ROBOT):
            continue
        for geom in body.iter("geom"):
            geom.set("conaffinity", "0")
    return ET.tostring(root, encoding="unicode")
