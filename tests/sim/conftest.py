"""RoboCasa's assets for the kitchen tests: downloaded ones, or the small kit of the sample data."""

import sys
from pathlib import Path

import pytest
from kitchen_cases import unpack_missing

from deas_vla.errors import DeasError
from deas_vla.sim.robocasa_tasks import assets_root, check_assets


@pytest.fixture(scope="session", autouse=True)
def _unpacked_kit(repo_root: Path) -> None:
    """Before any test: RoboCasa lists its objects when it is first imported, and never again."""
    root = assets_root()
    half_unpacked = root / ".kit_unpacking"
    kit = kit_beside(repo_root)
    if kit.is_file() and (half_unpacked.exists() or not _complete()):
        assert "robocasa" not in sys.modules
        half_unpacked.touch()
        unpack_missing(kit, root)
        half_unpacked.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def kitchen_assets(repo_root: Path) -> Path:
    """The assets' directory, if kitchens can be built from it."""
    if not _complete():
        kit = kit_beside(repo_root)
        pytest.skip(f"RoboCasa's assets are not downloaded, and there is no kit at {kit}")
    return assets_root()


def kit_beside(repo_root: Path) -> Path:
    return repo_root.parent / "shared" / "robocasa_kit" / "assets.tar.xz"


def _complete() -> bool:
    try:
        check_assets(["tests"])
    except DeasError:
        return False
    return True
