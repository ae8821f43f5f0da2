"""Fixtures of the dataset tests."""

from pathlib import Path

import pytest
from data_cases import LENGTHS, OUTCOMES, Episode, make_episode, record


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    """The episodes of `recorded`."""
    return [make_episode(i, n, ok) for i, (n, ok) in enumerate(zip(LENGTHS, OUTCOMES, strict=True))]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    """A dataset of five episodes spread over several video files of several episodes each."""
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    return record(root, episodes, video_file_mb=0.0095)
