"""The recipe on a mixture: caches, shares, what the bundle says, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_cases import load_script, recipe, record

from deas_vla.bundle import read_manifest
from deas_vla.cli import parse
from deas_vla.critic.base import Critic
from deas_vla.data.episodes import load_episodes
from deas_vla.data.recording import write_assets
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.policies.groot import GrootVLA
from deas_vla.training import rounds
from deas_vla.training.config import CriticTrainingConfig, FinetuneConfig
from deas_vla.training.critic_data import check_critic_data
from deas_vla.training.datasets import load_dataset
from deas_vla.training.rounds import Retraining


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = record(tmp_path_factory.mktemp("mixture") / "rollouts", episodes=3)
    write_assets(root, "robocasa")
    return root


def test_a_mixture_trains(
    bundle: Path,
    tiny_dataset: Path,
    rollouts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Path(shutil.copytree(bundle / "cache", tmp_path / "cache"))
    before = {path.name for path in cache.iterdir()}
    encoded = []
    encode = GrootVLA.encode_inputs
    monkeypatch.setattr(
        GrootVLA,
        "encode_inputs",
        lambda vla, inputs, state: encoded.append(len(state)) or encode(vla, inputs, state),
    )
    output = recipe(
        tiny_dataset,
        tmp_path / "run",
        f"--features.cache={cache}",
        "--dataset.weight=1",
        f"--dataset.extra=[{{root: {rollouts}, weight: 3}}]",
        "--critic.balance=outcome",
        "--checkpoint.load_best_at_end=true",
    )
    # What the first dataset has in the cache stays; the other gets caches of its own.
    new = {path.name for path in cache.iterdir()} - before
    assert len(new) == 2 and {name.split("-")[0] for name in new} == {"tokens", "pooled"}
    # Frames of the rollouts, and an instruction of each dataset: for its size, for its masks.
    assert sum(encoded) == 14 + 16 + 18 + 4

    data = read_manifest(output)["data"]
    assert data["episodes"] == 9 and [s["weight"] for s in data["sources"]] == [1, 3]
    assert [s["episodes"] for s in data["sources"]] == [6, 3]
    assert data["assets"] == "mixed"
    # The evaluation finds the mixture in the bundle, and the episodes that it held out.
    script = load_script("eval/critic.py")
    config = script.chosen_dataset(script.DatasetSource(), read_manifest(output))
    table = load_dataset(config)
    assert table.fingerprint == data["fingerprint"]
    assert len(script.held_out_episodes(read_manifest(output), table)) == 3

    # Trained anew with rollouts: demonstrations keep their weights among each other.
    asked: list[list[float] | None] = []
    train = rounds.train_critic

    def noted(*arguments: Any, shares: list[float] | None) -> Critic:
        asked.append(shares)
        assert arguments[5].checkpoint.load_best_at_end  # as the bundle's own run had it
        return train(*arguments, shares=shares)

    monkeypatch.setattr(rounds, "train_critic", noted)
    more = record(tmp_path / "more", episodes=3)
    settings = Retraining(holdout=0.1, seed=0, round=1, critic_steps=2)
    rounds.retrain(output, [more], tmp_path / "anew", settings, "cpu")
    frames, added = table.num_frames, load_episodes("more", more).num_frames
    assert asked == [[frames / 4, 3 * frames / 4, added]]


def test_weights_are_given_to_all_or_none(tiny_dataset: Path, tmp_path: Path) -> None:
    extra = f"--dataset.extra=[{{root: {tiny_dataset}}}]"
    with pytest.raises(DeasError, match=r"dataset weights \[2.0, None\]: give each dataset one"):
        recipe(tiny_dataset, tmp_path / "run", "--dataset.weight=2", extra)
    assert parse(FinetuneConfig, ["--dataset.weight=2"]).dataset.shares is None  # a single one


def test_another_robot_is_refused_before_anything_is_computed(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    narrow = record(tmp_path / "narrow", episodes=2, action_dim=6)
    with pytest.raises(DeasError, match="differ in action_names"):
        recipe(tiny_dataset, tmp_path / "run", f"--dataset.extra=[{{root: {narrow}}}]")
    assert not (tmp_path / "run").exists()


def test_a_damaged_dataset_is_refused_before_anything_is_computed(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"total_frames": 3}))
    with pytest.raises(DeasError, match="says 3 frames, meta/episodes adds up to 114"):
        recipe(copy, tmp_path / "run")
    with pytest.raises(DeasError, match="says 3 frames"):
        load_script("eval/critic.py").load_dataset(
            load_script("eval/critic.py").DatasetConfig(root=str(copy))
        )
    assert not (tmp_path / "run").exists()


def test_a_critic_needs_a_success(tmp_path: Path) -> None:
    from table_cases import make_table

    table, config = make_table((9, 12), (False, False)), CriticTrainingConfig(horizon=4)
    with pytest.raises(DeasError, match="has 2 episodes and not one success"):
        check_critic_data(table, np.arange(2), config)
    config.reward = RewardConfig("dataset")  # a reward of its own says what is better
    shaped = np.linspace(0, 1, table.num_frames, dtype=np.float32)
    check_critic_data(replace(table, dataset_reward=shaped), np.arange(2), config)
