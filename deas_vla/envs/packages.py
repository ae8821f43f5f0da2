"""Simulators' packages by name, past any script that is named after one.

``python eval/robocasa.py`` puts ``eval/`` first on the search path, where ``import robocasa`` would
find the script again. Environments therefore import their simulator through `import_package`.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def package_spec(name: str) -> ModuleSpec | None:
    """Where package ``name`` is installed; None where it is not. Nothing is imported."""
    for entry in sys.path:
        found = PathFinder.find_spec(name, [entry])
        if found is not None and found.has_location and found.submodule_search_locations:
            return found
    found = importlib.util.find_spec(name)  # an editable install has a finder of its own
    return found if found is not None and found.submodule_search_locations else None


def import_package(name: str) -> ModuleType:
    """Import package ``name``; whoever imports it afterwards gets this one.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = package_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
