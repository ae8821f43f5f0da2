"""Fixtures and settings of the whole suite: offline, headless, slow tests last."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from workers import WORKER, group, once, order

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
if WORKER in os.environ:  # a core each, in the processes that tests start too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: the sort is stable, so each half keeps its order."""
    items.sort(key=order)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Small tensors gain nothing from many threads, and a shared machine loses by them."""
    import torch

    torch.set_num_threads(1 if WORKER in os.environ else min(2, os.cpu_count() or 1))


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
    archive = kit_beside(repo_root)
    if not archive.is_file():
        pytest.skip(f"RoboCasa's assets are not downloaded, and there is no kit at {archive}")
    from deas_vla.envs.robocasa.tasks import ASSETS_VARIABLE

    folder = once(tmp_path_factory, "kit", lambda folder: unpack(archive, folder))
    os.environ[ASSETS_VARIABLE] = str(folder)


@pytest.fixture(scope="session")
def kit(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit by itself, in a temporary directory."""
    archive = kit_beside(repo_root)
    if not archive.is_file():
        pytest.skip(f"there is no kit at {archive}")
    return once(tmp_path_factory, "kit", lambda folder: unpack(archive, folder))


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


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

    return once(tmp_path_factory, "data", lambda folder: record(folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def bundle(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of all stages over it leaves; each process has a copy, whose cache tests fill."""
    from recipe_cases import recipe

    made = once(
        tmp_path_factory,
        "run",
        lambda folder: recipe(tiny_dataset, folder / "bundle", "--tracker=tensorboard"),
    )
    return Path(shutil.copytree(made / "bundle", tmp_path_factory.mktemp("run") / "bundle"))
