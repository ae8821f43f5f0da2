"""Fixtures and settings of the whole suite: offline, headless, slow tests last."""

import os
import tarfile
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


@pytest.fixture(scope="session")
def kitchen_assets(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """RoboCasa's kitchens can be built: from a download, or from the small kit of the sample data.

    The kit is unpacked into a temporary directory, which counts as downloaded here and in the
    processes that tests start.
    """
    if _complete():
        return
    kit = kit_beside(repo_root)
    if not kit.is_file():
        pytest.skip(f"RoboCasa's assets are not downloaded, and there is no kit at {kit}")
    from deas_vla.envs.robocasa.tasks import ASSETS_VARIABLE

    os.environ[ASSETS_VARIABLE] = str(unpacked(kit, tmp_path_factory.mktemp("robocasa_kit")))


@pytest.fixture(scope="session")
def kit(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit by itself, in a temporary directory."""
    archive = kit_beside(repo_root)
    if not archive.is_file():
        pytest.skip(f"there is no kit at {archive}")
    return unpacked(archive, tmp_path_factory.mktemp("kit"))


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


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
