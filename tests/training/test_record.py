"""Whether a command goes on with what an earlier one left, and what it refuses."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from recipe_cases import NANO, flags, recipe
from safetensors.torch import load_file
from table_cases import make_table

from deas_vla.cli import parse
from deas_vla.errors import DeasError
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.identity import identities
from deas_vla.training.record import recorded_run


@contextmanager
def run_of(
    output: Path, identity: dict[str, Any], resume: bool = True, stage: str = "critic"
) -> Iterator[None]:
    with recorded_run(output, {stage: identity}, resume, Accelerator()):
        yield


def interrupted(output: Path, identity: dict[str, Any], stage: str = "critic") -> Path:
    """A run that has written one checkpoint; returns it."""
    checkpoint = output / "checkpoints" / stage / "step-00000001"
    with pytest.raises(KeyError), run_of(output, identity, stage=stage):
        checkpoint.mkdir(parents=True)
        raise KeyError
    return checkpoint


def test_a_run_goes_on_and_keeps_its_checkpoints_until_asked(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, {"lr": 1})
    for _ in range(2):  # interrupted, then finished
        with run_of(tmp_path, {"lr": 1}):
            assert checkpoint.is_dir()
    with run_of(tmp_path, {"lr": 2}, resume=False):
        assert not checkpoint.exists()


@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_another_run_does_not_go_on(tmp_path: Path, state: str) -> None:
    checkpoint = interrupted(tmp_path, {"lr": 1})
    if state == "finished":
        with run_of(tmp_path, {"lr": 1}):
            pass
    with (
        pytest.raises(DeasError, match=rf"the {state} run .* had lr=1, this one has lr=2") as error,
        run_of(tmp_path, {"lr": 2}),
    ):
        pass
    assert "--resume=false" in str(error.value) and "\n" not in str(error.value)
    assert checkpoint.is_dir()


def test_steps_are_raised_and_not_lowered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "critic.steps"
    checkpoint = interrupted(tmp_path, {name: 5})
    with run_of(tmp_path, {name: 9}):
        assert checkpoint.is_dir()
    assert "critic.steps raised from 5 to 9" in capsys.readouterr().out
    with (
        pytest.raises(DeasError, match=r"critic.steps=9, this one has critic.steps=7: steps can"),
        run_of(tmp_path, {name: 7}),
    ):
        pass


def test_each_stage_is_a_run_of_its_own(tmp_path: Path) -> None:
    policy = interrupted(tmp_path, {"lr": 1}, stage="policy")
    critic = interrupted(tmp_path, {"lr": 2}, stage="critic")
    assert policy.is_dir()
    with run_of(tmp_path, {"lr": 3}, resume=False, stage="critic"):
        assert policy.is_dir() and not critic.exists()


def test_a_record_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints/run.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"finished": True, "identity": {}}))
    with pytest.raises(DeasError, match="written by an earlier version"), run_of(tmp_path, {}):
        pass
    with run_of(tmp_path, {}, resume=False):
        pass


def test_two_runs_do_not_write_to_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deas_vla.training.locking._PREDECESSOR_SECONDS", 0.3)
    with (
        run_of(tmp_path, {}),
        pytest.raises(DeasError, match="another run is writing to"),
        run_of(tmp_path, {}),
    ):
        pass


def config(*more: str) -> FinetuneConfig:
    return parse(FinetuneConfig, flags(Path("data"), Path("out"), *more))


@pytest.mark.parametrize(
    "flag",
    [
        "--policy.gradient_accumulation_steps=4",
        "--policy.gradient_checkpointing=true",
        "--features.batch_size=2",
        "--features.cache=elsewhere",
        "--checkpoint.every=7",
        "--dataset.root=elsewhere",
        "--output_dir=elsewhere",
        "--critic.log_every=9",
        "--guidance.candidates=4",
    ],
)
def test_what_changes_memory_or_place_is_no_identity(flag: str) -> None:
    assert identities(config(flag), make_table()) == identities(config(), make_table())


@pytest.mark.parametrize(
    ("flag", "stages"),
    [
        ("--policy.lr=0.5", {"policy"}),
        ("--policy.batch_size=4", {"policy"}),
        ("--critic.lr=0.5", {"critic"}),
        ("--critic.balance=outcome", {"critic"}),
        ("--features.pooling.kind=grid", {"critic"}),
        ("--policy.dtype=bfloat16", {"policy", "critic"}),
        ("--policy.path=some/hub_id", {"policy", "critic"}),
        ("--dataset.holdout=0.5", {"policy", "critic"}),
        ("--seed=3", {"policy", "critic"}),
    ],
)
def test_what_decides_a_result_is(flag: str, stages: set[str]) -> None:
    ours, theirs = (identities(c, make_table()) for c in (config(flag), config()))
    assert {stage for stage in theirs if ours[stage] != theirs[stage]} == stages


def test_features_of_a_trained_backbone_are_of_the_weights_that_were_taken() -> None:
    best = "--checkpoint.load_best_at_end=true"
    for train, changed in (("head", set()), ("vision", {"critic"})):
        ours, theirs = (
            identities(config(f"--policy.train=[{train}]", *more), make_table())
            for more in ([best], [])
        )
        assert {stage for stage in theirs if ours[stage] != theirs[stage]} == changed


def test_a_checkpoint_is_known_wherever_it_lies(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(NANO, target_is_directory=True)
    same = config(f"--policy.path={moved}")
    assert identities(same, make_table()) == identities(config(), make_table())


def test_a_finished_critic_is_extended_and_equals_a_longer_one(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    more = ["--stages=[features,critic]", f"--features.cache={bundle / 'cache'}"]
    longer = recipe(tiny_dataset, tmp_path / "longer", *more, "--critic.steps=19")
    extended = recipe(tiny_dataset, tmp_path / "extended", *more)
    first = load_file(extended / "critic/model.safetensors")
    recipe(tiny_dataset, extended, *more, "--critic.steps=19", "--features.batch_size=3")
    ours, theirs = (load_file(d / "critic/model.safetensors") for d in (extended, longer))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in theirs.items())
    kept = sorted(path.name for path in (extended / "checkpoints/critic").iterdir())
    assert kept == ["step-00000012", "step-00000019"]


def test_out_of_memory_names_the_flag_and_the_run_goes_on(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deas_vla.policies.groot import GrootVLA

    loss, calls = GrootVLA.flow_matching_loss, []

    def full(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return loss(*arguments)

    more = ["--stages=[features,policy]", f"--features.cache={bundle / 'cache'}"]
    more += ["--checkpoint.every=2", "--dataset.holdout=0"]
    monkeypatch.setattr(GrootVLA, "flow_matching_loss", full)
    message = r"a part of 8 chunks .*--policy.gradient_accumulation_steps=2 \(parts of 4\) or"
    with pytest.raises(DeasError, match=message) as error:
        recipe(tiny_dataset, tmp_path / "run", *more)
    assert "\n" not in str(error.value)
    recipe(tiny_dataset, tmp_path / "run", *more, "--policy.gradient_accumulation_steps=2")
    assert len(calls) == 3 + 2  # the third update alone, in two parts
