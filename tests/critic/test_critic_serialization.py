"""A critic on disk: the same to the bit, and refused where it isn't whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from critic_cases import random_batch, seeded, small_config
from safetensors.torch import load_file, save_file

from deas_vla.critic import ChunkBatch, Critic, InferenceConfig, load_critic, save_critic
from deas_vla.critic import serialization as serialization_module
from deas_vla.critic.config import ALGORITHMS
from deas_vla.errors import DeasError

Build = Callable[..., Critic]
FILES = ("config.json", "model.safetensors", "normalization.safetensors")


@pytest.fixture
def saved(build: Build, tmp_path: Path) -> Path:
    return save_critic(build(), tmp_path / "critic")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_critic_is_the_same_to_the_bit(
    build: Build, batch: ChunkBatch, tmp_path: Path, algorithm: str
) -> None:
    critic = build(algorithm)
    critic.update_target(rate=0.3)
    loaded = load_critic(save_critic(critic, tmp_path / "critic"))
    assert sorted(p.name for p in (tmp_path / "critic").iterdir()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["critic"]  # nothing left beside it
    assert loaded.config == critic.config and not loaded.training
    for name, tensor in critic.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    candidates = random_batch().next_candidates
    assert torch.equal(
        loaded.score(batch.feature, batch.state, candidates),
        critic.score(batch.feature, batch.state, candidates),
    )
    # and it goes on training as the first would have
    assert torch.equal(loaded(batch, seeded())[0], critic(batch, seeded())[0])


def test_inference_settings_are_saved_as_they_stand(build: Build, tmp_path: Path) -> None:
    critic = build("evor")
    critic.inference = InferenceConfig(eta=0.2, samples=7)
    assert load_critic(save_critic(critic, tmp_path / "c")).inference == critic.inference


def test_statistics_stand_apart_from_the_weights(saved: Path) -> None:
    assert set(load_file(saved / FILES[2])) == {
        f"{what}_{moment}" for what in ("feature", "state", "action") for moment in ("mean", "std")
    }
    assert not any("normalizer" in name for name in load_file(saved / FILES[1]))


def test_saving_again_replaces_the_old_one(build: Build, saved: Path) -> None:
    save_critic(build("iql", seed=4), saved)
    assert load_critic(saved).config.algorithm == "iql"
    assert [p.name for p in saved.parent.iterdir()] == ["critic"]


def test_a_failed_save_leaves_the_old_one(
    build: Build, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization_module, "save_file", full)
    with pytest.raises(DeasError, match=r"critic.*No space left"):
        save_critic(build("iql"), saved)
    assert load_critic(saved).config.algorithm == "deas"
    assert [p.name for p in saved.parent.iterdir()] == ["critic"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DeasError, match=name):
        load_critic(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_file_is_named(saved: Path, name: str, keep: float) -> None:
    size = (saved / name).stat().st_size
    os.truncate(saved / name, int(size * keep))
    with pytest.raises(DeasError, match=name):
        load_critic(saved)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_another_critic_is_named(build: Build, saved: Path, name: str) -> None:
    other = save_critic(build(seed=1), saved.parent / "other")
    statistics = load_file(other / FILES[2])
    statistics["state_mean"] += 1
    save_file(statistics, other / FILES[2])
    os.replace(other / name, saved / name)
    with pytest.raises(DeasError, match=name):
        load_critic(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format_version": 99}, "format_version = 99"),
        ({"sha256": {}}, "sha256"),
        ({"config": {"algorithm": "deas", "speed": 3}}, "critic.speed = 3"),
        ({"config": small_config(hidden=[16, 16]).to_dict()}, "critics.*shape"),
        ({"config": small_config("iql").to_dict()}, "shape"),
        ({"config": small_config("evor").to_dict()}, "critics"),
        ({"config": small_config(state_dim=9).to_dict()}, "state_dim = 9"),
    ],
)
def test_an_altered_config_is_refused(saved: Path, change: dict[str, object], named: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DeasError, match=named) as refusal:
        load_critic(saved)
    assert "\n" not in str(refusal.value)


def test_a_place_that_cannot_be_written_is_named(build: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeasError, match="file/critic"):
        save_critic(build(), tmp_path / "file" / "critic")


def test_no_critic_there(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="no critic there"):
        load_critic(tmp_path / "nothing")
