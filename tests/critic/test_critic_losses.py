"""The losses against plain float64 references, and what must hold of every algorithm."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from critic_cases import (
    A,
    B,
    H,
    N,
    random_batch,
    random_statistics,
    seeded,
    small_config,
    trained,
)
from torch import Tensor

from deas_vla.critic import ChunkBatch, Critic, make_critic
from deas_vla.critic.base import QVCritic
from deas_vla.critic.config import ALGORITHMS
from deas_vla.critic.networks import EnsembleMLP
from deas_vla.errors import DeasError

Build = Callable[..., Critic]


def apart(critic: QVCritic) -> QVCritic:
    """Targets that differ from the critics, as in the middle of a training."""
    with torch.no_grad():
        for i, p in enumerate(critic.target_critics.parameters()):
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(i)).to(p.dtype))
    return critic


def qv(build: Build, algorithm: str, **changes: object) -> QVCritic:
    critic = build(algorithm, **changes).double()
    assert isinstance(critic, QVCritic)
    return apart(critic)


def outputs(critic: QVCritic, batch: ChunkBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raw outputs of Q, target Q, V and V at s', computed as section 2 says."""
    n = critic.normalizer
    assert critic.encoder is not None

    def observe(feature: Tensor, state: Tensor) -> Tensor:
        scaled = (feature - n.feature_mean) / n.feature_std
        return torch.cat([critic.encoder(scaled), (state - n.state_mean) / n.state_std], -1)

    obs = observe(batch.feature, batch.state)
    steps = (batch.actions - n.action_mean) / n.action_std
    x = torch.cat([obs, steps.reshape(len(batch), -1)], -1)
    next_obs = observe(batch.next_feature, batch.next_state)
    return (critic.critics(x), critic.target_critics(x), critic.value_net(obs),
            critic.value_net(next_obs))  # fmt: skip


def reference_deas(critic: QVCritic, batch: ChunkBatch, tau: float) -> tuple[Tensor, Tensor]:
    """``L_Q`` and ``L_V`` of section 2, sample by sample."""
    q, q_bar, v, v_next = outputs(critic, batch)
    c = critic.support.centres(v)
    loss_q, loss_v = [], []
    for b in range(len(batch)):
        go_on = 0.0 if batch.terminated[b] else batch.bootstrap[b]
        y = batch.reward[b] + go_on * (v_next[b].softmax(-1) * c).sum().detach()
        p_y = critic.support.project(y)
        loss_q += [-(p_y * q[e, b].log_softmax(-1)).sum() for e in range(2)]
        means = [(q_bar[e, b].softmax(-1) * c).sum() for e in range(2)]
        p_bar = q_bar[0 if means[0] < means[1] else 1, b].softmax(-1).detach()
        above = (p_bar * c).sum() >= (v[b].softmax(-1) * c).sum()
        loss_v.append(-(tau if above else 1 - tau) * (p_bar * v[b].log_softmax(-1)).sum())
    return torch.stack(loss_q).mean(), torch.stack(loss_v).mean()


def reference_iql(critic: QVCritic, batch: ChunkBatch, tau: float) -> tuple[Tensor, Tensor]:
    """The same with scalars and squared errors."""
    q, q_bar, v, v_next = (out.squeeze(-1) for out in outputs(critic, batch))
    y = batch.reward + batch.bootstrap * (~batch.terminated) * v_next.detach()
    u = q_bar.min(0).values.detach() - v
    return ((q - y) ** 2).mean(), ((tau - (u < 0).double()).abs() * u**2).mean()


