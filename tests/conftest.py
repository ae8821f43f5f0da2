"""Fixtures and settings of the whole suite: offline, headless, slow tests last."""

import os
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
