"""What RoboCasa needs of layouts, styles and appliances, checked before MuJoCo compiles them."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deas_vla.envs.robocasa.lite import catalogue
from deas_vla.errors import DeasError


@dataclass(frozen=True)
class Needs:
    """Names that RoboCasa's class of a fixture looks up in its model.

    Attributes:
        joints: In bodies of their own below the body ``object``.
        geoms: Anywhere.
        sites: In the body ``object`` itself.
        moving_sites: In a body below it.
        regions: Geoms whose names are these after ``reg_``.
    """

    joints: tuple[str, ...] = ()
    geoms: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    moving_sites: tuple[str, ...] = ()
    regions: tuple[str, ...] = ("main",)


NEEDS = {
    "microwave": Needs(
        joints=("microjoint",),
        geoms=("door_handle_main", "start_button", "stop_button"),
        regions=("main", "tray"),
    ),
    "coffee_machine": Needs(geoms=("start_button",), sites=("receptacle_place_site",)),
    "fridge_bottom_freezer": Needs(
        joints=("fridge_door_joint", "freezer0_door_joint"),
        geoms=("fridge_door_handle_main",),
        regions=("main", "fridge_shelf0"),
    ),
    "sink": Needs(
        joints=("handle_joint", "handle_temp_joint", "spout_joint"),
        moving_sites=("water",),
        regions=("main", "basin"),
    ),
    "stove": Needs(),  # and whatever `_check_burners` wants
}
# Fixtures that RoboCasa makes itself, to the kind in the registry that styles them.
_MADE = {
    "wall": "wall",
    "floor": "floor",
    "counter": "counter",
    "stack": "cabinet",
    **dict.fromkeys(
        ("single_cabinet", "hinge_cabinet", "open_cabinet", "panel_cabinet", "drawer"), "cabinet"
    ),
}
_REFERENCES = ("interior_obj", "align_to", "attach_to", "stack_on")


def check_appliance(kind: str, model: ET.Element, source: str) -> None:
    """Check that a model has what RoboCasa's class of fixture looks for.

    Args:
        kind: Type of the fixture, such as ``microwave``.
        model: Root of its MJCF.
        source: Where it came from, for the message.

    Raises:
        DeasError: Something is missing; the fixture, what and where.
    """
    body = model.find("./worldbody/body/body")
    if body is None:
        raise DeasError(f"{kind} in {source}: no body inside worldbody/body, which holds it all")
    needs = NEEDS[kind]
    below = [part for part in body.iter("body") if part is not body]
    present = {
        "joint": {j.get("name") for part in below for j in part.findall("joint")},
        "geom": {g.get("name") for g in body.iter("geom")},
        "site": {s.get("name") for s in body.findall("site")},
        "site in a body of its own": {s.get("name") for p in below for s in p.findall("site")},
    }
    wanted = {
        "joint": needs.joints,
        "geom": (*needs.geoms, *(f"reg_{region}" for region in needs.regions)),
        "site": needs.sites,
        "site in a body of its own": needs.moving_sites,
    }
    for what, names in wanted.items():
        for name in names:
            if name not in present[what]:
                raise DeasError(f"{kind} in {source}: the {what} '{name}' is missing")
    for joint in (j for part in below for j in part.findall("joint")):
        if joint.get("name") in needs.joints and joint.get("range") is None:
            raise DeasError(f"{kind} in {source}: the joint '{joint.get('name')}' has no range")
    if kind == "stove":
        _check_burners(body, present, source)


def _check_burners(body: ET.Element, present: Mapping[str, set[str | None]], source: str) -> None:
    """Each knob wants its burner, and a stove at least one knob."""
    names = [str(n) for n in present["joint"] if str(n).startswith("knob_")]
    burners = [n.removeprefix("knob_").removesuffix("_joint") for n in names]
    if not burners:
        raise DeasError(f"stove in {source}: the joint 'knob_<burner>_joint' is missing")
    for burner in burners:
        if f"burner_on_{burner}" not in present["site"]:
            raise DeasError(f"stove in {source}: the site 'burner_on_{burner}' is missing")


def check_layout(layout: Mapping[str, Any], name: str) -> None:
    """Check a layout in RoboCasa's syntax against what lite kitchens have.

    Raises:
        DeasError: A fixture of an unknown type or without a name, a reference to a fixture that is
            not there, or a model of its own that lacks something; the fixture is named.
    """
    fixtures = list(_fixtures(layout, name))
    known = {f"{fixture['name']}_{group}" for group, fixture in fixtures}
    for group, fixture in fixtures:
        label, kind = fixture["name"], fixture.get("type")
        for level in [kind, *_levels(fixture)]:
            if level not in _MADE and level not in catalogue.appliances():
                raise DeasError(
                    f"layout '{name}': fixture '{label}' is of type '{level}', which lite kitchens "
                    f"do not have: use one of {[*_MADE, *catalogue.appliances()]}"
                )
        placement = fixture.get("placement") or {}
        ours = [f"{fixture[key]}_{group}" for key in _REFERENCES if fixture.get(key) is not None]
        ours += [str(placement["fixture"])] if "fixture" in placement else []
        for reference in ours:
            if reference not in known:
                raise DeasError(
                    f"layout '{name}': fixture '{label}' refers to '{reference}', which is none of "
                    f"its fixtures: {sorted(known)}"
                )
        if "xml" in fixture and kind in NEEDS:
            path = Path(fixture["xml"])
            path = path if path.suffix == ".xml" else path / "model.xml"
            try:
                model = ET.parse(path).getroot()
            except (OSError, ET.ParseError) as error:
                raise DeasError(
                    f"layout '{name}': fixture '{label}': {path} cannot be read: {error}"
                ) from error
            check_appliance(kind, model, f"{path} (fixture '{label}' of layout '{name}')")


def check_style(style: Mapping[str, Any], layout: Mapping[str, Any], name: str) -> None:
    """Check that a style says how every kind of fixture in a layout looks.

    Raises:
        DeasError: It names something that the registry does not have.
    """
    registry = catalogue.read("registry")
    finishes = registry.pop("finishes")
    for _, fixture in _fixtures(layout, "of the style"):
        kind = _MADE.get(fixture["type"], fixture["type"])
        chosen = style.get(kind, "default")
        names = chosen.get("default", []) if isinstance(chosen, dict) else chosen
        known = [*registry[kind], *(finishes if kind in catalogue.appliances() else [])]
        for wanted in [names] if isinstance(names, str) else names:
            if wanted not in known:
                raise DeasError(
                    f"style '{name}': '{wanted}' is unknown for {kind}: use some of {known}"
                )


def _fixtures(layout: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Group and description of every fixture."""
    for group, sections in layout.items():
        if not isinstance(sections, dict):
            raise DeasError(f"layout '{name}': group '{group}' is no dictionary of lists")
        for section, fixtures in sections.items():
            if section in ("group_origin", "group_pos", "group_z_rot"):
                continue
            if not isinstance(fixtures, list):
                raise DeasError(f"layout '{name}': '{group}.{section}' is no list of fixtures")
            for fixture in fixtures:
                if not isinstance(fixture, dict) or "name" not in fixture:
                    raise DeasError(f"layout '{name}': a fixture in '{group}.{section}' lacks name")
                yield group, fixture


def _levels(fixture: Mapping[str, Any]) -> list[Any]:
    levels = fixture.get("levels", []) if fixture.get("type") == "stack" else []
    return [kind for level in levels for kind in (level if isinstance(level, list) else [level])]