@pytest.mark.parametrize(
    ("algorithm", "reference", "tau"),
    [("deas", reference_deas, 0.8), ("hlg", reference_deas, 0.5), ("iql", reference_iql, 0.8)],
)
def test_loss_and_gradients_equal_the_reference(
    build: Build, algorithm: str, reference: Callable[..., tuple[Tensor, Tensor]], tau: float
) -> None:
    """Q's loss trains Q and the encoder, V's loss V and the encoder, nothing trains the target."""
    critic, batch = qv(build, algorithm, expectile=0.8), random_batch(dtype=torch.float64)
    loss, metrics = critic(batch)
    loss_q, loss_v = reference(critic, batch, tau)
    torch.testing.assert_close(metrics["loss_q"], loss_q.detach())
    torch.testing.assert_close(metrics["loss_v"], loss_v.detach())
    torch.testing.assert_close(loss, loss_q + loss_v)

    parameters = critic.trainable_parameters()
    of_q = torch.autograd.grad(loss_q, parameters, allow_unused=True, retain_graph=True)
    of_v = torch.autograd.grad(loss_v, parameters, allow_unused=True)
    of_both = torch.autograd.grad(loss, parameters)
    names = [name for name, p in critic.named_parameters() if p.requires_grad]
    for name, grad, grad_q, grad_v in zip(names, of_both, of_q, of_v, strict=True):
        part = name.split(".")[0]
        assert (grad_q is None) == (part == "value_net"), name
        assert (grad_v is None) == (part == "critics"), name
        torch.testing.assert_close(grad, sum(g for g in (grad_q, grad_v) if g is not None))


def test_qc_target_is_the_best_candidate_under_the_pessimistic_target(build: Build) -> None:
    critic, batch = qv(build, "qc"), random_batch(dtype=torch.float64)
    assert batch.next_candidates is not None
    q, q_bar, v, _ = (out.squeeze(-1) for out in outputs(critic, batch))
    n = critic.normalizer
    next_obs = critic.observe(batch.next_feature, batch.next_state)
    y = batch.reward.clone()
    for b in range(len(batch)):
        if not batch.terminated[b]:
            steps = (batch.next_candidates[b] - n.action_mean) / n.action_std
            x = torch.cat([next_obs[b].expand(N, -1), steps.reshape(N, -1)], -1)
            y[b] += batch.bootstrap[b] * critic.target_critics(x).squeeze(-1).min(0).values.max()
    loss, metrics = critic(batch)
    torch.testing.assert_close(metrics["loss_q"], ((q - y) ** 2).mean().detach())
    torch.testing.assert_close(metrics["loss_v"], ((q_bar.min(0).values - v) ** 2).mean().detach())
    torch.testing.assert_close(loss.detach(), metrics["loss_q"] + metrics["loss_v"])


def test_hlg_is_deas_at_one_half_to_the_bit(build: Build, batch: ChunkBatch) -> None:
    hlg, deas = build("hlg", expectile=0.9), build("deas", expectile=0.5)
    assert torch.equal(hlg(batch)[0], deas(batch)[0])


def test_the_target_moves_at_the_recorded_rate(build: Build) -> None:
    critic = qv(build, "deas", ema=0.005)
    old = copy.deepcopy(critic.target_critics)
    critic.update_target()
    for was, now, online in zip(old.parameters(), critic.target_critics.parameters(),
                                critic.critics.parameters(), strict=True):  # fmt: skip
        torch.testing.assert_close(now, 0.995 * was + 0.005 * online)
    critic.update_target(rate=1.0)
    for now, online in zip(
        critic.target_critics.parameters(), critic.critics.parameters(), strict=True
    ):
        assert torch.equal(now, online)


def test_metrics_say_what_they_measure(build: Build) -> None:
    critic, batch = qv(build, "deas"), random_batch(dtype=torch.float64)
    with torch.no_grad():
        _, metrics = critic(batch)
        q, q_bar, v, v_next = (critic.expect(out) for out in outputs(critic, batch))
        y = batch.reward + batch.bootstrap * (~batch.terminated) * v_next
    expected = {
        "q_mean": q.mean(), "v_mean": v.mean(), "target_mean": y.mean(), "target_min": y.min(),
        "target_max": y.max(), "expectile_ratio": (q_bar.min(0).values >= v).float().mean(),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, msg=name)
    far = dataclasses.replace(batch, reward=batch.reward.clone().index_fill(0, torch.arange(3), 9))
    assert critic(far)[1]["support_saturation"] == pytest.approx(3 / B)


