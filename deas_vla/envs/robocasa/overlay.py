"""Other assets than those of the installed RoboCasa, for as long as a kitchen is built.

RoboCasa finds its assets through the module variable ``robocasa.models.assets_root`` and through
the object categories that it listed when it was imported. Mounting a tree of assets changes both
inside a ``with`` block and puts them back at its end; nothing is written into the package.
"""

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deas_vla.envs.robocasa.tasks import package_assets, robocasa_module
from deas_vla.errors import DeasError

_OBJECTS = "robocasa.models.objects.kitchen_object_utils"


@dataclass
class AssetTree:
    """Assets that can be mounted.

    Attributes:
        root: Directory laid out like RoboCasa's ``models/assets``.
        categories: Object category to registry to RoboCasa's ``ObjCat``, as they are under
            ``root``; each category that RoboCasa knows has its entry.
        whose: Whose objects these are, for messages.
        folder: Temporary directory that goes away with the tree; None for one that stays.
    """

    root: Path
    categories: dict[str, dict[str, Any]]
    whose: str
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def close(self) -> None:
        """Delete what was made for this tree; idempotent."""
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


@contextlib.contextmanager
def mounted(tree: AssetTree) -> Iterator[None]:
    """RoboCasa with the assets of ``tree``; whatever was in force before comes back at the end.

    Raises:
        DeasError: Inside the block, from sampling an object of which the tree has no model.
    """
    models, objects = robocasa_module("robocasa.models"), robocasa_module(_OBJECTS)
    known = objects.OBJ_CATEGORIES  # one dictionary, which several modules hold
    before = (models.assets_root, objects.BASE_ASSET_ZOO_PATH, dict(known))
    sample = objects.sample_kitchen_object_helper
    try:
        models.assets_root = str(tree.root)
        objects.BASE_ASSET_ZOO_PATH = str(tree.root / "objects")
        _replace(known, tree.categories)
        objects.sample_kitchen_object_helper = _with_refusal(sample, objects.OBJ_GROUPS, tree)
        yield
    finally:
        models.assets_root, objects.BASE_ASSET_ZOO_PATH, categories = before
        _replace(known, categories)
        objects.sample_kitchen_object_helper = sample


def package_tree(extra: Path) -> AssetTree:
    """RoboCasa's own assets with those of another directory added where the package has none.

    Args:
        extra: Directory laid out like ``models/assets``; what it lacks, the package may have.

    Raises:
        DeasError: RoboCasa is not installed.
    """
    folder = tempfile.TemporaryDirectory(prefix="robocasa_assets_")
    root = Path(folder.name)
    merge_links(root, package_assets(), extra)
    return AssetTree(root, list_categories(root / "objects"), str(extra), folder)


def merge_links(target: Path, first: Path, second: Path) -> None:
    """Fill ``target`` with links to the files of two trees; ``first`` wins where both have one."""
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted({entry.name for tree in (first, second) for entry in tree.iterdir()}):
        here, there = first / name, second / name
        if here.is_dir() and there.is_dir():
            merge_links(target / name, here, there)
        else:
            (target / name).symlink_to((here if here.exists() else there).resolve())


def list_categories(objects_root: Path) -> dict[str, dict[str, Any]]:
    """RoboCasa's object categories with the models that lie under a directory.

    RoboCasa replaces the descriptions of its categories by what it found on import, so they are
    read again from its source.

    Raises:
        DeasError: RoboCasa is not installed.
    """
    objects = robocasa_module(_OBJECTS)
    spec = importlib.util.find_spec("robocasa.models.objects.kitchen_objects")
    assert spec is not None and spec.loader is not None
    described = importlib.util.module_from_spec(spec)  # a copy of its own, in no one's way
    spec.loader.exec_module(described)
    folders = {"objaverse": "objaverse", "aigen": "aigen_objs", "lightwheel": "lightwheel"}
    before, objects.BASE_ASSET_ZOO_PATH = objects.BASE_ASSET_ZOO_PATH, str(objects_root)
    try:
        return {
            name: {
                registry: objects.ObjCat(
                    name=name,
                    reg_type=folder,
                    **{**{k: v for k, v in about.items() if k not in folders}, **about[registry]},
                )
                for registry, folder in folders.items()
                if about.get(registry) is not None
            }
            for name, about in described.OBJ_CATEGORIES.items()
        }
    finally:
        objects.BASE_ASSET_ZOO_PATH = before


def _replace(known: dict[str, Any], categories: dict[str, Any]) -> None:
    known.clear()
    known.update(categories)


def _with_refusal(
    sample: Callable[..., Any], members: dict[str, Any], tree: AssetTree
) -> Callable[..., Any]:
    """RoboCasa's sampler, saying which objects have no model instead of failing on empty lists."""

    def sampled(groups: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = [groups] if isinstance(groups, str) else list(groups)
        if not (isinstance(groups, str) and groups.endswith(".xml")):
            registries = kwargs["obj_registries"]
            if not any(
                tree.categories.get(name, {}).get(registry) and
                tree.categories[name][registry].mjcf_paths
                for group in wanted
                for name in members.get(group, ())
                for registry in registries
            ):  # fmt: skip
                raise DeasError(
                    f"object category {', '.join(wanted)}: no model of it among {tree.whose} "
                    f"({tree.root / 'objects'}), which this task needs: choose another task or "
                    "other assets"
                )
        try:
            return sample(groups, *args, **kwargs)
        except ValueError as error:
            asked = {k: v for k, v in kwargs.items() if v is True or k == "split"}
            raise DeasError(
                f"object category {', '.join(wanted)}: no model of it with {asked} among "
                f"{tree.whose} ({tree.root / 'objects'}): choose another task, split or assets"
            ) from error

    return sampled
