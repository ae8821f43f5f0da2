"""The critic's update: the losses' own gradients, clipped, stepped and averaged as configured."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from deas_vla.critic import ChunkBatch, Critic, CriticConfig, make_critic
from deas_vla.errors import DeasError
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.update import CriticUpdate

B, F, S, H, A, N = 12, 6, 3, 4, 2, 5
SMALL = CriticConfig(
    feature_dim=F,
    state_dim=S,
    action_dim=A,
    horizon=H,
    hidden=[16],
    value_width=8,
    value_depth=1,
    feature_encoder_dim=4,
    feature_encoder_hidden=8,
    bins=21,
    v_min=-10.0,
    v_max=1.0,
)


def batch(seed: int, device: str = "cpu") -> ChunkBatch:
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return ChunkBatch(
        feature=normal(B, F),
        state=normal(B, S),
        actions=normal(B, H, A),
        reward=-normal(B).abs(),
        bootstrap=torch.full((B,), 0.9),
        terminated=torch.arange(B) % 3 == 0,
        next_feature=normal(B, F),
        next_state=normal(B, S),
        next_actions=normal(B, H, A),
        next_candidates=normal(B, N, H, A),
    ).to(device)


def critic_of(algorithm: str, device: str = "cpu") -> Critic:
    config = CriticConfig(**{**SMALL.to_dict(), "algorithm": algorithm, "inference": {}})
    config.inference = SMALL.inference
    return make_critic(config, generator=torch.Generator().manual_seed(0)).to(device)


def update_of(algorithm: str = "deas", device: str = "cpu", **settings: object) -> CriticUpdate:
    return CriticUpdate(
        critic_of(algorithm, device),
        CriticTrainingConfig(algorithm=algorithm, steps=20, **settings),  # type: ignore[arg-type]
        Accelerator(cpu=device == "cpu"),
        torch.Generator(device).manual_seed(1),
    )


def weights(critic: Critic) -> Tensor:
    return torch.cat([p.detach().flatten() for p in critic.parameters()])


@pytest.fixture
def compiled() -> Iterator[None]:
    """Leaves nothing of torch.compile behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("algorithm", ["deas", "hlg", "iql", "qc", "evor"])
def test_an_update_is_the_textbook_loop(algorithm: str) -> None:
    update, critic = update_of(algorithm), critic_of(algorithm)
    optimizer, generator = critic.make_optimizer(), torch.Generator().manual_seed(1)
    for step in range(4):
        loss, metrics = critic.loss(batch(step), generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        critic.update_target()
        measured, logged = update(batch(step), want_metrics=True)
        assert torch.equal(measured, loss.detach())
        assert all(torch.equal(logged[name], value) for name, value in metrics.items())
    assert torch.equal(weights(update.critic), weights(critic))
    assert update.done == 4


def test_gradient_norms_are_of_the_named_networks() -> None:
    update, critic = update_of(), critic_of("deas")
    _, metrics = update(batch(0), want_metrics=True)
    critic.loss(batch(0))[0].backward()
    groups = {"grad_norm": critic} | {
        f"grad_norm_{role}": network for role, network in critic.networks().items()
    }
    for name, module in groups.items():
        squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
        torch.testing.assert_close(metrics[name], torch.stack(squares).sum().sqrt())
    assert {"grad_norm_q", "grad_norm_v"} <= metrics.keys()


def test_logging_changes_nothing_and_is_empty_where_not_asked_for() -> None:
    silent, logged = update_of(), update_of()
    for step in range(3):
        assert silent(batch(step))[1] == {}
        assert logged(batch(step), want_metrics=True)[1]
    assert torch.equal(weights(silent.critic), weights(logged.critic))


@pytest.mark.parametrize("want_metrics", [False, True])
def test_clipping_bounds_the_gradient_that_adam_sees(want_metrics: bool) -> None:
    update = update_of(grad_clip=0.01)
    seen = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in grads if g is not None]).norm())

    update.optimizer.optimizer.register_step_pre_hook(look)
    _, metrics = update(batch(0), want_metrics)
    torch.testing.assert_close(seen[0], torch.tensor(0.01), rtol=1e-3, atol=0.0)
    assert not want_metrics or metrics["grad_norm"] > 0.01  # before clipping


def test_accumulation_of_the_policy_does_not_shrink_the_critics_gradient() -> None:
    update = CriticUpdate(
        critic_of("deas"),
        CriticTrainingConfig(steps=20),
        Accelerator(cpu=True, gradient_accumulation_steps=4),
    )
    whole = update_of()(batch(0), want_metrics=True)[1]["grad_norm"]
    torch.testing.assert_close(update(batch(0), want_metrics=True)[1]["grad_norm"], whole)


def test_a_restored_update_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"schedule": "cosine", "grad_clip": 1.0}
    through, first, second = (update_of(**settings) for _ in range(3))
    for step in range(6):
        through(batch(step))
    for step in range(3):
        first(batch(step))
    parts = {"critic": first.critic.state_dict(), "optimizer": first.optimizer.state_dict()}
    torch.save(parts, tmp_path / "s")
    saved = torch.load(tmp_path / "s", weights_only=True)
    second.critic.load_state_dict(saved["critic"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.resume(3)
    for step in range(3, 6):
        second(batch(step))
    assert torch.equal(weights(second.critic), weights(through.critic))
    assert second.optimizer.param_groups[0]["lr"] == through.optimizer.param_groups[0]["lr"]


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeasError, match=r"compile=True: no C\+\+ compiler"):
        update_of(compile=True)


def agree(one: CriticUpdate, other: CriticUpdate, device: str = "cpu") -> None:
    """Some updates of both, with other batches and logged at other steps, come out alike."""
    for step in range(7):
        loss, _ = one(batch(step, device), want_metrics=step % 2 == 0)
        torch.testing.assert_close(loss, other(batch(step, device))[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights(one.critic), weights(other.critic), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler on PATH"
)
def test_compiled_equals_eager(compiled: None) -> None:
    agree(update_of(compile=True, grad_clip=1.0), update_of(grad_clip=1.0))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("algorithm", ["deas", "qc", "evor"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_captured_equals_eager(algorithm: str, schedule: str, compiled: None) -> None:
    settings = {"schedule": schedule, "grad_clip": 1.0}
    captured = update_of(algorithm, "cuda", compile=True, **settings)
    agree(captured, update_of(algorithm, "cuda", **settings), "cuda")
    assert captured._captured is not None and captured._captured._graph is not None


def test_a_critic_is_trained_in_float32_under_a_policys_autocast() -> None:
    """``mixed_precision: bf16`` of the launcher is the policy's; scores are float32 too."""
    losses = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        update = CriticUpdate(
            critic_of("deas"),
            CriticTrainingConfig(steps=20),
            Accelerator(mixed_precision=precision, cpu=True),
        )
        losses.append([float(update(batch(step))[0]) for step in range(2)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses[0] == losses[1]
