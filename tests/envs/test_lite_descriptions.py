"""Descriptions of lite kitchens: what is refused, and how near RoboCasa's appliances ours are."""

import copy
import itertools
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import yaml

from deas_vla.envs.robocasa.kitchen import KitchenConfig, scenes
from deas_vla.envs.robocasa.lite import catalogue, shapes, textures
from deas_vla.envs.robocasa.lite.checks import NEEDS, check_appliance, check_layout, check_style
from deas_vla.envs.robocasa.lite.scenes import lite_scenes
from deas_vla.errors import DeasError


def changed(layout: str, **fields: Any) -> dict[str, Any]:
    """A layout whose stove is described otherwise."""
    described = copy.deepcopy(dict(catalogue.layout(layout)))
    stove = next(f for f in described["main"]["bottom_row"] if f["name"] == "stove")
    stove.update(fields)
    return described


def test_our_own_layouts_styles_and_appliances_pass() -> None:
    for layout in catalogue.layout_names():
        for style in catalogue.style_names():
            check_layout(catalogue.layout(layout), layout)
            check_style(catalogue.style(style), catalogue.layout(layout), style)
    assert set(catalogue.appliances()) == set(NEEDS)
    used = {name for split in catalogue.LITE_SPLITS.values() for name in split["layouts"]}
    assert used == {*catalogue.layout_names(), *catalogue.VARIED}
    used = {name for split in catalogue.LITE_SPLITS.values() for name in split["styles"]}
    assert used == {*catalogue.style_names(), *catalogue.VARIED}


def test_varied_kitchens_are_made_of_those_to_train_in() -> None:
    train = [catalogue.style(name) for name in catalogue.LITE_SPLITS["train"]["styles"]]
    styles = [catalogue.style(name) for name in catalogue.VARIED]
    assert any(style not in train for style in styles)
    for style in styles:
        assert {*style} == {*train[0]}
        assert all(part in [other[kind] for other in train] for kind, part in style.items()
                   if isinstance(part, str))  # fmt: skip
    orders, drawers = set(), set()
    for name, style in zip(catalogue.VARIED, styles, strict=True):
        layout = catalogue.layout(name)
        assert layout == catalogue.layout(name)
        check_layout(layout, name)
        check_style(style, layout, name)
        groups = [g for key, g in layout.items() if key != "room"]
        drawers |= {f["percentages"][1] for g in groups for f in g["bottom_cabinets"]
                    if f["type"] == "stack"}  # fmt: skip
        row = sorted((f for f in groups[0]["bottom_row"] if "pos" in f), key=lambda f: f["pos"][0])
        orders.add(tuple(fixture["name"] for fixture in row))
        for left, right in itertools.pairwise(row):
            apart = right["pos"][0] - left["pos"][0] - (right["size"][0] + left["size"][0]) / 2
            assert -1e-6 < apart < 0.1
        for row in (group["bottom_cabinets"] for group in groups):  # a drawer must not be stuck
            for one, other in itertools.combinations(row, 2):
                apart = abs(one["pos"][0] - other["pos"][0])
                assert apart > (one["size"][0] + other["size"][0]) / 2 - 1e-6, (name, one["name"])
    assert len(orders) > 12 and len(drawers) > 40
    pairs = lite_scenes("TurnOnStove", "varied", [], [])
    assert len(pairs) == len(set(pairs)) == 48 * 48


