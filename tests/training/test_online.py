"""The policy stage on pictures, with the backbone in the loop."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from recipe_cases import NANO, flags, recipe
from safetensors.torch import load_file

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import parse
from deas_vla.data.episodes import load_episodes
from deas_vla.data.feature_cache import FeatureCache
from deas_vla.data.image_transforms import ImageTransformsConfig
from deas_vla.data.single_frames import FrameReader
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import pool_encoding
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.loop import index_batches
from deas_vla.training.memory import told_workers
from deas_vla.training.policy_inputs import OnlinePictures, Part
from deas_vla.training.record import recorded_run
from deas_vla.training.tokens import settle_tokens

CPU = torch.device("cpu")
ADAPTER = "policy/adapter_model.safetensors"
AUGMENTED = ["--policy.augment=checkpoint", "--dataset.image_transforms.enable=true"]
TRAINED = ["--policy.train=[head,llm_top:1,vlln]", *AUGMENTED]
EVERY = ["--policy.steps=4", "--checkpoint.every=1", "--checkpoint.keep=9", "--policy.lr=1e-2"]


@pytest.fixture(scope="module")
def vla(bundle: Path) -> VLA:
    return open_bundle(bundle).vla


def test_losses_are_those_of_cached_tokens(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, list[float]] = {"cached": [], "online": []}
    loss = GrootVLA.flow_matching_loss
    run = ["--stages=[features,policy]", "--policy.steps=6", "--policy.lr=3e-3"]
    for mode, seen in losses.items():

        def noted(*given: Any, seen: list[float] = seen) -> torch.Tensor:
            found = loss(*given)
            seen.append(found.item())
            return found

        monkeypatch.setattr(GrootVLA, "flow_matching_loss", noted)
        more = [f"--policy.tokens={mode}", f"--features.cache={bundle / 'cache'}"]
        recipe(tiny_dataset, tmp_path / mode, *run, *more)
    assert len(losses["online"]) == 8  # two of held-out chunks
    np.testing.assert_allclose(losses["online"], losses["cached"], rtol=2e-3)
    assert max(losses["online"]) - min(losses["online"]) > 0.02  # or all would agree
    adapters = [load_file(tmp_path / mode / ADAPTER) for mode in losses]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=6e-3, rtol=0)


@pytest.fixture(scope="module")
def trained(bundle: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone trains, into the cache of one whose backbone does not."""
    cache = Path(shutil.copytree(bundle / "cache", tmp_path_factory.mktemp("cache") / "cache"))
    output = tmp_path_factory.mktemp("trained") / "run"
    return recipe(tiny_dataset, output, f"--features.cache={cache}", *EVERY, *TRAINED)


def test_features_follow_the_trained_backbone(
    bundle: Path, trained: Path, tiny_dataset: Path
) -> None:
    policy, manifest = open_bundle(trained), read_manifest(trained)
    assert manifest["config"]["policy"]["tokens"] == "online"
    assert manifest["backbone"] != read_manifest(bundle)["backbone"]
    assert manifest["backbone"] == policy.vla.backbone_fingerprint()
    cache = Path(manifest["config"]["features"]["cache"])
    before = {path.name for path in (bundle / "cache").iterdir()}
    (new,) = (path for path in cache.iterdir() if path.name not in before)
    assert new.name.startswith("pooled-")  # no tokens are kept
    table = load_episodes("test/tiny", tiny_dataset)
    row = table.frames(2).start + 3
    pictures = FrameReader(table, policy.vla.spec.image_keys).read(row)
    seen: dict[str, Any] = {
        key: torch.from_numpy(each).permute(2, 0, 1)[None] for key, each in pictures.items()
    }
    seen |= {"observation.state": torch.from_numpy(table.state[row : row + 1])}
    encoding = policy.vla.encode(seen | {"task": [table.task(2)]})
    ours = pool_encoding(policy.vla, encoding, policy.config.pooling)[0].numpy()
    np.testing.assert_allclose(np.load(new / "features.npy")[row], ours, atol=5e-3)
    (old,) = (np.load(path / "features.npy") for path in cache.glob("pooled-*") if path != new)
    assert np.abs(old[row] - ours).max() > 5e-2


