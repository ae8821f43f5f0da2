"""Several processes do what one does: DDP, FSDP, and a change of their number on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_cases import ROOT, flags, recipe
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from deas_vla.bundle import open_bundle

RECIPE = ROOT / "recipes/finetune_groot.py"
SHARDED = Path(__file__).with_name("fsdp_on_cpu.py")
LATE = Path(__file__).with_name("late_rank.py")
LONG = ["--critic.steps=200", "--checkpoint.every=20"]

pytestmark = pytest.mark.slow(minutes=1)


def on_processes(
    count: int, script: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a script under torchrun: accelerate's launcher starts one process on a CPU, no more."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc_per_node={count}", str(script), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def newest(output: Path, stage: str) -> Path:
    return max((output / "checkpoints" / stage).glob("step-*"))


def assert_close(ours: Path, theirs: Path, file: str, tolerance: float) -> None:
    a, b = load_file(ours / file), load_file(theirs / file)
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        torch.testing.assert_close(a[name], tensor, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def two(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two DDP processes leave."""
    output = tmp_path_factory.mktemp("two") / "run"
    on_processes(2, RECIPE, *flags(tiny_dataset, output))
    for stage in ("policy", "critic"):
        checkpoint = newest(output, stage)
        assert json.loads((checkpoint / "checkpoint.json").read_text())["processes"] == 2
        assert (checkpoint / "random_states_1.pkl").is_file()
    return output


def test_two_processes_train_the_same_critic(bundle: Path, two: Path) -> None:
    assert_close(two, bundle, "critic/model.safetensors", 1e-4)
    features = [np.load(next((d / "cache").glob("pooled-*/features.npy"))) for d in (two, bundle)]
    np.testing.assert_allclose(*features, atol=1e-2)


def test_two_processes_share_out_what_qc_asks_the_policy(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    qc = ["--stages=[features,critic]", "--critic.algorithm=qc", "--critic.policy_samples=3"]
    outputs = [tmp_path / "one", tmp_path / "two"]
    recipe(tiny_dataset, outputs[0], *qc)
    on_processes(2, RECIPE, *flags(tiny_dataset, outputs[1], *qc))
    samples = [np.load(next((d / "cache").glob("candidates-*/features.npy"))) for d in outputs]
    assert samples[0].any()
    np.testing.assert_allclose(*samples, atol=2e-3)  # float16
    assert_close(outputs[1], outputs[0], "critic/model.safetensors", 1e-3)


def test_a_run_goes_on_with_another_number_of_processes(tiny_dataset: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "changed"
    for place in (whole, output):
        recipe(tiny_dataset, place, *LONG)
    for checkpoint in (output / "checkpoints/critic").glob("step-0000020*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()  # what is left is a run that was killed after update 180
    done = on_processes(2, RECIPE, *flags(tiny_dataset, output, *LONG))
    assert "resuming critic after update 180" in done.stdout
    assert (newest(output, "critic") / "random_states_1.pkl").is_file()
    assert_close(output, whole, "critic/model.safetensors", 1e-3)


def test_fsdp_trains_resumes_and_leaves_the_adapter_of_ddp(
    two: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    stages = "--stages=[features,policy]"
    on_processes(2, SHARDED, *flags(tiny_dataset, output, stages), STOP_AFTER="2")
    assert newest(output, "policy").name == "step-00000002"
    assert (newest(output, "policy") / "pytorch_model_fsdp_0").is_dir()
    assert not (output / "bundle.json").exists()
    done = on_processes(2, SHARDED, *flags(tiny_dataset, output, stages))
    assert "resuming policy after update 2" in done.stdout
    assert_close(output, two, "policy/adapter_model.safetensors", 1e-3)
    assert open_bundle(output).critic is None
    # Update 2 as the best: its shards are what the bundle is gathered from.
    best = output / "checkpoints/policy/step-00000002"
    noted = json.loads((best / "checkpoint.json").read_text())
    (best / "checkpoint.json").write_text(json.dumps(noted | {"metric": 1e9}))
    done = on_processes(
        2, SHARDED, *flags(tiny_dataset, output, stages), "--checkpoint.load_best_at_end=true"
    )
    assert "policy: weights of update 2, the best" in done.stdout
    dcp_to_torch_save(best / "pytorch_model_fsdp_0", tmp_path / "whole.pt")
    ((_, wanted),) = torch.load(tmp_path / "whole.pt", weights_only=True).items()
    found = load_file(output / "policy/adapter_model.safetensors")
    assert found
    for name, tensor in found.items():
        stem = name.removeprefix("base_model.model.").removesuffix(".weight")
        (same,) = (value for key, value in wanted.items() if stem in key)
        torch.testing.assert_close(tensor, same, atol=0, rtol=0)
    with pytest.raises(AssertionError, match="FSDP shards the policy, a critic is too small"):
        on_processes(1, SHARDED, *flags(tiny_dataset, output))


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_process_that_looks_late_takes_its_own_share(
    tiny_dataset: Path, tmp_path: Path, late: str
) -> None:
    """Every episode is computed, whoever is slow to see what is missing."""
    features = ["--stages=[features]", "--policy.steps=0"]
    done = on_processes(2, LATE, *flags(tiny_dataset, tmp_path / "run"), *features, LATE_RANK=late)
    assert "features: 6 of 6 episodes to compute" in done.stdout
    (cache,) = (tmp_path / "run" / "cache").glob("pooled-*/features.npy")
    assert np.load(cache, mmap_mode="r").any(axis=1).all()
