"""The assets of lite kitchens as a directory that RoboCasa can read."""

import copy
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import yaml

from deas_vla.envs.robocasa.lite import catalogue, shapes, textures
from deas_vla.envs.robocasa.lite.checks import check_appliance
from deas_vla.envs.robocasa.overlay import AssetTree
from deas_vla.envs.robocasa.tasks import package_assets, robocasa_module
from deas_vla.errors import DeasError

# What the installed package itself ships and lite kitchens use as it is.
_SHIPPED = ("arenas", "fixtures/cabinets", "fixtures/handles", "fixtures/counters")


def lite_tree() -> AssetTree:
    """Appliances, objects and textures of our own beside RoboCasa's cabinets and counters.

    It lies in a temporary directory, where RoboCasa may write beside the objects that it loads.

    Raises:
        DeasError: RoboCasa is not installed, or an object of a category that it does not know.
    """
    folder = tempfile.TemporaryDirectory(prefix="lite_kitchens_")
    root = Path(folder.name)
    for name in _SHIPPED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(package_assets() / name)
    textures.write_all(root / "textures", catalogue.read("textures"))
    _write_appliances(root)
    _write_objects(root)
    return AssetTree(root, _categories(root), "the objects of lite kitchens", folder)


def fixture_registry() -> dict[str, Any]:
    """Kind of fixture to what a style may name for it, as RoboCasa reads it."""
    described = catalogue.read("registry")
    finishes = described.pop("finishes")
    for kind in catalogue.appliances():
        default = described[kind]["default"].pop("finish")
        described[kind] = {finish: {"xml": _model(kind, finish)} for finish in finishes}
        described[kind]["default"] = {"xml": _model(kind, default)}
    return dict(described)


def _model(kind: str, finish: str) -> str:
    return f"fixtures/lite/{kind}_{finish}/model.xml"


def _write_appliances(root: Path) -> None:
    folder = root / "fixtures" / "fixture_registry"
    folder.mkdir(parents=True)
    for kind, entries in fixture_registry().items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    finishes = catalogue.read("registry")["finishes"]
    for kind in catalogue.appliances():
        source = catalogue.appliance_file(kind)
        shape = ET.parse(source).getroot()
        check_appliance(kind, shape, str(source))
        shapes.show(shape)
        for finish, colors in finishes.items():
            model = copy.deepcopy(shape)
            for material in model.iter("material"):
                if (color := colors.get(material.get("name", ""))) is not None:
                    material.set("rgba", " ".join(map(str, [*color, 1])))
            path = root / _model(kind, finish)
            path.parent.mkdir(parents=True)
            path.write_text(ET.tostring(model, encoding="unicode"))


def _write_objects(root: Path) -> None:
    described = catalogue.read("objects")
    for category, about in described["objects"].items():
        for number, instance in enumerate(about["instances"]):
            model = shapes.object_mjcf(category, about, instance, described["colors"])
            folder = root / "objects" / catalogue.REGISTRY / category / f"{category}_{number}"
            folder.mkdir(parents=True)
            (folder / "model.xml").write_text(model)


def _categories(root: Path) -> dict[str, dict[str, Any]]:
    """RoboCasa's categories with our models alone, as graspable, washable ... as it has them."""
    known = robocasa_module("robocasa.models.objects.kitchen_object_utils").OBJ_CATEGORIES
    found: dict[str, dict[str, Any]] = {name: {} for name in known}
    for category in catalogue.read("objects")["objects"]:
        if not known.get(category):
            raise DeasError(f"object category '{category}' of lite kitchens is none of RoboCasa's")
        about = copy.copy(next(iter(known[category].values())))
        models = (root / "objects" / catalogue.REGISTRY / category).glob("*/model.xml")
        about.mjcf_paths = sorted(str(path) for path in models)
        about.reg_type, about.scale, about.exclude = catalogue.REGISTRY, 1.0, []
        about.is_auxiliary_obj = False
        found[category] = {catalogue.REGISTRY: about}
    return found