def test_varied_kitchens_have_stoves_at_every_wall_and_all_fixtures_inside_the_room() -> None:
    facing = Counter[float]()
    for name in catalogue.VARIED:
        layout = catalogue.layout(name)
        room = layout["room"]
        (floor,) = room["floor"]
        for group in (g for key, g in layout.items() if key != "room"):
            turn = group.get("group_z_rot", 0.0)
            rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            for fixture in (f for f in group["bottom_row"] if "pos" in f):
                for x, y in itertools.product((-0.5, 0.5), repeat=2):
                    corner = np.array(fixture["pos"][:2]) + np.array(fixture["size"][:2]) * (x, y)
                    corner = rotation @ corner + group.get("group_pos", (0.0, 0.0))
                    assert np.all(
                        np.abs(corner - floor["pos"][:2]) < np.add(floor["size"][:2], 0.06)
                    )
                if fixture["type"] == "stove":
                    facing[round(float(turn), 2)] += 1
                    # What stands behind it is the wall: its back is within 2 cm of one.
                    back = rotation @ np.array([fixture["pos"][0], 0.0])
                    back = back + group.get("group_pos", (0.0, 0.0))
                    out = np.array(floor["size"][:2]) - np.abs(back - floor["pos"][:2])
                    assert min(abs(out)) < 0.02, (name, back)
        for side, x in (("left", 0.0), ("right", 2 * floor["size"][0])):
            (plane,) = [w for w in room["walls"] if w.get("wall_side") == side]
            assert plane["pos"][0] == pytest.approx(x)
            assert -plane["pos"][1] == plane["size"][0] == pytest.approx(floor["size"][1])
    assert set(facing) == {0.0, 1.57, -1.57} and min(facing.values()) >= 6, facing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "toaster"}, "fixture 'stove' is of type 'toaster', which lite kitchens do not"),
        ({"align_to": "oven"}, "fixture 'stove' refers to 'oven_main', which is none of its"),
        ({"placement": {"fixture": "table_main"}}, "fixture 'stove' refers to 'table_main'"),
        ({"type": "stack", "levels": ["drawer", "oven"]}, "fixture 'stove' is of type 'oven'"),
        ({"xml": "/nowhere/stove.xml"}, "fixture 'stove': /nowhere/stove.xml cannot be read"),
    ],
)
def test_a_layout_with_a_mistake_names_the_fixture(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DeasError, match=f"layout 'mine': {message}") as error:
        check_layout(changed("galley", **fields), "mine")
    assert "\n" not in str(error.value)


def test_a_layout_that_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="group 'main' is no dictionary"):
        check_layout({"main": 3}, "mine")
    with pytest.raises(DeasError, match=r"'main.row' is no list of fixtures"):
        check_layout({"main": {"row": {}}}, "mine")
    with pytest.raises(DeasError, match=r"a fixture in 'main.row' lacks name"):
        check_layout({"main": {"row": [{"type": "stove"}]}}, "mine")
    file = tmp_path / "mine.yaml"
    file.write_text("- just\n- a list")
    with pytest.raises(DeasError, match=r"mine\.yaml cannot be read as a YAML dictionary"):
        lite_scenes("CloseDrawer", "train", [str(file)], [])


def test_a_layout_of_ones_own_is_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(dict(catalogue.layout("galley"))))
    pairs = lite_scenes("CloseDrawer", "train", [str(file)], ["loft"])
    assert pairs == [(str(file), "loft")]
    file.write_text(yaml.safe_dump(changed("galley", type="oven")))
    with pytest.raises(DeasError, match="fixture 'stove' is of type 'oven'"):
        lite_scenes("CloseDrawer", "train", [str(file)], [])


@pytest.mark.parametrize("kind", NEEDS)
def test_an_appliance_without_something_it_needs_is_refused(kind: str) -> None:
    """Every name that RoboCasa's class looks up, taken away one by one."""
    source = catalogue.appliance_file(kind)
    check_appliance(kind, ET.parse(source).getroot(), str(source))
    needs = NEEDS[kind]
    names = {("joint", n) for n in needs.joints} | {("geom", n) for n in needs.geoms}
    names |= {("site", n) for n in (*needs.sites, *needs.moving_sites)}
    names |= {("geom", f"reg_{n}") for n in needs.regions}
    if kind == "stove":
        names |= {("site", "burner_on_rear_left")}
    for tag, name in sorted(names):
        root = ET.parse(source).getroot()
        for parent in root.iter("body"):
            for element in parent.findall(tag):
                if element.get("name") == name:
                    parent.remove(element)
        with pytest.raises(DeasError, match=rf"{kind} in .*{kind}\.xml: the {tag} .*'{name}'"):
            check_appliance(kind, root, str(source))


