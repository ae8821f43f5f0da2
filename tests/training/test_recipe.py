"""The recipe end to end at toy size, what it leaves behind, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_cases import NANO, ROOT, flags, load_script, recipe, record
from safetensors.torch import load_file

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import parse
from deas_vla.envs.robocasa.kitchen import EMBODIMENT, KitchenConfig, kitchen_spec
from deas_vla.envs.robosuite.lift import LiftConfig, lift_spec
from deas_vla.errors import DeasError
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.groot.checkpoint import check_fit
from deas_vla.training.config import FinetuneConfig


def test_bundle_is_whole_and_says_where_it_came_from(bundle: Path, tiny_dataset: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest["config"]["critic"]["steps"] == 12
    assert manifest["config"]["policy"]["lora_rank"] == 16  # a default, resolved
    assert manifest["versions"]["lerobot"] and "git_revision" in manifest
    assert len(manifest["data"]["held_out_episodes"]) == 2
    assert manifest["data"]["assets"] == "lite"  # as its dataset says
    files = {"policy/adapter_config.json", "policy/adapter_model.safetensors", "critic/config.json"}
    files |= {"critic/model.safetensors", "critic/normalization.safetensors", "README.md"}
    assert files <= set(manifest["files"])
    assert list(bundle.rglob("events.out.tfevents*"))


def test_bundle_is_a_policy(bundle: Path) -> None:
    policy = open_bundle(bundle)
    policy.reset([3])
    pictures = {
        key: torch.zeros(1, 3, 64, 64, dtype=torch.uint8) for key in policy.vla.spec.image_keys
    }
    batch = {**pictures, "observation.state": torch.zeros(1, 9), "task": ["lift the red cube"]}
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (1, 8, 7)
    scores = policy.last_decision.scores
    assert scores.shape == (1, 16) and int(policy.last_decision.chosen) == int(scores.argmax())
    policy.reset([3])
    steps = [policy.select_action(batch) for _ in range(8)]
    assert torch.equal(torch.stack(steps, dim=1), chunk)


def test_one_candidate_of_the_guided_policy_is_its_first_of_many(bundle: Path) -> None:
    policy = open_bundle(bundle)
    pictures = {
        key: torch.full((1, 3, 64, 64), 99, dtype=torch.uint8) for key in policy.vla.spec.image_keys
    }
    batch = {**pictures, "observation.state": torch.zeros(1, 9), "task": ["lift the red cube"]}
    policy.reset([5])
    policy.predict_action_chunk(batch)
    first_of_many = policy.last_decision.candidates[:, 0]
    policy.config.candidates = 1
    policy.reset([5])
    alone = policy.predict_action_chunk(batch)
    torch.testing.assert_close(alone, first_of_many[:, :8], atol=1e-5, rtol=0)
    assert policy.last_decision.scores is None


def test_adapter_loads_with_peft_alone(bundle: Path) -> None:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17
    from peft import PeftModel

    base = GR00TN17.from_pretrained(
        str(NANO),
        model_name=str(NANO / "backbone"),
        transformers_loading_kwargs={"trust_remote_code": False},
        dtype=torch.float32,
    )
    loaded = PeftModel.from_pretrained(base, str(bundle / "policy"))
    ours = open_bundle(bundle).vla.model
    theirs = dict(loaded.named_parameters())
    adapters = [name for name, _ in ours.named_parameters() if "lora_" in name]
    assert adapters and all("action_head.model" in name for name in adapters)
    for name in adapters:
        assert torch.equal(theirs[name], dict(ours.named_parameters())[name]), name


def test_training_changes_the_adapter_and_never_the_backbone(bundle: Path) -> None:
    trained = load_file(bundle / "policy/adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and bool(t.any()) for name, t in trained.items())
    policy = open_bundle(bundle)
    from deas_vla.policies.config import load_vla

    untouched = load_vla(policy.config.vla, dataset_stats=policy.dataset_stats)
    assert policy.vla.backbone_fingerprint() == untouched.backbone_fingerprint()


def test_backbone_is_the_same_after_finetuning_in_place(tiny_dataset: Path, tmp_path: Path) -> None:
    """The very object that was trained, not a reloaded one."""
    script = load_script("recipes/finetune_groot.py")
    seen = {}
    load = script.load_vla

    def load_and_remember(*arguments: object, **named: object) -> GrootVLA:
        vla = seen["vla"] = load(*arguments, **named)
        seen["before"] = {k: t.clone() for k, t in vla.groot.backbone.state_dict().items()}
        return vla

    script.load_vla = load_and_remember
    script.main(parse(FinetuneConfig, flags(tiny_dataset, tmp_path / "run")))
    after = seen["vla"].groot.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in seen["before"].items())


def test_critic_training_never_asks_the_policy(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*_: object, **__: object) -> None:
        raise AssertionError("a critic target asked the policy")

    for name in ("sample", "sample_normalised", "flow_matching_loss"):
        monkeypatch.setattr(GrootVLA, name, poisoned)
    cache = f"--features.cache={bundle / 'cache'}"
    alone = recipe(tiny_dataset, tmp_path / "critic", "--stages=[features,critic]", cache)
    ours, theirs = (load_file(d / "critic/model.safetensors") for d in (alone, bundle))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_second_run_reuses_the_cache(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = GrootVLA.encode
    monkeypatch.setattr(GrootVLA, "encode", lambda *a: calls.append(1) or encode(*a))
    cache = f"--features.cache={bundle / 'cache'}"
    recipe(tiny_dataset, tmp_path / "again", "--stages=[features,critic]", cache)
    assert len(calls) == 1  # the instruction's masks; no frame


def test_critic_stage_alone_keeps_the_adapter(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    medoid = "--guidance.selection.rule=medoid"  # asks no critic: candidates stay
    output = recipe(tiny_dataset, tmp_path / "run", "--stages=[features,policy]", medoid)
    bundled = open_bundle(output)
    assert bundled.critic is None and bundled.config.candidates == 16
    adapter = load_file(output / "policy/adapter_model.safetensors")
    recipe(tiny_dataset, output, "--stages=[features,critic]")
    assert open_bundle(output).critic is not None
    again = load_file(output / "policy/adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.items())


def test_new_embodiment_trains_its_projectors(tiny_dataset: Path, tmp_path: Path) -> None:
    output = recipe(
        tiny_dataset,
        tmp_path / "run",
        "--stages=[features,policy]",
        "--policy.embodiment=new_embodiment",
        "--policy.train_projectors=true",
    )
    adapter = load_file(output / "policy/adapter_model.safetensors")
    assert {"state_encoder", "action_encoder", "action_decoder"} <= {
        part for name in adapter for part in name.split(".")
    }
    policy = open_bundle(output)
    trained = policy.vla.groot.action_head.action_decoder.modules_to_save["default"].layer2.W
    start = policy.vla.groot.action_head.action_decoder.original_module.layer2.W
    numbers = json.loads((NANO / "embodiment_id.json").read_text())
    mine, other = numbers["new_embodiment"], numbers["robosuite_panda"]
    assert not torch.equal(trained[mine], start[mine])  # this embodiment's slice has learned
    assert torch.allclose(trained[other], start[other], atol=1e-4)  # weight decay alone


def test_filtered_behaviour_cloning_uses_successes_only(tiny_dataset: Path) -> None:
    from deas_vla.data.episodes import load_episodes
    from deas_vla.training.policy import chunk_starts

    table = load_episodes("test/tiny", tiny_dataset)
    every = np.arange(table.num_episodes)
    chosen = chunk_starts(table, every, "successful")
    assert set(table.episode_index[chosen]) == {0, 2, 4}
    assert len(chunk_starts(table, every, "all")) == table.num_frames


def drop_column(root: Path, copy: Path, *columns: str) -> Path:
    """The same dataset without some columns."""
    import pyarrow.parquet as parquet

    shutil.copytree(root, copy)
    for file in (copy / "data").rglob("*.parquet"):
        parquet.write_table(parquet.read_table(file).drop_columns(list(columns)), file)
    info = json.loads((copy / "meta/info.json").read_text())
    for column in columns:
        info["features"].pop(column)
    (copy / "meta/info.json").write_text(json.dumps(info))
    return copy


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset.root=/nowhere"], "dataset root /nowhere does not exist"),
        (["--critic.horizon=17"], "critic chunk length 17 exceeds the policy's 16"),
        (["--guidance.n_action_steps=17"], "n_action_steps 17 exceeds the policy's chunk of 16"),
        (["--critic.horizon=0"], "critic.horizon"),
        (
            ["--checkpoint.load_best_at_end=true", "--dataset.holdout=0"],
            "load_best_at_end with dataset.holdout=0",
        ),
        (["--stages=[critics]"], "stage 'critics' is unknown"),
        (["--policy.episodes=best"], "policy.episodes 'best' is unknown"),
        (["--policy.path=/nowhere"], "policy checkpoint '/nowhere' does not exist"),
        (["--features.pooling.kind=max"], "pooling"),
        (["--output_dir=/proc/forbidden"], "output directory /proc/forbidden cannot be written"),
        (["--critic.nonsense=1"], "unrecognized arguments"),
        (["--config_path=/nowhere.yaml"], "config file '/nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_are_refused_by_name(
    tiny_dataset: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(DeasError, match=message) as caught:
        recipe(tiny_dataset, tmp_path / "run", *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "bundle.json").exists()


def test_a_tracker_that_is_not_installed_is_refused(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeasError, match="tracker trackio is not installed: pip install trackio"):
        recipe(tiny_dataset, tmp_path / "run", "--tracker=trackio")
    with pytest.raises(DeasError, match="tracker wandb is not installed"):
        recipe(tiny_dataset, tmp_path / "run", "--wandb.enable=true")


def test_unknown_yaml_key_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("critic:\n  stepz: 3\n")
    with pytest.raises(DeasError, match="stepz"):
        recipe(tiny_dataset, tmp_path / "run", f"--config_path={tmp_path / 'bad.yaml'}")


def test_datasets_that_do_not_fit_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    narrow = record(tmp_path / "narrow", episodes=3, action_dim=6)
    with pytest.raises(DeasError, match="action has 6 dimensions"):
        recipe(narrow, tmp_path / "run")
    mute = drop_column(tiny_dataset, tmp_path / "mute", "next.success", "next.reward")
    with pytest.raises(DeasError, match=r"next\.(success|reward)"):
        recipe(mute, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeasError, match="is not a LeRobot dataset"):
        recipe(tmp_path / "empty", tmp_path / "run")


def test_failed_run_leaves_the_good_bundle(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"  # a failed run leaves its word that it was interrupted
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("cache", "logs"))
    before = read_manifest(copy)["files"]
    with pytest.raises(DeasError):
        recipe(tiny_dataset, copy, "--critic.horizon=17")
    assert read_manifest(copy)["files"] == before


def test_an_adapter_is_not_put_over_another_base(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(bundle, tmp_path / "mine"))
    critic = ["--stages=[features,critic]"]
    with pytest.raises(DeasError, match=r"policy holds an adapter, and policy\.steps=0 guides"):
        recipe(tiny_dataset, mine, "--policy.steps=0")
    with pytest.raises(DeasError, match=r"with policy\.denoising_steps=None, this run has 2: "):
        recipe(tiny_dataset, mine, *critic, "--policy.denoising_steps=2")
    with pytest.raises(DeasError, match=r"critic takes features of .* numbers, features\.pooling"):
        recipe(
            tiny_dataset, mine, "--stages=[features,policy]", "--features.pooling.kind=camera_mean"
        )
    assert read_manifest(mine) == read_manifest(bundle)

    manifest = read_manifest(mine) | {"backbone": "0" * 64}
    (mine / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DeasError, match=r"was made over another backbone than that of"):
        recipe(tiny_dataset, mine, *critic)


CONFIGS = {
    file.stem: file
    for file in (ROOT / "recipes/configs").glob("*.yaml")
    if not file.stem.endswith("_demos")
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_shipped_config_fits_its_checkpoint_and_its_robot(name: str) -> None:
    config = parse(FinetuneConfig, [f"--config_path={CONFIGS[name]}"])
    config.check()
    robots = {"robosuite_panda": lift_spec(LiftConfig()), EMBODIMENT: kitchen_spec(KitchenConfig())}
    robot, checkpoint = robots[config.policy.embodiment], ROOT / config.policy.path
    known = json.loads((checkpoint / "embodiment_id.json").read_text())
    assert config.policy.embodiment in known
    check_fit(
        checkpoint,
        json.loads((checkpoint / "config.json").read_text()),
        config.policy.embodiment,
        robot.image_keys,
        len(robot.state_names),
        len(robot.action_names),
    )


@pytest.mark.parametrize("harm", ["missing", "altered", "no manifest"])
def test_half_written_bundle_is_refused(bundle: Path, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("cache", "logs"))
    victim = copy / "critic/model.safetensors"
    if harm == "missing":
        victim.unlink()
    elif harm == "altered":
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    else:
        (copy / "bundle.json").unlink()
    with pytest.raises(DeasError, match="half-written"):
        open_bundle(copy)


def test_script_prints_one_line_and_fails(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "recipes/finetune_groot.py", "--dataset.root=/nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith("error: dataset root /nowhere")
    assert "Traceback" not in run.stderr


def test_a_critic_of_the_backbone_before_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "critic").mkdir()
    flags = ["--policy.train=[head,llm_top:1]", "--stages=[features,policy]"]
    with pytest.raises(DeasError, match=r"critic is of the backbone before this training: train"):
        recipe(tiny_dataset, tmp_path, *flags)


def test_an_adapter_of_another_split_is_refused(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("cache"))
    with pytest.raises(DeasError, match="statistics of another dataset or split"):
        more = ["--dataset.holdout=0", "--resume=false"]
        recipe(tiny_dataset, copy, "--stages=[features,critic]", *more)
