"""Runs that are interrupted, in every way, and go on as if they had not been."""

import itertools
import json
import multiprocessing
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from recipe_cases import NANO, recipe
from safetensors.torch import load_file
from torch import nn

from deas_vla.bundle import read_manifest
from deas_vla.errors import DeasError
from deas_vla.training.checkpoints import CheckpointConfig, Checkpoints
from deas_vla.training.loop import index_batches, warmup_cosine
from deas_vla.training.preemption import Preempted, Preemption

# ---- one stage -----------------------------------------------------------------------------------


class Stage:
    """A small training loop with everything that a checkpoint has to hold."""

    def __init__(self, directory: Path, **config: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator()
        self.preemption = Preemption(self.accelerator)
        self.module: Any = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer: Any = torch.optim.Adam(self.module.parameters(), lr=0.01)
        self.module, self.optimizer = self.accelerator.prepare(self.module, self.optimizer)
        self.generator = torch.Generator().manual_seed(2)
        self.metrics: list[float] = []
        self.checkpoints = Checkpoints(
            directory,
            self.accelerator,
            CheckpointConfig(**config),
            self.preemption,
            generator=self.generator,
            metric=lambda: self.metrics.pop(0) if self.metrics else 0.0,
        )

    def run(self, last: int, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        start = self.checkpoints.resume()
        for step, draw in enumerate(index_batches(50, 4, range(start, last), seed=1), start):
            rows = draw.rows.float().unsqueeze(1)
            noise = torch.randn(4, 3, generator=self.generator)
            self.accelerator.backward((self.module(rows / 50 + noise) ** 2).mean())
            self.optimizer.step()
            self.optimizer.zero_grad()
            if step + 1 == stop_after:
                self.preemption._told = True
            self.checkpoints.after(step + 1, last, lambda: None)
        self.checkpoints.load_best()
        return self.module.state_dict()


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("step-*"))


def test_interrupted_at_any_step_it_ends_the_same(tmp_path: Path) -> None:
    whole = Stage(tmp_path / "whole").run(7)
    for at in range(1, 7):
        place = tmp_path / str(at)
        with pytest.raises(Preempted) as left:
            Stage(place).run(7, stop_after=at)
        assert left.value.code == 0 and steps_in(place) == [at]
        again = Stage(place).run(7)
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items()), at


def test_a_finished_run_is_extended_to_the_bits_of_a_longer_one(tmp_path: Path) -> None:
    """At a constant learning rate."""
    whole = Stage(tmp_path / "whole").run(7)
    Stage(tmp_path / "extended").run(4)
    assert steps_in(tmp_path / "extended") == [4]
    longer = Stage(tmp_path / "extended").run(7)
    assert steps_in(tmp_path / "extended") == [4, 7]
    assert all(torch.equal(longer[name], tensor) for name, tensor in whole.items())


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    stage = Stage(tmp_path, every=1, keep=2)
    stage.metrics = [0.1, 0.9, 0.3, float("nan"), 0.9, 0.2]
    stage.run(6)
    assert steps_in(tmp_path) == [2, 5, 6]  # of equal ones the earliest is the best
    assert not list(tmp_path.glob(".*"))


def test_the_best_can_be_the_result(tmp_path: Path) -> None:
    second = Stage(tmp_path / "two").run(2)
    stage = Stage(tmp_path / "six", every=1, load_best_at_end=True)
    stage.metrics = [0.1, 0.9, 0.3, 0.0, 0.0, 0.0]
    best = stage.run(6)
    assert all(torch.equal(best[name], tensor) for name, tensor in second.items())