def test_a_stove_without_knobs_is_refused() -> None:
    root = ET.parse(catalogue.appliance_file("stove")).getroot()
    body = root.find("./worldbody/body/body")
    assert body is not None
    for knob in body.findall("body"):
        body.remove(knob)
    with pytest.raises(DeasError, match="the joint 'knob_<burner>_joint' is missing"):
        check_appliance("stove", root, "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "CloseOven"}, "task 'CloseOven' is none of those that lite kitchens are made"),
        ({"split": "val"}, "split 'val' is unknown in lite kitchens: use train, validation,"),
        ({"layouts": ("galley",)}, "layout 'galley' is no lite layout of split 'test'"),
        ({"styles": ("baroque",)}, "style 'baroque' is no lite style of split 'test'"),
    ],
)
def test_kitchens_that_are_not_there_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeasError, match=message):
        scenes(KitchenConfig(assets="lite", **{"split": "test", **options}))


def test_styles_name_what_the_registry_has() -> None:
    style = {**catalogue.style("classic"), "microwave": "golden"}
    with pytest.raises(DeasError, match="style 'mine': 'golden' is unknown for microwave"):
        check_style(style, catalogue.layout("galley"), "mine")


def test_textures_have_the_colors_they_are_described_by() -> None:
    for name, about in catalogue.read("textures").items():
        picture = textures.draw(name, about["pattern"], about["colors"])
        assert np.array_equal(picture, textures.draw(name, about["pattern"], about["colors"]))
        low, high = np.min(about["colors"], axis=0), np.max(about["colors"], axis=0)
        assert (picture >= low).all() and (picture <= high).all(), name
        assert (picture.std() > 0) == (about["pattern"] != "flat" or picture[0, 0].std() > 0)
    with pytest.raises(DeasError, match="texture 'x': pattern 'stripes' is unknown"):
        textures.draw("x", "stripes", [[0, 0, 0]])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"shape": "cone", "size": [1, 1, 1]}, "shape 'cone' with 3 sizes is unknown"),
        ({"shape": "box", "size": [1, 1]}, "shape 'box' with 2 sizes is unknown"),
        ({"shape": "box", "size": [1, 1, 1], "color": "mauve"}, "color 'mauve' is unknown"),
        ({"shape": "box", "size": [1, 1, 1], "look": True}, "no part that can be touched"),
    ],
)
def test_an_object_with_a_mistake_is_refused(part: dict[str, Any], message: str) -> None:
    about = {"parts": [{"color": "red", **part}]}
    with pytest.raises(DeasError, match=f"object category 'thing'.*{message}"):
        shapes.object_mjcf("thing", about, {}, {"red": [1, 0, 0]})


# ---- beside RoboCasa's own appliances -----------------------------------------------------------

_FOLDERS = {
    "microwave": "microwaves",
    "stove": "stoves",
    "coffee_machine": "coffee_machines",
    "fridge_bottom_freezer": "fridges",
    "sink": "sinks",
}


def measured(path: Path) -> dict[str, np.ndarray]:
    """Size (3,) of an appliance, centres of named parts in half sizes from its centre, ranges."""
    root = ET.parse(path).getroot()
    numbers = lambda text: np.array([float(n) for n in text.split()])  # noqa: E731
    named = {e.get("name"): e for tag in ("geom", "site") for e in root.iter(tag) if e.get("name")}
    main = named["reg_main"]
    centre, half = numbers(main.get("pos")), numbers(main.get("size"))
    found = {"size": 2 * half}
    for name, element in named.items():
        if element.get("pos"):
            found[f"at {name}"] = (numbers(element.get("pos")) - centre) / half
    for joint in root.iter("joint"):
        if joint.get("name") and joint.get("range"):
            found[f"range {joint.get('name')}"] = numbers(joint.get("range"))
    return found


