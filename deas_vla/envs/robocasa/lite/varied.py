"""Many kitchens out of the few to train in: other orders, widths, heights, walls and finishes.

A backbone that has seen these sixteen alone finds a handle in them, and misses it by twice as much
in others (docs/nano.md). Robots of RoboCasa report their base's pose in the world: a policy that
saw stoves at the back wall alone turns none at another (docs/kitchens.md).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

GAP = 0.01  # metres between the fixtures of a row
WALLS = ("back", "left", "right")
Shape = dict[str, Any]


def varied_layout(layout: Shape, rng: np.random.Generator) -> Shape:
    """``layout``, changed in place: its fixtures in another order, of other sizes, at any wall.

    A row that meets another in a corner keeps its order and its wall.
    """
    groups = [group for key, group in layout.items() if key != "room"]
    if len(groups) == 1:
        _rearrange(layout["room"], groups[0], rng)
    for group in groups:
        for stack in (f for f in group["bottom_cabinets"] if f["type"] == "stack"):
            drawer = float(rng.uniform(0.24, 0.34))
            stack["percentages"] = [1 - drawer, drawer]
            stack["size"][0] *= float(rng.uniform(0.85, 1.0))
        for fixture in group["top_row"]:
            if fixture["type"] != "microwave":  # its door and its arm's reach are as they are
                fixture["size"][0] *= float(rng.uniform(0.8, 1.0))
                fixture["size"][2] *= float(rng.uniform(0.95, 1.0))
            fixture["pos"][2] += float(rng.uniform(-0.03, 0.03))
        for fixture in group.get("appliances", []):
            fixture["placement"]["pos"][0] = float(rng.uniform(-0.6, 0.6))
    if len(groups) == 1:
        wall = str(rng.choice(WALLS))
        if wall != "back":
            _move_to(wall, layout["room"], groups[0])
    return layout


def _rearrange(room: dict[str, list[Shape]], row: dict[str, list[Shape]],
               rng: np.random.Generator) -> None:  # fmt: skip
    """Counters of other widths and all in another order, each with what stands below and above."""
    columns = [f for f in row["bottom_row"] if "pos" in f]
    hanging = row["bottom_cabinets"] + row["top_row"]
    owned = {f["name"]: [h for h in hanging if _over(h, f)] for f in columns}
    edge = min(f["pos"][0] - f["size"][0] / 2 for f in columns)
    for k in rng.permutation(len(columns)):
        fixture = columns[k]
        before, width = fixture["pos"][0], fixture["size"][0]
        if fixture["type"] == "counter":
            fixture["size"][0] = float(width * rng.uniform(1.0, 1.25))
        fixture["pos"][0] = float(edge + fixture["size"][0] / 2)
        slack = (fixture["size"][0] - width) / 2
        moved = fixture["pos"][0] - before + float(rng.uniform(-slack, slack))
        for each in owned[fixture["name"]]:
            each["pos"][0] += moved
        edge += fixture["size"][0] + GAP
    half = float(edge / 2 + rng.uniform(0.0, 0.3))
    for plane in [*room["walls"], *room["floor"]]:
        side = plane.get("wall_side")
        if side is None:
            plane["size"][0] = plane["pos"][0] = half
        elif side == "right":
            plane["pos"][0] = 2 * half


def _move_to(wall: str, room: dict[str, list[Shape]], row: Shape) -> None:
    """The row of the back wall at the left or the right one: the room, seen from above, turned."""
    sides = {plane.get("wall_side"): plane for plane in room["walls"]}
    depth, width = sides[None]["size"][0], sides["left"]["size"][0]  # halves of the new ones
    sides[None]["size"][0] = sides[None]["pos"][0] = width
    sides["right"]["pos"][0] = 2 * width
    for plane in (sides["left"], sides["right"]):
        plane["size"][0], plane["pos"][1] = depth, -depth
    for plane in room["floor"]:
        plane["size"][:2] = width, depth
        plane["pos"][:2] = width, -depth
    # Rows run from left to right of who looks at them: towards the back on the left wall.
    row["group_origin"] = [0.0, 0.0]
    row["group_pos"] = [0.0, -2 * depth] if wall == "left" else [2 * width, 0.0]
    row["group_z_rot"] = math.pi / 2 if wall == "left" else -math.pi / 2


def _over(fixture: Shape, column: Shape) -> bool:
    return bool(abs(fixture["pos"][0] - column["pos"][0]) <= column["size"][0] / 2)


def varied_style(known: Sequence[Shape], rng: np.random.Generator) -> Shape:
    """A style whose every part is of any of the ``known`` ones."""
    mixed: Shape = {}
    for kind, part in known[0].items():
        if isinstance(part, dict):  # colour, panel and handle of a cabinet, each by itself
            mixed[kind] = {
                "default": [
                    str(rng.choice([style[kind]["default"][k] for style in known]))
                    for k in range(len(part["default"]))
                ]
            }
        else:
            mixed[kind] = str(rng.choice([style[kind] for style in known]))
    return mixed
