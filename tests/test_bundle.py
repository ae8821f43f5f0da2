"""A bundle knows its backbone, and is found on the Hub as well as in a directory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from recipe_cases import NANO
from safetensors.torch import load_file, save_file

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.configuration_guided import read_config
from deas_vla.guidance.guided import ValueGuidedPolicy


def test_another_backbone_is_refused(bundle: Path, tmp_path: Path) -> None:
    """One tensor of the backbone moved a little: dimensions and head still fit."""
    base = Path(shutil.copytree(NANO, tmp_path / "base"))
    assert open_bundle(bundle, base=str(base)).vla.backbone_fingerprint()
    for shard in sorted(base.glob("*.safetensors")):
        weights = load_file(shard)
        names = [name for name in weights if name.startswith("backbone.")]
        if names:
            weights[names[0]] = weights[names[0]] * 1.1
            save_file(weights, shard, metadata={"format": "pt"})
            break
    with pytest.raises(DeasError, match="over another backbone"):
        open_bundle(bundle, base=str(base))


def hub_with(bundle: Path, home: Path, commit: str) -> None:
    """The cache that huggingface_hub leaves after a download of ``user/name``."""
    repo = home / "models--user--name"
    shutil.copytree(bundle, repo / "snapshots" / commit, ignore=shutil.ignore_patterns("cache"))
    (repo / "refs").mkdir()
    for name in ("main", "v1"):
        (repo / "refs" / name).write_text(commit)


def test_a_hub_id_and_its_revisions(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    hub_with(bundle, tmp_path, commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    here = open_bundle(bundle)
    for revision in (None, "main", "v1"):
        there = open_bundle("user/name", revision=revision)
        assert there.revision() == here.revision()
    assert ValueGuidedPolicy.from_pretrained("user/name", revision="v1").critic is not None
    with pytest.raises(DeasError, match="user/name at revision other is no directory"):
        open_bundle("user/name", revision="other")
    altered = tmp_path / "models--user--name" / "snapshots" / commit / "critic" / "config.json"
    altered.write_text("{}")
    with pytest.raises(DeasError, match=r"critic/config\.json is altered"):
        open_bundle("user/name")


def test_a_bundle_of_before_selection_had_settings_opens(bundle: Path, tmp_path: Path) -> None:
    for temperature, rule in ((0.0, "best"), (0.5, "softmax")):
        values = json.loads((bundle / "config.json").read_text())
        del values["selection"]
        (tmp_path / "config.json").write_text(json.dumps(values | {"temperature": temperature}))
        expected = SelectionConfig(rule=rule, temperature=temperature)
        assert read_config(tmp_path).selection == expected
    (tmp_path / "config.json").write_text(json.dumps(values | {"nonsense": 1}))
    with pytest.raises(DeasError, match=r"config\.json: .*nonsense"):
        read_config(tmp_path)


def test_the_manifest_names_the_backbone(bundle: Path) -> None:
    policy = open_bundle(bundle)
    assert read_manifest(bundle)["backbone"] == policy.vla.backbone_fingerprint()
    assert isinstance(policy.critic, torch.nn.Module)