def test_without_a_metric_the_last_are_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = Stage(tmp_path / "plain").run(4)
    stage = Stage(tmp_path / "six", every=1, load_best_at_end=True)
    stage.metrics = [float("nan")] * 4
    found = stage.run(4)
    assert all(torch.equal(found[name], tensor) for name, tensor in last.items())
    assert "six: the last weights, for no checkpoint has an offline metric" in (
        capsys.readouterr().out
    )


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The kernel itself refuses to let a file grow, in the middle of a write."""
    Stage(tmp_path, every=2).run(2)
    stage = Stage(tmp_path, every=2)
    stage.module.register_buffer("large", torch.zeros(1_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        kept = re.escape(str(tmp_path / "step-00000002"))
        with pytest.raises(DeasError, match=rf"cannot be written .* {kept} is intact") as caught:
            stage.checkpoints._save(4, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert steps_in(tmp_path) == [2] and not list(tmp_path.glob(".*"))
    assert Stage(tmp_path).checkpoints.resume() == 2


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    Stage(tmp_path).run(2)
    (tmp_path / "step-00000002" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(DeasError, match=r"step-00000002 cannot be loaded .* remove it") as caught:
        Stage(tmp_path).checkpoints.resume()
    assert "\n" not in str(caught.value)


def test_draws_are_one_stream_for_any_number_of_processes_from_any_step_on() -> None:
    def draws(steps: range, **share: int) -> torch.Tensor:
        """Rows and seeds of some steps, (2, steps, B)."""
        drawn = list(index_batches(100, 6, steps, seed=3, **share))
        return torch.stack([torch.stack([getattr(d, n) for d in drawn]) for n in ("rows", "seeds")])

    alone = draws(range(5))
    assert torch.equal(draws(range(2, 5)), alone[:, 2:])
    halves = [draws(range(5), rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat(halves, dim=2), alone)
    with pytest.raises(DeasError, match="batch_size 6 does not divide among 4 processes"):
        next(index_batches(100, 6, range(5), seed=3, world=4))


def test_the_schedule_warms_up_and_ends_at_nothing() -> None:
    factors = [warmup_cosine(step, 100) for step in range(101)]
    assert factors[0] == 0.2 and factors[4] == 1.0 and factors[100] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))


# ---- the recipe, killed --------------------------------------------------------------------------

LONG = [
    "--policy.steps=60",
    "--critic.steps=600",
    "--checkpoint.every=5",
    "--critic.expectile=0.8",
    "--policy.lora_dropout=0.1",
]
_STAGES = {"features": "cache/tokens-*/*", "policy": "checkpoints/policy/step-*"}
_STAGES["critic"] = "checkpoints/critic/step-*"


def _recipe_process(dataset: Path, output: Path, more: list[str]) -> None:
    """What a fresh interpreter would do, in a process that has its imports behind it."""
    torch.set_num_threads(1)
    recipe(dataset, output, *more)


class Launcher:
    """Starts recipes in processes of their own; each is forked from one that ran nothing yet."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        groot = ["lerobot.policies.groot.groot_n1_7", "lerobot.policies.groot.processor_groot"]
        self._context.set_forkserver_preload(["recipe_cases", "peft", "accelerate", *groot])

    def start(self, dataset: Path, output: Path, *more: str) -> Any:
        process = self._context.Process(
            target=_recipe_process, args=(dataset, output, [*LONG, *more])
        )
        process.start()
        return process

    def finish(self, dataset: Path, output: Path, *more: str) -> None:
        process = self.start(dataset, output, *more)
        process.join(300)
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture(scope="module")
def uninterrupted(
    launcher: Launcher, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    launcher.finish(tiny_dataset, output)
    return output


def assert_same_result(ours: Path, theirs: Path) -> None:
    assert read_manifest(ours)
    for file in ("critic/model.safetensors", "policy/adapter_model.safetensors"):
        a, b = load_file(ours / file), load_file(theirs / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], tensor) for name, tensor in b.items()), file


def assert_readable(output: Path) -> None:
    """Every checkpoint that has a name loads, whole."""
    for place in output.glob("checkpoints/*/step-*"):
        assert json.loads((place / "checkpoint.json").read_text())["step"] > 0
        assert load_file(place / "weights.safetensors")
        assert torch.load(place / "optimizer.bin", weights_only=True)["state"]


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def progress(output: Path, stage: str) -> set[str]:
    return {str(path) for path in output.glob(_STAGES[stage])}