# Every algorithm.

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@every_algorithm
def test_one_backward_reaches_every_trainable_parameter(
    build: Build, batch: ChunkBatch, algorithm: str
) -> None:
    critic = build(algorithm)
    loss, metrics = critic(batch, seeded())
    assert loss.shape == () and not any(m.requires_grad or m.shape for m in metrics.values())
    loss.backward()
    trainable = {id(p) for p in critic.trainable_parameters()}
    for name, p in critic.named_parameters():
        assert (p.grad is not None) == (id(p) in trainable), name
        assert (id(p) in trainable) != name.startswith("target_"), name


@every_algorithm
def test_training_lowers_the_loss_and_moves_only_by_the_update(
    build: Build, batch: ChunkBatch, algorithm: str
) -> None:
    critic = build(algorithm, lr=3e-3)
    before = critic(batch, seeded(1))[0].item()
    trained(critic, batch, 60)
    assert critic(batch, seeded(1))[0].item() < before


@every_algorithm
def test_scores_are_per_candidate_and_differentiable(
    build: Build, batch: ChunkBatch, algorithm: str
) -> None:
    critic = build(algorithm)
    candidates = random_batch().next_candidates
    assert candidates is not None
    candidates.requires_grad_()
    score = critic.score(batch.feature, batch.state, candidates)
    assert score.shape == (B, N) and critic.value(batch.feature, batch.state).shape == (B,)
    order = torch.randperm(N, generator=seeded())
    shuffled = critic.score(batch.feature, batch.state, candidates[:, order])
    torch.testing.assert_close(shuffled, score[:, order])
    alone = critic.score(batch.feature[3:4], batch.state[3:4], candidates[3:4, 2:3])
    torch.testing.assert_close(alone[0, 0], score[3, 2])
    score.sum().backward()
    assert candidates.grad is not None and candidates.grad.abs().sum() > 0


@every_algorithm
def test_score_is_the_smallest_member(build: Build, batch: ChunkBatch, algorithm: str) -> None:
    """A critic of two scores as the smaller of the two critics of one that it is made of."""
    two = build(algorithm)
    singles = []
    for member in range(2):
        one = build(algorithm, ensemble=1)
        state = two.state_dict()
        for name, own in one.state_dict().items():
            ensemble = state[name].shape[0] == 2 and own.shape[0] == 1 and "layers" in name
            own.copy_(state[name][member : member + 1] if ensemble else state[name])
        singles.append(one.score(batch.feature, batch.state, batch.next_candidates))
    expected = torch.minimum(*singles)
    score = two.score(batch.feature, batch.state, batch.next_candidates)
    torch.testing.assert_close(score, expected)


@every_algorithm
@pytest.mark.parametrize("steps", [H - 1, H + 1])
def test_a_chunk_of_another_length_is_refused(
    build: Build, batch: ChunkBatch, algorithm: str, steps: int
) -> None:
    with pytest.raises(DeasError, match=rf"\({steps}, {A}\).*\({H}, {A}\)"):
        build(algorithm).score(batch.feature, batch.state, torch.zeros(B, N, steps, A))


@every_algorithm
def test_nothing_behind_the_end_of_an_episode_gets_through(
    build: Build, batch: ChunkBatch, algorithm: str
) -> None:
    """A NaN in the next observation of an ended episode is unread."""
    ended = batch.terminated
    nan = float("nan")
    poisoned = dataclasses.replace(
        batch,
        next_feature=batch.next_feature.masked_fill(ended.unsqueeze(-1), nan),
        next_state=batch.next_state.masked_fill(ended.unsqueeze(-1), nan),
        next_actions=batch.next_actions.masked_fill(ended.view(-1, 1, 1), nan),
    )
    critic = build(algorithm)
    assert torch.equal(critic(poisoned, seeded())[0], critic(batch, seeded())[0])


