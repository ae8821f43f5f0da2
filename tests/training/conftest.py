"""One dataset and one bundle for all tests of the stages."""

from pathlib import Path

import pytest
from recipe_cases import recipe, record


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short episodes, three of them successful."""
    return record(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def bundle(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of all stages over it leaves."""
    return recipe(tiny_dataset, tmp_path_factory.mktemp("run") / "bundle", "--tracker=tensorboard")
