"""RoboCasa's assets for the kitchen tests: downloaded ones, or the small kit of the sample data."""

from pathlib import Path

import pytest
from kitchen_cases import unpack_missing

from deas_vla.errors import DeasError
from deas_vla.sim.robocasa_tasks import assets_root, check_assets


@pytest.fixture(scope="session")
def kitchen_assets(repo_root: Path) -> Path:
    """The assets' directory, once kitchens can be built from it."""
    root = assets_root()
    half_unpacked = root / ".kit_unpacking"
    if _complete() and not half_unpacked.exists():
        return root
    kit = repo_root.parent / "shared" / "robocasa_kit" / "assets.tar.xz"
    if not kit.is_file():
        pytest.skip(f"RoboCasa's assets are not downloaded, and there is no kit at {kit}")
    half_unpacked.touch()
    unpack_missing(kit, root)
    half_unpacked.unlink(missing_ok=True)
    return root


def _complete() -> bool:
    try:
        check_assets(["tests"])
    except DeasError:
        return False
    return True
