"""A bundle knows its backbone, and is found on the Hub as well as in a directory."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import groot_cases
import pytest
import torch
import yaml
from recipe_cases import NANO
from safetensors.torch import load_file, save_file

from deas_vla.bundle import open_bundle, push_bundle, read_manifest, write_bundle
from deas_vla.digests import file_digest
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.configuration_guided import ValueGuidedConfig, read_config
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.manifest import PARTS
from deas_vla.policies.config import load_vla
from deas_vla.training.config import PolicyConfig
from deas_vla.training.policy import add_lora


@pytest.mark.parametrize("part", ["backbone", "action_head"])
def test_another_base_is_refused(bundle: Path, tmp_path: Path, part: str) -> None:
    """One tensor moved a little: dimensions still fit, and the adapter loads."""
    base = Path(shutil.copytree(NANO, tmp_path / "base"))
    assert open_bundle(bundle, base=str(base)).vla.backbone_fingerprint()
    for shard in sorted(base.glob("*.safetensors")):
        weights = load_file(shard)
        names = [name for name in weights if name.startswith(f"{part}.")]
        if names:
            weights[names[0]] = weights[names[0]] * 1.1
            save_file(weights, shard, metadata={"format": "pt"})
            break
    with pytest.raises(DeasError, match=f"over another {part.replace('_', ' ')}"):
        open_bundle(bundle, base=str(base))
    with pytest.raises(DeasError, match=f"over another {part.replace('_', ' ')}"):
        ValueGuidedPolicy.from_pretrained(bundle, base=str(base))


def test_what_is_trained_whole_is_recognised_again(tmp_path: Path) -> None:
    """bfloat16 weights and whole trained copies: the fingerprints written are those read."""
    vla = load_vla(groot_cases.config(dtype="bfloat16"))
    add_lora(vla, PolicyConfig(train_projectors=True))
    for parameter in vla.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    config = ValueGuidedConfig(vla=groot_cases.config(dtype="bfloat16"), candidates=1, device="cpu")
    vla.model.eval()
    written = ValueGuidedPolicy(config, vla, critic=None)
    write_bundle(written, tmp_path / "bundle", {})
    assert open_bundle(tmp_path / "bundle").revision() == written.revision()


def test_a_bundle_of_before_lerobots_files_opens(bundle: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(bundle, tmp_path / "old", ignore=shutil.ignore_patterns("cache")))
    manifest = read_manifest(old)
    config = json.loads((old / "config.json").read_text())
    config |= {"input_features": {}, "output_features": {}}
    (old / "config.json").write_text(json.dumps(config))
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (old / name).unlink()
        del manifest["files"][name]
    manifest["files"]["config.json"] = file_digest(old / "config.json")
    del manifest["head"]
    (old / "bundle.json").write_text(json.dumps(manifest))
    assert open_bundle(old).revision() == open_bundle(bundle).revision()


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


def test_a_bundle_with_a_setting_that_is_gone_opens_where_it_was_not_used(
    bundle: Path, tmp_path: Path
) -> None:
    values = json.loads((bundle / "config.json").read_text())
    for reluctance in (0.0, 1.0):
        values["selection"] = {"rule": "best", "reluctance": reluctance}
        (tmp_path / f"{reluctance}").mkdir()
        (tmp_path / f"{reluctance}/config.json").write_text(json.dumps(values))
    assert read_config(tmp_path / "0.0").selection == SelectionConfig()
    with pytest.raises(DeasError, match="reluctance"):
        read_config(tmp_path / "1.0")


def test_the_manifest_names_the_backbone(bundle: Path) -> None:
    policy = open_bundle(bundle)
    assert read_manifest(bundle)["backbone"] == policy.vla.backbone_fingerprint()
    assert isinstance(policy.critic, torch.nn.Module)


class LocalHub:
    """What is used of huggingface_hub's HfApi, with a directory for the Hub."""

    home: Path

    def __init__(self, token: str | None = None) -> None:
        pass

    def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
        (self.home / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, **_: Any) -> None:
        pass

    def upload_folder(self, *, repo_id: str, folder_path: Path, **more: Any) -> str:
        place = self.home / repo_id / (more.get("revision") or "main")
        shutil.copytree(folder_path, place, dirs_exist_ok=True)
        return f"local/{repo_id}"

    @classmethod
    def snapshot(cls, repo_id: str, revision: str | None = None, **_: Any) -> str:
        place = cls.home / repo_id / (revision or "main")
        if not place.is_dir():
            raise FileNotFoundError(place)
        return str(place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    LocalHub.home = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.HfApi", LocalHub)
    monkeypatch.setattr("lerobot.utils.hub.HfApi", LocalHub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", LocalHub.snapshot)
    return LocalHub.home


ROWS = [
    {"task": "Lift", "candidates": 1, "episodes": 100, "success_rate": 0.64, "ci95": [0.54, 0.73]},
    {
        **{"task": "Lift", "candidates": 16, "episodes": 100, "success_rate": 0.84},
        **{"ci95": [0.76, 0.9], "diff_to_base": 0.2, "diff_ci95": [0.08, 0.31]},
    },
]


def test_a_bundle_goes_to_the_hub_and_comes_back(bundle: Path, hub: Path, tmp_path: Path) -> None:
    """From its directory, and from a loaded policy: everything of it, and nothing else."""
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"rows": ROWS}))
    push_bundle(bundle, "user/lift", results=results)
    push_bundle(bundle, "user/lift", revision="v1")
    here = open_bundle(bundle)
    here.push_to_hub("user/again")
    pushed = {p.relative_to(hub).parts[3:] for p in (hub / "user").rglob("*") if p.is_file()}
    assert {name[0] for name in pushed} == {*PARTS, "bundle.json"}
    for name, revision in (("lift", None), ("lift", "v1"), ("again", None)):
        there = ValueGuidedPolicy.from_pretrained(f"user/{name}", revision=revision)
        assert there.revision() == here.revision()
        assert there.provenance["data"] == here.provenance["data"]
    main, branch = (hub / "user/lift" / name for name in ("main", "v1"))
    assert "Not evaluated yet" in (branch / "README.md").read_text()
    card = (main / "README.md").read_text()
    assert "| Lift | 16 | 100 | 84 % | 76 to 90 % | +20 points (+8 to +31) |" in card
    assert "| lift the red cube | 6 | 3 |" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "lerobot" and "deas_guided" in front["tags"]
    assert open_bundle("user/lift").provenance["results"] == ROWS  # the card survives a new save


def test_half_a_download_is_refused(bundle: Path, hub: Path, tmp_path: Path) -> None:
    push_bundle(bundle, "user/half")
    whole = hub / "user/half/main"
    (whole / "policy" / "adapter_model.safetensors").unlink()
    message = r"half-downloaded: policy/adapter_model\.safetensors is missing"
    for load in (open_bundle, ValueGuidedPolicy.from_pretrained):
        with pytest.raises(DeasError, match=message):
            load("user/half")
    with pytest.raises(DeasError, match=message):
        push_bundle(whole, "user/other")
    (whole / "bundle.json").write_text("{")
    with pytest.raises(DeasError, match=r"bundle\.json: not readable"):
        open_bundle("user/half")
    (whole / "bundle.json").unlink()
    with pytest.raises(DeasError, match="half-written or half-downloaded"):
        open_bundle("user/half")
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{"what": "head"}]}))
    with pytest.raises(DeasError, match="hold no success rates"):
        push_bundle(bundle, "user/half", results=tmp_path / "results.json")
