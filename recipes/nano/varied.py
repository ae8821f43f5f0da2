"""Many kitchens out of the few to train in: other orders, widths, heights and colours.

The split to train in has four layouts and four styles. A backbone that has seen these sixteen
kitchens alone finds a handle in them, and misses it by twice as much in others.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deas_vla.envs.robocasa.kitchen import KitchenEnv
from deas_vla.envs.robocasa.lite import catalogue

GAP = 0.01  # metres between the fixtures of a row
ROBOT = ("robot", "gripper", "mobilebase")  # its bodies, by robosuite's prefixes
Shape = dict[str, Any]


def write_varied(
    folder: Path, layouts: int, styles: int, rng: np.random.Generator
) -> dict[str, tuple[str, ...]]:
    """YAML files of new kitchens, which `KitchenConfig` takes as ``layouts`` and ``styles``.

    Each is made of parts of kitchens to train in alone.

    Args:
        folder: Where they go; made where it is missing.
        layouts: How many new layouts.
        styles: How many new styles.
        rng: Draws all of them.

    Returns:
        ``layouts`` and ``styles``, paths.
    """
    train = catalogue.LITE_SPLITS["train"]
    made = {
        "layouts": [varied_layout(str(rng.choice(train["layouts"])), rng) for _ in range(layouts)],
        "styles": [varied_style(train["styles"], rng) for _ in range(styles)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind, descriptions in made.items():
        for k, description in enumerate(descriptions):
            (folder / f"{kind}_{k}.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return {
        kind: tuple(str(folder / f"{kind}_{k}.yaml") for k in range(len(descriptions)))
        for kind, descriptions in made.items()
    }


def varied_layout(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A layout to train in with its fixtures in another order and of other sizes.

    A row that meets another in a corner keeps its order.
    """
    layout: dict[str, Any] = dict(catalogue.layout(name).items())
    groups = [group for key, group in layout.items() if key != "room"]
    if len(groups) == 1:
        _rearrange(layout["room"], groups[0], rng)
    for group in groups:
        for stack in (f for f in group["bottom_cabinets"] if f["type"] == "stack"):
            drawer = float(rng.uniform(0.24, 0.34))
            stack["percentages"] = [1 - drawer, drawer]
            stack["size"][0] *= float(rng.uniform(0.9, 1.2))
        for fixture in group["top_row"]:
            if fixture["type"] != "microwave":  # its door and its arm's reach are as they are
                fixture["size"][0] *= float(rng.uniform(0.8, 1.0))
                fixture["size"][2] *= float(rng.uniform(0.95, 1.0))
            fixture["pos"][2] += float(rng.uniform(-0.03, 0.03))
        for fixture in group.get("appliances", []):
            fixture["placement"]["pos"][0] = float(rng.uniform(-0.6, 0.6))
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


def _over(fixture: Shape, column: Shape) -> bool:
    return bool(abs(fixture["pos"][0] - column["pos"][0]) <= column["size"][0] / 2)


def varied_style(names: tuple[str, ...], rng: np.random.Generator) -> dict[str, Any]:
    """A style whose every part is of any of the styles ``names``."""
    known = [dict(catalogue.style(name).items()) for name in names]
    mixed: dict[str, Any] = {}
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


class Painter:
    """Paints an episode's kitchen anew: its materials in other colours, and other light."""

    def __init__(self, env: KitchenEnv) -> None:
        self._model = model = env.kitchen.sim.model._model
        self._plain = {
            name: getattr(model, name).copy() for name in ("mat_rgba", "geom_rgba", "light_diffuse")
        }
        names = [model.body(k).name for k in model.geom_bodyid]
        self._kept = np.array([name.startswith(ROBOT) for name in names])

    def paint(self, rng: np.random.Generator) -> None:
        """For the next picture; one in three is of the kitchen as it is.

        Materials get darker, for a texture can't be lighter, and of another hue. The robot stays.
        """
        for name, plain in self._plain.items():
            getattr(self._model, name)[:] = plain
        if rng.random() < 1 / 3:
            return
        strength = rng.uniform()
        for name, kept in (("mat_rgba", None), ("geom_rgba", self._kept)):
            plain = self._plain[name]
            colours = plain.copy()
            dark = rng.uniform(0.3, 1.1, (len(colours), 1)) ** strength
            hue = rng.uniform(0.7, 1.1, (len(colours), 3))
            colours[:, :3] = np.clip(colours[:, :3] * dark * hue, 0, 1)
            if kept is not None:
                colours[kept] = plain[kept]
            getattr(self._model, name)[:] = colours
        lamps = self._plain["light_diffuse"]
        self._model.light_diffuse[:] = lamps * rng.uniform(0.7, 1.2, (len(lamps), 1))
