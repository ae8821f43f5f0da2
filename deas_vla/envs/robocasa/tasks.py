"""RoboCasa's tasks by any name that people use, their horizons, and the assets they need.

Importing this module is light; robocasa itself (3 s) is imported on the first call.
"""

import contextlib
import difflib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deas_vla.envs.gl import use_headless_gl
from deas_vla.envs.packages import import_package, package_spec
from deas_vla.errors import DeasError

# Names of RoboCasa's first release (2024), which papers of that time use.
OLD_NAMES = {
    "PnPCounterToCab": "PickPlaceCounterToCabinet",
    "PnPCabToCounter": "PickPlaceCabinetToCounter",
    "PnPCounterToMicrowave": "PickPlaceCounterToMicrowave",
    "PnPMicrowaveToCounter": "PickPlaceMicrowaveToCounter",
    "PnPCounterToSink": "PickPlaceCounterToSink",
    "PnPSinkToCounter": "PickPlaceSinkToCounter",
    "PnPCounterToStove": "PickPlaceCounterToStove",
    "PnPStoveToCounter": "PickPlaceStoveToCounter",
    "CoffeePressButton": "StartCoffeeMachine",
}

# Object registry to its name in RoboCasa's download script.
_REGISTRY_DOWNLOADS = {
    "objaverse": "objs_objaverse",
    "lightwheel": "objs_lw",
    "aigen": "objs_aigen",
}
# Folders that every download of `fixtures_lw` has and the installed package lacks: it ships
# cabinets, handles, counters and accessories alone.
_NOT_INSTALLED = (
    "RoboCasa cannot be imported (no module '{}'): install it with "
    "`pip install 'lerobot_policy_deas_vla[robocasa]'`"
)
# Names a directory laid out like RoboCasa's `models/assets`, whose files count as downloaded.
ASSETS_VARIABLE = "DEAS_ROBOCASA_ASSETS"
_DOWNLOADED_FIXTURES = ("fridges", "microwaves", "sinks", "stoves")


def robocasa_module(name: str = "robocasa") -> Any:
    """Import a module of RoboCasa without its banners, with a renderer chosen before MuJoCo.

    Raises:
        DeasError: RoboCasa is not installed.
    """
    use_headless_gl()
    # robosuite resets its logger's level on import, so a filter keeps its warnings away.
    logging.getLogger("robosuite_logs").addFilter(_errors_only)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import_package("robosuite")
            import_package("robocasa")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DeasError(_NOT_INSTALLED.format(error.name)) from error


def resolve_tasks(names: Sequence[str]) -> list[str]:
    """Current task names for names, old names and groups, in order and without repeats.

    Args:
        names: RoboCasa365 tasks, tasks under their names of 2024, or groups such as
            ``atomic_seen``, as the installed RoboCasa registers them.

    Raises:
        DeasError: No names, or one that is neither a task nor a group; nearest names are given.
    """
    if not names:
        raise DeasError("tasks []: name at least one RoboCasa task or group, such as CloseDrawer")
    groups, tasks = task_groups(), _horizons()
    found: dict[str, None] = {}
    for name in names:
        if name in groups:
            found.update(dict.fromkeys(groups[name]))
        elif (current := OLD_NAMES.get(name, name)) in tasks:
            found[current] = None
        else:
            raise DeasError(_unknown(name, [*tasks, *groups, *OLD_NAMES]))
    return list(found)


def task_groups() -> dict[str, list[str]]:
    """Names of RoboCasa's task groups (``atomic_seen``, ...) to their tasks."""
    registry = robocasa_module("robocasa.utils.dataset_registry").TASK_SET_REGISTRY
    return {name: list(tasks) for name, tasks in registry.items()}


def task_horizon(task: str) -> int:
    """Control steps until RoboCasa's registry truncates an episode of ``task``.

    Raises:
        DeasError: The task is unknown.
    """
    horizons = _horizons()
    name = OLD_NAMES.get(task, task)
    if name not in horizons:
        raise DeasError(_unknown(task, [*horizons, *OLD_NAMES]))
    return horizons[name]


