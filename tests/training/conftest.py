"""The nano GR00T with untrained weights, for robots that the shipped one has no room for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from recipe_cases import ROOT


@pytest.fixture(scope="session")
def nano_scripts() -> object:
    """The folder of the scripts, where they find each other."""
    folder = str(ROOT / "recipes/nano")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def nano_frames(nano_scripts: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the shape of both robots' frames: six episodes of four."""
    from frames import Frames, chunk_at
    from robots import ROBOTS

    data, rng = tmp_path_factory.mktemp("nano") / "data", np.random.default_rng(0)
    for robot in ROBOTS:
        rows, pairs = [], []
        for frame in range(24):
            actions = rng.uniform(-1, 1, (9, robot.action_dim)).astype(np.float32)
            pairs += [(frame, f"{which} knob", rng.normal(size=3)) for which in ("left", "right")]
            rows.append(
                {
                    "images": rng.integers(0, 255, (len(robot.cameras), 64, 64, 3), dtype=np.uint8),
                    "state": rng.normal(size=robot.state_dim).astype(np.float32),
                    **chunk_at(actions, 0),
                    "imitate": frame % 4 > 0,
                    "text": "left knob",
                    "hand": np.zeros(3, np.float32),
                    "episode": frame // 4,
                }
            )
        (data / robot.folder).mkdir(parents=True)
        Frames.of(rows, pairs).save(data / robot.folder, 0)
    return data


@pytest.fixture(scope="session")
def untrained_nano(nano_frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import build

    output = tmp_path_factory.mktemp("nano") / "init"
    build.main(build.BuildConfig(data=nano_frames, output=output))
    return output