def test_features_of_before_are_refused_under_the_new_name(trained: Path, tmp_path: Path) -> None:
    cache = Path(read_manifest(trained)["config"]["features"]["cache"])
    before, after = sorted(cache.glob("pooled-*"), key=lambda place: place.stat().st_mtime)
    stale = Path(shutil.copytree(before, tmp_path / after.name))
    new = FeatureCache(after, **_cache_arguments(after))
    assert not new.missing_episodes()
    with pytest.raises(DeasError, match=r"was made with backbone=\w+, this run has backbone="):
        FeatureCache(stale, **_cache_arguments(after))


def _cache_arguments(directory: Path) -> dict[str, Any]:
    import json

    said = json.loads((directory / "index.json").read_text())["fingerprint"]
    lengths = [14 + 2 * episode for episode in range(said["num_episodes"])]
    given = ("num_episodes", "num_frames", "feature_dim")
    fingerprint = {name: value for name, value in said.items() if name not in given}
    return {
        "fingerprint": fingerprint,
        "episode_lengths": lengths,
        "feature_dim": said["feature_dim"],
    }


def test_the_adapter_of_a_backbone_loads_with_peft_alone(trained: Path) -> None:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17
    from peft import PeftModel

    base = GR00TN17.from_pretrained(
        str(NANO),
        model_name=str(NANO / "backbone"),
        transformers_loading_kwargs={"trust_remote_code": False},
        dtype=torch.float32,
    )
    theirs = dict(PeftModel.from_pretrained(base, str(trained / "policy")).named_parameters())
    ours = dict(open_bundle(trained).vla.model.named_parameters())
    for part in (
        "language_model.layers.2.",
        "action_head.vlln.modules_to_save",
        "action_head.model",
    ):
        names = [name for name in ours if part in name and ("lora_" in name or "_to_save" in name)]
        assert names and all(torch.equal(theirs[name], ours[name]) for name in names)
        assert "lora_" not in names[0] or any(bool(ours[n].any()) for n in names if "lora_B" in n)


def test_a_killed_run_ends_with_the_same_bits_whatever_its_workers(
    trained: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    later = [f"checkpoints/policy/step-0000000{step}" for step in (3, 4)]
    for place in ("policy", "critic", "checkpoints/critic", *later):
        shutil.rmtree(copy / place)
    cache = f"--features.cache={read_manifest(trained)['config']['features']['cache']}"
    recipe(tiny_dataset, copy, cache, *EVERY, *TRAINED, "--policy.workers=0")
    assert "resuming policy after update 2" in capsys.readouterr().out
    for file in (ADAPTER, "critic/model.safetensors"):
        ours, theirs = load_file(copy / file), load_file(trained / file)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), file
    changed = r"run .* had policy\.augment=checkpoint, this one has policy\.augment=none"
    with pytest.raises(DeasError, match=changed):
        recipe(tiny_dataset, copy, cache, *EVERY, TRAINED[0], AUGMENTED[1])