@pytest.mark.slow(minutes=2)
@pytest.mark.timeout(600)
def test_killed_twenty_times_it_ends_with_the_same_bits(
    launcher: Launcher, uninterrupted: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    output, rng, kills = tmp_path / "run", random.Random(0), dict.fromkeys(_STAGES, 0)
    for stage, times in (("features", 6), ("policy", 7), ("critic", 7)):
        for _ in range(times):
            before = progress(output, stage)
            process = launcher.start(tiny_dataset, output)
            wait_for(lambda stage=stage, old=before: progress(output, stage) != old, process)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.join()
            kills[stage] += process.exitcode == -signal.SIGKILL
            assert_readable(output)
    assert sum(kills.values()) == 20, kills
    launcher.finish(tiny_dataset, output)
    assert_same_result(output, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["features", "policy", "critic"])
def test_sigterm_saves_and_leaves_with_status_0(
    launcher: Launcher, uninterrupted: Path, tiny_dataset: Path, tmp_path: Path, stage: str
) -> None:
    process = launcher.start(tiny_dataset, tmp_path / "run")
    wait_for(lambda: bool(progress(tmp_path / "run", stage)), process)
    told = time.monotonic()
    process.terminate()
    process.join(30)
    assert process.exitcode == 0 and time.monotonic() - told < 30
    assert not (tmp_path / "run/bundle.json").exists()
    assert_readable(tmp_path / "run")
    launcher.finish(tiny_dataset, tmp_path / "run")
    assert_same_result(tmp_path / "run", uninterrupted)


def test_a_run_that_diverges_names_its_last_good_checkpoint(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deas_vla.policies.groot import GrootVLA

    loss, calls = GrootVLA.flow_matching_loss, []

    def diverging(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return loss(*arguments) * (torch.nan if len(calls) == 6 else 1.0)

    monkeypatch.setattr(GrootVLA, "flow_matching_loss", diverging)
    settings = ["--policy.steps=9", "--checkpoint.every=2", "--dataset.holdout=0"]
    good = re.escape(str(tmp_path / "run/checkpoints/policy/step-00000004"))
    message = rf"policy loss is nan at step 5 on rows \[\d+, .*last good checkpoint: {good}; lower"
    with pytest.raises(DeasError, match=message) as caught:
        recipe(tiny_dataset, tmp_path / "run", *settings)
    assert "\n" not in str(caught.value)
    batch = json.loads((tmp_path / "run/policy_nonfinite_batch.json").read_text())
    assert batch["step"] == 5 and len(batch["rows"]) == len(batch["first_frames"]) == 8


# ---- how a policy step is taken ------------------------------------------------------------------


def gradients(vla: Any, batch: dict[str, torch.Tensor], checkpointing: bool) -> dict[str, Any]:
    from deas_vla.training.policy import FlowMatching

    torch.manual_seed(0)
    with vla.gradient_checkpointing(checkpointing):
        FlowMatching(vla)(batch).backward()
    grads = {n: p.grad.clone() for n, p in vla.model.named_parameters() if p.grad is not None}
    vla.model.zero_grad()
    return grads


def test_gradient_checkpointing_changes_memory_and_nothing_else() -> None:
    from deas_vla.policies.groot import GrootVLA
    from deas_vla.training.config import PolicyConfig
    from deas_vla.training.policy import add_lora

    vla = GrootVLA.from_pretrained(
        NANO,
        embodiment="robosuite_panda",
        image_keys=("observation.images.agentview", "observation.images.eye_in_hand"),
        state_dim=9,
        action_dim=7,
    )
    add_lora(vla, PolicyConfig())
    vla.model.train()
    head = vla.groot.config
    targets = vla.preprocess_targets(
        torch.zeros(2, 9), torch.rand(2, 16, 7), torch.ones(2, 16, dtype=bool)
    )
    tokens = {
        "tokens": torch.randn(2, 12, head.backbone_embedding_dim),
        "token_mask": torch.ones(2, 12, dtype=bool),
        "image_mask": torch.arange(12).expand(2, 12) < 8,
    }
    kept = []
    hook = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    found = {}
    for checkpointing in (False, True):
        kept.clear()
        with hook:
            found[checkpointing] = (gradients(vla, tokens | targets, checkpointing), len(kept))
    (plain, many), (again, few) = found[False], found[True]
    assert plain and all(torch.equal(again[name], gradient) for name, gradient in plain.items())
    assert few < many / 2


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    tiny_dataset: Path, bundle: Path, tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With noise and time fixed, which GR00T would draw anew for each part."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead

    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.zeros(*size))
    monkeypatch.setattr(
        GR00TN17ActionHead, "sample_time", lambda self, n, device, dtype: torch.full((n,), 0.5)
    )
    cache = f"--features.cache={bundle / 'cache'}"
    run = ["--stages=[features,policy]", cache]
    whole = recipe(tiny_dataset, tmp_path / "whole", *run)
    split = recipe(
        tiny_dataset, tmp_path / "split", *run, f"--policy.gradient_accumulation_steps={parts}"
    )
    ours, theirs = (load_file(d / "policy/adapter_model.safetensors") for d in (split, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-5, rtol=1e-3)