def check_assets(
    tasks: Sequence[str], object_registries: Iterable[str] = ("objaverse", "lightwheel")
) -> None:
    """Check that what kitchens are built from has been downloaded; starts no simulator.

    Every kitchen draws on the whole sets of fixtures, textures and objects, so it is these sets
    that are looked for.

    Args:
        tasks: Tasks about to run, for the message.
        object_registries: Registries that objects are sampled from.

    Raises:
        DeasError: Something is missing, with the download to run; or an unknown registry.
    """
    wanted = {"tex": [Path("textures")]}
    wanted["fixtures_lw"] = [Path("fixtures", name) for name in _DOWNLOADED_FIXTURES]
    for registry in object_registries:
        if registry not in _REGISTRY_DOWNLOADS:
            raise DeasError(
                f"object registry '{registry}' is unknown: use {list(_REGISTRY_DOWNLOADS)}"
            )
        folder = "aigen_objs" if registry == "aigen" else registry
        wanted[_REGISTRY_DOWNLOADS[registry]] = [Path("objects", folder)]
    roots = [root for root in (package_assets(), extra_assets()) if root is not None]
    missing = {
        name: [str(f) for f in needed if not any((root / f).is_dir() for root in roots)]
        for name, needed in wanted.items()
    }
    missing = {name: gone for name, gone in missing.items() if gone}
    if missing:
        folders = ", ".join(folder for gone in missing.values() for folder in gone)
        raise DeasError(
            f"{', '.join(tasks)}: RoboCasa's assets are missing in "
            f"{' and '.join(map(str, roots))} ({folders}): run "
            f"`python -m robocasa.scripts.download_kitchen_assets --type {' '.join(missing)}`, or "
            "use the kitchens that need none with --assets=lite"
        )


def choose_assets(
    choice: str,
    tasks: Sequence[str],
    object_registries: Iterable[str] = ("objaverse", "lightwheel"),
) -> str:
    """``robocasa`` or ``lite``: whose kitchens are meant.

    Args:
        choice: One of the two, or ``auto``: RoboCasa's where they are there, else our own.
        tasks: Tasks about to run, for messages.
        object_registries: RoboCasa's registries that objects would be sampled from.

    Raises:
        DeasError: An unknown choice, or ``robocasa`` without the assets; as `check_assets`.
    """
    if choice not in ("robocasa", "lite", "auto"):
        raise DeasError(f"assets '{choice}' are unknown: use robocasa, lite or auto")
    if choice == "lite":
        return choice
    extra_assets()  # a variable that names nothing is a mistake, not a reason to do without
    try:
        check_assets(tasks, object_registries)
    except DeasError:
        if choice == "robocasa":
            raise
        return "lite"
    return "robocasa"


def package_assets() -> Path:
    """Where the installed RoboCasa keeps its assets; found without importing it.

    Raises:
        DeasError: RoboCasa is not installed.
    """
    spec = package_spec("robocasa")
    if spec is None or spec.origin is None:
        raise DeasError(_NOT_INSTALLED.format("robocasa"))
    return Path(spec.origin).parent / "models" / "assets"


def extra_assets() -> Path | None:
    """Another directory with assets, from ``DEAS_ROBOCASA_ASSETS``: a download outside the package.

    Raises:
        DeasError: The variable names no directory.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    if not named:
        return None
    if not Path(named).is_dir():
        raise DeasError(f"{ASSETS_VARIABLE}={named} is no directory: correct or unset it")
    return Path(named)


def _horizons() -> dict[str, int]:
    registry = robocasa_module("robocasa.utils.dataset_registry")
    tasks = {**registry.ATOMIC_TASK_DATASETS, **registry.COMPOSITE_TASK_DATASETS}
    return {name: int(entry["horizon"]) for name, entry in tasks.items()}


def _unknown(name: str, known: list[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, 3, 0.5)]
    advice = f"did you mean {', '.join(near)}?" if near else "see RoboCasa's list of tasks"
    return f"RoboCasa task or group '{name}' is unknown: {advice}"


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
