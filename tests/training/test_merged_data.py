"""The recipe on demonstrations merged with rollouts, as the paper trains."""

import json
from pathlib import Path

import numpy as np
import pytest
from recipe_cases import recipe, record

from deas_vla.bundle import open_bundle
from deas_vla.data.episodes import load_episodes
from deas_vla.data.merge import merge
from deas_vla.training.policy import chunk_starts


@pytest.mark.slow
def test_the_recipe_trains_on_demonstrations_and_rollouts(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    rollouts = record(tmp_path / "rollouts", episodes=4)
    merged = merge([tiny_dataset, rollouts], tmp_path / "merged", "test/merged")
    table = load_episodes("test/merged", merged)
    assert table.episode_success.tolist() == [True, False] * 5

    # Filtered behaviour cloning: what succeeded, of both.
    cloned = chunk_starts(table, np.arange(10), "successful")
    assert set(table.episode_index[cloned]) == {0, 2, 4, 6, 8}
    output = recipe(merged, tmp_path / "run", "--policy.episodes=successful")
    data = json.loads((output / "bundle.json").read_text())["data"]
    assert data["episodes"] == 10 and data["successful_episodes"] == 5
    assert len(data["trained_episode_digests"]) + len(data["held_out_episodes"]) == 10
    assert open_bundle(output).critic is not None
