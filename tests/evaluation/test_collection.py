"""Rollouts into one dataset by several workers, and what survives a kill."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sim_cases import LocalAgent, ToyEnv
from toy_collection import collect

from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.envs.rollout import rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.journal import finished
from deas_vla.evaluation.recording import assembled_outcomes, recover

SCRIPT = Path(__file__).with_name("toy_collection.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
}


def by_id(directory: Path) -> dict[str, np.ndarray]:
    """Actions by episode id; every episode stands in the dataset once."""
    table = load_episodes("test/toy", directory / "dataset")
    outcomes = assembled_outcomes(directory)
    assert len(outcomes) == table.num_episodes
    assert [o.steps for o in outcomes] == table.episode_lengths.tolist()
    assert [o.success for o in outcomes] == table.episode_success.tolist()
    found = {o.episode_id: table.action[table.frames(k)] for k, o in enumerate(outcomes)}
    assert len(found) == len(outcomes)
    return found


@pytest.mark.slow
def test_several_workers_fill_one_dataset_that_can_grow(tmp_path: Path) -> None:
    outcomes = collect(tmp_path, "Breaks", 2, 2)  # its first seed breaks the simulator
    assert [o.outcome == "error" for o in outcomes] == [True, True, False, False]
    assert set(by_id(tmp_path)) == {o.episode_id for o in outcomes[2:]}
    table: EpisodeTable = load_episodes("test/toy", tmp_path / "dataset")
    assert table.image_keys == ("observation.images.front",)
    assert table.tasks == (f"go from {outcomes[2].seed}",)

    collect(tmp_path, "Breaks", 2, 2)
    again = load_episodes("test/toy", tmp_path / "dataset")
    assert again.fingerprint == table.fingerprint
    collect(tmp_path, "Breaks", 3, 1)
    assert len(by_id(tmp_path)) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset", "episodes.jsonl"]

    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("test/toy", tmp_path / "dataset", video_backend="pyav")
    recorded = assembled_outcomes(tmp_path)
    start = 0
    for outcome in recorded:
        first, last = dataset[start], dataset[start + outcome.steps - 1]
        assert first["episode_seed"].item() == outcome.seed
        assert first["policy_revision"] == f"abc-n{outcome.candidates}"
        assert first["task"] == f"go from {outcome.seed}"
        assert bool(last["next.success"]) == bool(last["next.terminated"]) == outcome.success
        assert bool(last["next.truncated"]) != outcome.success and bool(last["next.done"])
        assert last["next.reward"].item() == outcome.success
        # The camera shows x, which the state says.
        shade = first["observation.images.front"].mean().item() * 255
        assert shade == pytest.approx(100 + 50 * first["observation.state"].item(), abs=4)
        start += outcome.steps


@pytest.mark.slow
def test_finished_episodes_survive_kill_9(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    command = [sys.executable, str(SCRIPT), str(cut), "Slow", "3", "1"]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    while len(finished(cut) if cut.exists() else {}) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = set(finished(cut))
    assert 3 <= len(before) < 6
    # As if the kill had come while the next episode was written, and after it was in place.
    (cut / "episodes" / ".Slow-1-1.torn").mkdir()
    outcomes = collect(cut, "Slow", 3, 1)
    found = by_id(cut)
    assert before <= set(found) == {o.episode_id for o in outcomes} and len(found) == 6
    for outcome in outcomes:
        undisturbed = rollout(
            ToyEnv("Slow", tmp_path), LocalAgent(outcome.candidates), outcome.seed
        )
        assert np.array_equal(found[outcome.episode_id], undisturbed.actions)


@pytest.mark.slow
def test_a_kill_while_datasets_change_places(tmp_path: Path) -> None:
    collect(tmp_path, "Toy", 1, 1)
    (tmp_path / "dataset").rename(tmp_path / "dataset.old")
    (tmp_path / "dataset.new").mkdir()
    recover(tmp_path, list(finished(tmp_path).values()))
    assert len(by_id(tmp_path)) == 2 and not (tmp_path / "dataset.new").exists()
    (tmp_path / "dataset").rename(tmp_path / "elsewhere")
    with pytest.raises(DeasError, match=r"is neither in dataset/ nor in episodes/"):
        recover(tmp_path, list(finished(tmp_path).values()))
