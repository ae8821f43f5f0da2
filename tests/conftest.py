"""Fixtures and settings of the whole suite: offline, headless, slow tests last."""

import os
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent

# Before anything imports a library that reads them. The hub's cache is one of this checkout, so
# that what an earlier run left in the user's home cannot make a test pass here and fail elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(REPO_ROOT / "outputs" / ".cache" / "huggingface")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
os.environ["MPLBACKEND"] = "agg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: the sort is stable, so each half keeps its order."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Small tensors gain nothing from many threads, and a shared machine loses by them."""
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_dir(repo_root: Path) -> Path:
    """Larger sample data beside the checkout; tests that need it are skipped where it is not."""
    path = repo_root.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no sample data: {path} is not there")
    return path


@pytest.fixture(scope="session", autouse=True)
def _unpacked_kit(repo_root: Path) -> None:
    """Before any test: RoboCasa lists its objects when it is first imported, and never again."""
    from kitchen_cases import unpack_missing

    from deas_vla.envs.robocasa.tasks import assets_root

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
    from deas_vla.envs.robocasa.tasks import assets_root

    return assets_root()


def kit_beside(repo_root: Path) -> Path:
    return repo_root.parent / "shared" / "robocasa_kit" / "assets.tar.xz"


def _complete() -> bool:
    from deas_vla.envs.robocasa.tasks import check_assets
    from deas_vla.errors import DeasError

    try:
        check_assets(["tests"])
    except DeasError:
        return False
    return True


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short episodes, three of them successful."""
    from recipe_cases import record

    return record(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def bundle(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of all stages over it leaves."""
    from recipe_cases import recipe

    return recipe(tiny_dataset, tmp_path_factory.mktemp("run") / "bundle", "--tracker=tensorboard")