@every_algorithm
def test_bf16_autocast_keeps_targets_and_losses_in_float32(
    build: Build, batch: ChunkBatch, algorithm: str
) -> None:
    critic = build(algorithm)
    plain, _ = critic(batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = critic(batch, seeded())
        score = critic.score(batch.feature, batch.state, batch.next_candidates)
    loss.backward()
    assert loss.dtype == score.dtype == torch.float32
    assert all(m.dtype == torch.float32 for m in metrics.values())
    torch.testing.assert_close(loss, plain, rtol=0.05, atol=0.05)


@every_algorithm
def test_no_feature_or_no_state(algorithm: str) -> None:
    for absent in ("feature_dim", "state_dim"):
        critic = make_critic(small_config(algorithm, **{absent: 0}))
        batch = random_batch()
        empty = torch.zeros(B, 0)
        part = absent.removesuffix("_dim")
        batch = dataclasses.replace(batch, **{part: empty, f"next_{part}": empty})
        critic(batch, seeded())[0].backward()
        assert critic.value(batch.feature, batch.state).shape == (B,)


@every_algorithm
def test_a_seed_decides_the_weights_and_nothing_else_does(algorithm: str) -> None:
    torch.manual_seed(1)
    first = make_critic(small_config(algorithm), random_statistics(), seeded(5))
    torch.manual_seed(2)
    second = make_critic(small_config(algorithm), random_statistics(), seeded(5))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(("algorithm", "field"),
                         [("qc", "next_candidates"), ("evor", "next_actions")])  # fmt: skip
def test_a_batch_without_what_the_target_needs_is_refused(
    build: Build, batch: ChunkBatch, algorithm: str, field: str
) -> None:
    with pytest.raises(DeasError, match=f"'{algorithm}'.*{field} = None"):
        build(algorithm)(dataclasses.replace(batch, **{field: None}))


# The policy is detached.


READ_BY_ALL = {
    "feature",
    "state",
    "actions",
    "reward",
    "bootstrap",
    "terminated",
    "next_feature",
    "next_state",
    "member_weight",
}
READ_BESIDES = {"qc": {"next_candidates"}, "evor": {"next_actions"}}


@every_algorithm
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ChunkBatch)])
def test_what_a_loss_reads(build: Build, batch: ChunkBatch, algorithm: str, name: str) -> None:
    """Chunks that the data doesn't hold raise no target but qc's: the policy's are not even read.

    A poisoned field shows in loss and gradients where it is read, and in not one bit where not.
    """
    members = torch.tensor([[1.0, 2.0]]).expand(B, -1)
    batch = dataclasses.replace(batch, member_weight=members)
    read = name in READ_BY_ALL | READ_BESIDES.get(algorithm, set())
    value = getattr(batch, name)
    poisons = [~value] if value.dtype == torch.bool else [value + 0.37]
    if not read:
        poisons += [torch.full_like(value, 1e6), torch.full_like(value, float("nan"))]
    for poison in poisons:
        other = dataclasses.replace(batch, **{name: poison})
        clean, poisoned = (loss_and_gradients(build(algorithm), each) for each in (batch, other))
        assert torch.equal(clean, poisoned) != read


def loss_and_gradients(critic: Critic, batch: ChunkBatch) -> Tensor:
    loss, _ = critic(batch, seeded())
    loss.backward()
    gradients = [p.grad.flatten() for p in critic.parameters() if p.grad is not None]
    return torch.cat([loss.detach().view(1), *gradients])


# Networks.


def test_members_of_the_ensemble_are_independent() -> None:
    net = EnsembleMLP(3, 5, [8, 8], 2).double()
    x = torch.randn(7, 5, dtype=torch.float64, generator=seeded())
    out = net(x)
    assert out.shape == (3, 7, 2)
    torch.testing.assert_close(net(x.expand(3, 7, 5)), out)
    gradients = torch.autograd.grad(out[1].sum(), list(net.parameters()))
    assert all(g[0].abs().sum() == 0 and g[2].abs().sum() == 0 for g in gradients)
    assert torch.autograd.gradcheck(net, (x.requires_grad_(),))


def test_score_gradients_in_float64(build: Build) -> None:
    critic, batch = qv(build, "deas"), random_batch(dtype=torch.float64)
    candidates = batch.next_candidates[:2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: critic.score(batch.feature[:2], batch.state[:2], a), (candidates,)
    )
