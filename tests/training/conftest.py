"""A tiny dataset and the nano checkpoint: what the stages need to run for real."""

from pathlib import Path

import numpy as np
import pytest

from deas_vla.data.recording import EpisodeRecorder
from deas_vla.sim.robosuite_lift import LiftConfig, lift_spec

SPEC = lift_spec(LiftConfig())
CAMERAS = SPEC.image_keys


def record(root: Path, episodes: int = 6, state_dim: int = 9, action_dim: int = 7) -> Path:
    """Episodes of 14 to 24 steps; even ones succeed. Success shows in pictures and actions."""
    rng = np.random.default_rng(0)
    names = (SPEC.state_names * 4)[:state_dim], (SPEC.action_names * 4)[:action_dim]
    with EpisodeRecorder(
        root, "test/tiny", 10, dict.fromkeys(CAMERAS, (64, 64)), *names, robot_type="panda"
    ) as recorder:
        for episode in range(episodes):
            steps, good = 14 + 2 * episode, episode % 2 == 0
            end = np.arange(steps) == steps - 1
            shade = 60 if good else 180
            recorder.add_episode(
                images={
                    key: rng.integers(shade, shade + 40, (steps, 64, 64, 3), dtype=np.uint8)
                    for key in CAMERAS
                },
                state=rng.normal(size=(steps, state_dim)).astype(np.float32),
                action=np.clip(rng.normal(0.3 if good else -0.3, 0.3, (steps, action_dim)), -1, 1),
                reward=(end & good).astype(np.float32),
                success=end & good,
                terminated=end & good,
                truncated=end & (not good),
                task="lift the red cube",
                seed=episode,
            )
    return root


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "tiny")
