"""What lite kitchens consist of, read from the package's data."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from deas_vla.envs.robocasa.lite.varied import varied_layout, varied_style
from deas_vla.errors import DeasError

DATA = Path(__file__).parents[3] / "assets" / "lite_kitchens"

# The tasks that are known to build and to be solvable in every lite kitchen.
LITE_TASKS = (
    "OpenDrawer",
    "CloseDrawer",
    "OpenCabinet",
    "CloseCabinet",
    "CloseFridge",
    "OpenMicrowave",
    "CloseMicrowave",
    "TurnOnStove",
    "TurnOffStove",
    "CoffeeSetupMug",
    "PickPlaceCounterToMicrowave",
    "PickPlaceMicrowaveToCounter",
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
VARIED = tuple(f"varied_{number}" for number in range(48))  # layouts, and styles
REGISTRY = "lite"  # name of our objects among RoboCasa's object registries


def read(name: str) -> Any:
    """One of the package's YAML files, parsed anew: the caller may change it."""
    return copy.deepcopy(_parsed(DATA / f"{name}.yaml"))


class Description(dict[str, Any]):
    """A layout or a style that RoboCasa may build from several times.

    It renames fixtures in the very dictionary that it is given, and begins again with the same one
    where objects find no place.
    """

    def items(self) -> Any:
        return copy.deepcopy(dict(self)).items()


def layout_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (DATA / "layouts").glob("*.yaml")))


def style_names() -> tuple[str, ...]:
    return tuple(read("styles"))


def layout(name: str) -> Description:
    """A layout in RoboCasa's syntax, by name or from a YAML file.

    Raises:
        DeasError: No layout of that name, or no such file.
    """
    if name.endswith((".yaml", ".yml")):
        return _own(Path(name))
    if name in VARIED:
        return Description(_varied_layout(name))
    if name not in layout_names():
        raise DeasError(f"lite layout '{name}' is unknown: use some of {list(layout_names())}")
    return Description(_parsed(DATA / "layouts" / f"{name}.yaml"))


def style(name: str) -> Description:
    """A style in RoboCasa's syntax, by name or from a YAML file.

    Raises:
        DeasError: No style of that name, or no such file.
    """
    if name.endswith((".yaml", ".yml")):
        return _own(Path(name))
    if name in VARIED:
        return Description(_varied_style(name))
    styles = read("styles")
    if name not in styles:
        raise DeasError(f"lite style '{name}' is unknown: use some of {list(styles)}")
    return Description(styles[name])


def appliance_file(kind: str) -> Path:
    """Where the MJCF of an appliance lies; it need not exist."""
    return DATA / "appliances" / f"{kind}.xml"


def appliances() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (DATA / "appliances").glob("*.xml")))


@functools.cache
def _varied_layout(name: str) -> dict[str, Any]:
    rng = np.random.default_rng((0, VARIED.index(name)))
    of = str(rng.choice(LITE_SPLITS["train"]["layouts"]))
    return varied_layout(dict(layout(of).items()), rng)


@functools.cache
def _varied_style(name: str) -> dict[str, Any]:
    known = [dict(style(other)) for other in LITE_SPLITS["train"]["styles"]]
    return varied_style(known, np.random.default_rng((1, VARIED.index(name))))


def _splits() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    named = _parsed(DATA / "splits.yaml") | {"varied": {"layouts": VARIED, "styles": VARIED}}
    return MappingProxyType(
        {
            name: MappingProxyType({key: tuple(values) for key, values in split.items()})
            for name, split in named.items()
        }
    )


def _own(path: Path) -> Description:
    try:
        return Description(yaml.load(path.read_text(), Loader=_LOADER))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DeasError(f"{path} cannot be read as a YAML dictionary: {error}") from error


@functools.cache
def _parsed(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=_LOADER)


# Split to its layouts and styles: every layout of a split goes with every style of it, and no
# layout or style is in two. Those of ``varied`` are made out of those to train in.
LITE_SPLITS = _splits()