def test_pictures_follow_from_seed_and_step_for_any_number_of_processes(
    vla: VLA, tiny_dataset: Path
) -> None:
    table = load_episodes("test/tiny", tiny_dataset)

    def pictures(workers: int, **share: int) -> torch.Tensor:
        source = OnlinePictures(
            vla, table, transforms=ImageTransformsConfig(enable=True), workers=workers
        )
        draws = index_batches(table.num_frames, 6, range(1, 4), seed=3, **share)
        parts = (Part(draw.rows.numpy(), draw.seeds) for draw in draws)
        found = [batch["pixel_values"] for batch in source.stream(parts, CPU)]
        return torch.stack(found).unflatten(1, (6 // share.get("world", 1), -1))

    state = torch.get_rng_state()
    alone = pictures(2)
    halves = [pictures(0, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat(halves, dim=1), alone)
    assert torch.equal(torch.get_rng_state(), state)  # the flow's noise comes from there
    assert not torch.equal(alone[0], alone[1])


def stream_of(vla: VLA, dataset: Path, **settings: Any) -> list[dict[str, torch.Tensor]]:
    table = load_episodes("test/tiny", dataset)
    frames = table.episode_start[[0, 1, 2]] + 2
    source = OnlinePictures(vla, table, workers=1, **settings)
    return list(source.stream([Part(frames, None)], CPU))


def test_an_unreadable_picture_is_named_or_counts_nothing(
    vla: VLA, tiny_dataset: Path, tmp_path: Path
) -> None:
    from test_features import damage

    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    damage(copy, 1)
    with pytest.raises(DeasError, match=r"lacks frame 2 of episode 1") as error:
        stream_of(vla, copy)
    assert "\n" not in str(error.value)
    (batch,) = stream_of(vla, copy, skip_unreadable=True)
    assert batch["readable"].tolist() == [True, False, True]


def test_a_worker_that_is_killed_is_one_line(
    vla: VLA, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrameReader, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    message = r"worker process \d+ of policy\.workers=1 was killed .*; use fewer, and give"
    told = told_workers("policy.workers", 1, "use fewer")
    with pytest.raises(DeasError, match=message) as error, told:
        stream_of(vla, tiny_dataset)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("free", [10_000, 10**9])
def test_what_fits_the_disk_is_cached_and_an_earlier_choice_stands(
    vla: VLA, tiny_dataset: Path, tmp_path: Path, free: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usage, table = shutil.disk_usage(tmp_path), load_episodes("test/tiny", tiny_dataset)

    def settled(free: int) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        config = parse(FinetuneConfig, flags(tiny_dataset, tmp_path))
        identity = {"policy": {"policy.tokens": config.policy.tokens}}
        with recorded_run(tmp_path, identity, True, Accelerator()) as record:
            settle_tokens(config, vla, table, tmp_path / "cache", record, Accelerator())
        return config.policy.tokens

    mode = "cached" if free == 10**9 else "online"
    assert settled(free) == mode
    reason = "because they fit" if mode == "cached" else "because cached ones do not fit"
    assert f"policy: tokens {mode}, {reason}" in capsys.readouterr().out
    assert settled(10**9 if mode == "online" else 10_000) == mode
    assert "as the run that this one goes on with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy.tokens=live"], r"policy\.tokens 'live' is unknown: use one of"),
        (["--policy.augment=all"], r"policy\.augment 'all' is unknown"),
        (["--policy.workers=-1"], r"policy\.workers -1: use 0 or more"),
        (
            ["--policy.tokens=cached", "--policy.train=[vision]"],
            "cached is not to be had with --po",
        ),
        (
            ["--policy.tokens=cached", AUGMENTED[1]],
            r"not to be had with --dataset\.image_transforms",
        ),
        (
            [AUGMENTED[1], "--dataset.image_transforms.tfs={blur: {type: Blurr}}"],
            r"dataset\.image_transforms cannot be made \(.*Blurr",
        ),
        (["--policy.grad_clip=-1"], r"policy\.grad_clip -1\.0: use 0 \(off\) or more"),
        (
            ["--critic.v_min=-60", "--critic.v_max=0"],
            r"critic\.v_min, v_max \(-60\.0, 0\.0\) with critic\.support=smdp.*support=fixed",
        ),
        (
            ["--policy.family=remote", "--critic.algorithm=qc"],
            r"critic\.algorithm=qc samples the policy at cached frames.*use deas, iql, hlg or evor",
        ),
    ],
)
def test_settings_without_meaning_are_refused(
    more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DeasError, match=message) as error:
        parse(FinetuneConfig, flags(tmp_path, tmp_path, *more)).check()
    assert "\n" not in str(error.value)
