"""Several datasets as one: what is filled in, what is refused, what LeRobot reads back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_cases import IMAGE_KEYS, make_episode, make_recorder, record

from deas_vla.data.episodes import load_episodes
from deas_vla.data.layout import open_dataset
from deas_vla.data.merge import merge
from deas_vla.data.recording import write_assets
from deas_vla.errors import DeasError

OURS = ("next.terminated", "next.truncated", "episode_seed", "policy_revision")


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("merge") / "rollouts"
    with make_recorder(root, assets="lite") as recorder:
        for seed, solved in ((0, False), (1, True)):
            episode = vars(make_episode(seed, 9 + seed, solved))
            recorder.add_episode(**episode, policy_revision="abc")
    return root


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without any word on outcomes, seeds or policies, as people's demonstrations come."""
    from lerobot.datasets import LeRobotDataset
    from lerobot.datasets.dataset_tools import modify_features

    folder = tmp_path_factory.mktemp("demos")
    root = record(folder / "full", [make_episode(seed, 7, True) for seed in (5, 6)])
    columns = ["next.reward", "next.done", "next.success", *OURS]
    modify_features(
        LeRobotDataset("a/b", root), remove_features=columns, output_dir=folder / "bare"
    )
    return folder / "bare"


def test_demonstrations_and_rollouts(demos: Path, rollouts: Path, tmp_path: Path) -> None:
    merged = merge([demos, rollouts], tmp_path / "merged", "test/merged", solved=[demos])
    table = load_episodes("test/merged", merged)
    assert table.episode_lengths.tolist() == [7, 7, 9, 10]
    assert open_dataset("test/merged", merged).assets == ""  # the demonstrations do not say
    assert table.episode_success.tolist() == [True, True, False, True]
    assert table.tasks == ("task 1", "task 0")
    parts = [load_episodes("x/y", rollouts)]
    np.testing.assert_array_equal(table.action[14:], parts[0].action)
    np.testing.assert_array_equal(table.truncated[14:], parts[0].truncated)
    assert table.dataset_reward is not None and table.dataset_reward[[6, 13]].tolist() == [1, 1]

    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("test/merged", merged, video_backend="pyav", return_uint8=True)
    assert dataset[0]["policy_revision"] == "" and dataset[20]["policy_revision"] == "abc"
    assert dataset[0]["episode_seed"].item() == -1 and dataset[20]["episode_seed"].item() == 100
    assert bool(dataset[6]["next.terminated"]) and bool(dataset[22]["next.truncated"])
    # The right pictures still belong to the right frames.
    episode = make_episode(1, 10, True)
    for t in (0, 9):
        picture = dataset[23 + t][IMAGE_KEYS[0]].permute(1, 2, 0).numpy().astype(float)
        assert np.abs(picture - episode.images[IMAGE_KEYS[0]][t]).mean() < 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]
    assert demos.exists() and rollouts.exists()


def test_many_are_joined_in_groups(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deas_vla.data.merge._GROUP", 2)
    sources = [rollouts]
    for k in range(4):
        sources.append(Path(shutil.copytree(rollouts, tmp_path / f"copy{k}")))
    merged = merge(sources, tmp_path / "merged", "a/b")
    table = load_episodes("a/b", merged)
    assert table.episode_lengths.tolist() == [9, 10] * 5 and rollouts.exists()
    assert open_dataset("a/b", merged).assets == "lite"
    write_assets(sources[-1], "robocasa")
    both = merge(sources[-2:], tmp_path / "both", "a/b")
    assert open_dataset("a/b", both).assets == "mixed"


def test_one_source_is_copied(rollouts: Path, tmp_path: Path) -> None:
    merged = merge([rollouts], tmp_path / "merged", "a/b")
    assert load_episodes("a/b", merged).fingerprint == load_episodes("a/b", rollouts).fingerprint
    assert rollouts.exists()


def test_rollouts_must_say_what_became_of_them(demos: Path, tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="list it under --demos"):
        merge([demos], tmp_path / "merged", "a/b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robot_type": "gr1"}, "differ in robot_type (panda and gr1)"),
        ({"fps": 10}, "differ in fps (20.0 and 10.0)"),
        ({"features": {"action": {"dtype": "float32", "shape": [3]}}}, "differ in action"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    rollouts: Path, tmp_path: Path, change: dict, message: str
) -> None:
    other = Path(shutil.copytree(rollouts, tmp_path / "other"))
    info = json.loads((other / "meta/info.json").read_text())
    features = info["features"] | change.pop("features", {})
    (other / "meta/info.json").write_text(json.dumps(info | change | {"features": features}))
    with pytest.raises(DeasError) as error:
        merge([rollouts, other], tmp_path / "merged", "a/b")
    assert message in str(error.value) and not (tmp_path / "merged").exists()