def theirs(kit: Path, kind: str) -> list[dict[str, np.ndarray]]:
    return [measured(p) for p in sorted((kit / "fixtures" / _FOLDERS[kind]).glob("*/model.xml"))]


@pytest.mark.parametrize("kind", NEEDS)
def test_sizes_lie_among_robocasas(kit: Path, kind: str) -> None:
    """Each side between the smallest and the largest of RoboCasa's appliances of the kind."""
    ours, others = measured(catalogue.appliance_file(kind)), theirs(kit, kind)
    sizes = np.array([other["size"] for other in others])
    assert len(sizes) >= 20
    assert (sizes.min(axis=0) <= ours["size"]).all() and (ours["size"] <= sizes.max(axis=0)).all()


@pytest.mark.parametrize(
    ("kind", "ours_is", "theirs_is"),
    [
        ("microwave", ["range microjoint"], ["range microjoint"]),
        ("fridge_bottom_freezer", ["range fridge_door_joint"], ["range fridge_door_joint"]),
        ("stove", ["range knob_rear_left_joint"], ["range knob_rear_left_joint"]),
        ("sink", ["range handle_joint"], ["range handle_joint"]),
    ],
)
def test_joints_range_as_robocasas(
    kit: Path, kind: str, ours_is: list[str], theirs_is: list[str]
) -> None:
    """Within 1 % of the limits of the most frequent of RoboCasa's."""
    ours = measured(catalogue.appliance_file(kind))
    for mine, name in zip(ours_is, theirs_is, strict=True):
        ranges = [tuple(other[name].round(3)) for other in theirs(kit, kind) if name in other]
        usual = max(set(ranges), key=ranges.count)
        np.testing.assert_allclose(ours[mine], usual, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("microwave", ["at door_handle_main", "at start_button", "at stop_button"]),
        ("fridge_bottom_freezer", ["at fridge_door_handle_main"]),
        ("coffee_machine", ["at receptacle_place_site"]),
        ("stove", [f"at knob_{b}_main" for b in ("rear_left", "rear_right", "front_left")]),
        ("stove", [f"at burner_on_{b}" for b in ("rear_left", "rear_right", "front_left")]),
    ],
)
def test_handles_and_buttons_are_where_robocasas_are(
    kit: Path, kind: str, parts: list[str]
) -> None:
    """In half sizes of the appliance: within RoboCasa's spread, widened by a tenth."""
    ours, others = measured(catalogue.appliance_file(kind)), theirs(kit, kind)
    for part in parts:
        places = np.array([other[part] for other in others if part in other])
        assert len(places) >= 5, part
        assert (places.min(axis=0) - 0.1 <= ours[part]).all(), part
        assert (ours[part] <= places.max(axis=0) + 0.1).all(), part


def test_appliances_compile_alone_and_move_freely() -> None:
    """No appliance holds its own door or knob: pushed a little, each joint moves."""
    for kind in catalogue.appliances():
        root = ET.parse(catalogue.appliance_file(kind)).getroot()
        shapes.show(root)
        model = mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode"))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        assert data.ncon == 0, kind
        for joint in range(model.njnt):
            mujoco.mj_resetData(model, data)
            low, high = model.jnt_range[joint]
            shut = low if abs(low) <= abs(high) else high
            push = np.sign(low + high - 2 * shut)
            for _ in range(300):
                data.qfrc_applied[model.jnt_dofadr[joint]] = 8 * push
                mujoco.mj_step(model, data)
            moved = push * (data.qpos[model.jnt_qposadr[joint]] - shut)
            assert moved > 0.1 * (high - low), model.joint(joint).name
