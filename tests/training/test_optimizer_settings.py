"""What was configured is what the optimizer did: read back from the checkpoints of whole runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from recipe_cases import recipe
from safetensors.torch import load_file
from torch import Tensor

from deas_vla.training.loop import warmup_cosine

pytestmark = pytest.mark.slow

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's, as torch has them
# Else it follows from the discounts.
SUPPORT = ["--critic.support=fixed", "--critic.v_min=-60", "--critic.v_max=0"]


@dataclass(frozen=True)
class State:
    """One checkpoint: weights, and Adam's settings and moments by the weights' names."""

    weights: dict[str, Tensor]
    group: dict[str, float]
    mean: dict[str, Tensor]
    square: dict[str, Tensor]

    def gradient(self) -> dict[str, Tensor]:
        """What Adam saw in the first update."""
        return {name: mean / (1 - BETA1) for name, mean in self.mean.items()}

    def gradient_norm(self) -> float:
        return math.sqrt(sum(float(g.square().sum()) for g in self.gradient().values()))


Train = Callable[..., list[State]]


@pytest.fixture
def train(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Run one stage of the recipe for four updates; the state after each."""
    names: list[str] = []
    prepare = Accelerator.prepare

    def note_names(self: Accelerator, module: torch.nn.Module, *rest: object) -> object:
        names[:] = [name for name, p in module.named_parameters() if p.requires_grad]
        return prepare(self, module, *rest)

    monkeypatch.setattr(Accelerator, "prepare", note_names)

    def run(stage: str, *flags: str) -> list[State]:
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        common = [f"--features.cache={bundle / 'cache'}", f"--{stage}.steps=4"]
        common += ["--checkpoint.every=1", "--checkpoint.keep=9"]
        recipe(tiny_dataset, output, f"--stages=[features,{stage}]", *common, *flags)
        found = []
        for place in sorted((output / "checkpoints" / stage).glob("step-*")):
            saved = torch.load(place / "optimizer.bin", weights_only=True)
            (group,) = saved["param_groups"]
            moments = [saved["state"][index] for index in group["params"]]
            found.append(
                State(
                    load_file(place / "weights.safetensors"),
                    group,
                    {n: each["exp_avg"] for n, each in zip(names, moments, strict=True)},
                    {n: each["exp_avg_sq"] for n, each in zip(names, moments, strict=True)},
                )
            )
        assert len(found) == 4
        return found

    return run


def adam_step(before: State, after: State, update: int, decay: float) -> dict[str, Tensor]:
    """Weights that Adam's equations make of the ones before, with the recorded moments."""
    lr = after.group["lr"]
    made = {}
    for name, mean in after.mean.items():
        step = mean / (1 - BETA1**update)
        scale = (after.square[name] / (1 - BETA2**update)).sqrt() + EPS
        made[name] = before.weights[name] * (1 - lr * decay) - lr * step / scale
    return made


def assert_weights(state: State, expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(state.weights[name], tensor, atol=1e-7, rtol=1e-5)


def test_policy(train: Train) -> None:
    states = train("policy", "--policy.lr=3e-3", "--policy.weight_decay=0.5")
    for update, state in enumerate(states):
        assert state.group["lr"] == pytest.approx(3e-3 * warmup_cosine(update, 4))
        assert state.group["weight_decay"] == 0.5
    assert states[1].group["lr"] > states[3].group["lr"]
    assert_weights(states[2], adam_step(states[1], states[2], 3, decay=0.5))
    free = train("policy", "--policy.grad_clip=0")[0].gradient_norm()
    assert free > 1 and states[0].gradient_norm() == pytest.approx(1, rel=1e-4)  # the default
    clip = f"--policy.grad_clip={free / 4}"
    assert train("policy", clip)[0].gradient_norm() == pytest.approx(free / 4, rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_of_the_critic(train: Train, schedule: str) -> None:
    states = train("critic", "--critic.lr=2e-3", f"--critic.schedule={schedule}")
    for update, state in enumerate(states):
        factor = warmup_cosine(update, 4) if schedule == "cosine" else 1.0
        assert state.group["lr"] == pytest.approx(2e-3 * factor)
    assert_weights(states[2], adam_step(states[1], states[2], 3, decay=0.0))


def test_clipping_of_the_critic(train: Train) -> None:
    free = train("critic")[0].gradient_norm()
    clipped = train("critic", f"--critic.grad_clip={free / 4}")[0].gradient_norm()
    assert clipped == pytest.approx(free / 4, rel=1e-4)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_target_follows_at_the_configured_rate(train: Train, rate: float) -> None:
    before, after = train("critic", f"--critic.ema={rate}")[1:3]
    targets = [name for name in after.weights if name.startswith("target_critics.")]
    assert targets and not set(targets) & set(after.mean)  # Adam doesn't touch them
    for name in targets:
        q = after.weights[name.removeprefix("target_")]
        torch.testing.assert_close(
            after.weights[name], (1 - rate) * before.weights[name] + rate * q
        )


@pytest.mark.parametrize(
    ("flag", "network"),
    [("--critic.expectile=0.95", "value_net."), ("--critic.g2=0.5", "critics.")],
    ids=["the expectile is V's", "the discount is Q's"],
)
def test_each_loss_has_its_own_setting(train: Train, flag: str, network: str) -> None:
    """From the same weights and batch, only one network's first gradient changes."""
    usual, other = (train("critic", *SUPPORT, *more)[0].gradient() for more in ([], [flag]))
    changed = {n.split(".")[0] for n, g in usual.items() if not torch.equal(g, other[n])}
    assert changed == {network.removesuffix("."), "encoder"}  # which both losses train
    assert all(gradient.any() for gradient in usual.values())
