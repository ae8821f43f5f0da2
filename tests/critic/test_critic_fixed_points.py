"""Trained to convergence on small semi-MDPs, the critics find what dynamic programming finds.

The exact values come from `semi_mdps.solve`; why DEAS's distributional V has the expectile of Q's
means for its mean is derived in `deas_vla.critic.deas`. Supports reach 15 % beyond the targets, so
that the projection is unbiased, and errors are stated as a share of the support's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch
from critic_cases import seeded
from semi_mdps import (
    Chunk,
    Discounts,
    Row,
    bandit,
    chain,
    expectile,
    gridworld,
    moves_of,
    solve,
    to_batch,
    with_tails,
)

from deas_vla.critic import ChunkBatch, Critic, CriticConfig, make_critic

STEPS = 700
TOLERANCE = 0.01  # of the support's length; a fifth of a bin

Make = Callable[[Discounts], list[Row]]


def bounds(rows: list[Row], tau: float) -> tuple[float, float]:
    _, v = solve(rows, tau)
    y = [r.reward + (0.0 if r.terminated else r.bootstrap * v[r.next_state]) for r in rows]
    margin = 0.15 * (max(y) - min(y))
    return min(y) - margin, max(y) + margin


def converge(
    rows: list[Row],
    discounts: Discounts,
    algorithm: str,
    candidates: torch.Tensor | None = None,
) -> tuple[Critic, ChunkBatch]:
    """Full-batch training of a network larger than the table; the rate falls at the end."""
    states = 1 + max(row.state for row in rows)
    batch = to_batch(rows, states, next_candidates=candidates)
    v_min, v_max = bounds(rows, discounts.tau)
    config = CriticConfig(
        algorithm=algorithm,
        state_dim=states,
        action_dim=batch.actions.shape[-1],
        horizon=discounts.horizon,
        hidden=[64],
        value_width=64,
        value_depth=0,
        bins=21,  # a mean that has few bins to cross arrives sooner
        v_min=v_min,
        v_max=v_max,
        expectile=discounts.tau,
        ema=0.5,
        lr=1e-2,
    )
    critic = make_critic(config, generator=seeded())
    optimizer = critic.make_optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, max(0.01, 2.5 * (1 - step / STEPS)))
    )
    moves, tails = moves_of(rows), seeded()
    for _ in range(STEPS):
        loss, _ = critic(with_tails(batch, rows, moves, tails))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.update_target()
        schedule.step()
    return critic, batch


@torch.no_grad()
def errors(critic: Critic, batch: ChunkBatch, rows: list[Row], tau: float) -> tuple[float, float]:
    """Largest errors of Q and V over the data, as shares of the support's length.

    Q of a chunk that ends its episode must be the same with whatever stands behind the end.
    """
    q, v = solve(rows, tau)
    q_found = scores_with_tails(critic, batch, rows)  # (tails, B)
    v_found = critic.value(batch.feature, batch.state)
    q_exact = torch.tensor([q[row.state, row.chunk] for row in rows])
    v_exact = torch.tensor([v[row.state] for row in rows])
    length = critic.support.v_max - critic.support.v_min
    return (
        (q_found - q_exact).abs().max().item() / length,
        (v_found - v_exact).abs().max().item() / length,
    )


def scores_with_tails(
    critic: Critic, batch: ChunkBatch, rows: list[Row], tails: int = 6
) -> torch.Tensor:
    """Q of every row's chunk with several tails, (tails, B)."""
    moves, generator = moves_of(rows), seeded(1)
    drawn = [with_tails(batch, rows, moves, generator).actions for _ in range(tails)]
    score = critic.score(batch.feature, batch.state, torch.stack(drawn, dim=1))  # (B, tails)
    return score.T


CASES = [
    # semi-MDP, chunk length, g1, g2, tau
    (bandit, 2, 0.9, 0.99, 0.7),
    (bandit, 1, 0.9, 0.9, 0.95),
    (chain, 1, 0.9, 0.9, 0.7),
    (chain, 2, 0.9, 0.95, 0.9),
    (chain, 3, 0.8, 0.9, 0.5),
    (gridworld, 1, 1.0, 0.8, 0.9),
    (gridworld, 2, 0.9, 0.95, 0.7),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "horizon", "g1", "g2", "tau"), CASES)
def test_deas_finds_the_expectile_fixed_point(
    make: Make, horizon: int, g1: float, g2: float, tau: float
) -> None:
    discounts = Discounts(horizon, g1, g2, tau)
    rows = make(discounts)
    error_q, error_v = errors(*converge(rows, discounts, "deas"), rows, tau)
    print(f"{make.__name__} {discounts}: Q off by {error_q:.3%}, V by {error_v:.3%}")
    assert error_q < TOLERANCE and error_v < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "tau"), [("iql", 0.8), ("hlg", 0.5)])
def test_the_ablations_find_their_fixed_points(algorithm: str, tau: float) -> None:
    discounts = Discounts(2, 0.9, 0.95, tau)
    rows = chain(discounts)
    error_q, error_v = errors(*converge(rows, discounts, algorithm), rows, tau)
    print(f"{algorithm}: Q off by {error_q:.3%}, V by {error_v:.3%}")
    assert error_q < TOLERANCE and error_v < TOLERANCE


def held(row: Row) -> Chunk:
    """A row's chunk as a policy proposes it: the last action goes on behind the end."""
    taken = sum(row.valid)
    return row.chunk[:taken] + row.chunk[taken - 1 : taken] * (len(row.chunk) - taken)


@pytest.mark.slow
def test_qc_with_the_chunks_of_the_data_as_candidates_finds_their_optimum() -> None:
    """A policy that proposes all that the data does makes the target a maximum: tau = 1."""
    discounts = Discounts(2, 0.9, 0.9, 1.0)
    rows = chain(discounts)
    known = {s: sorted({held(row) for row in rows if row.state == s}) for s in range(5)}
    most = max(map(len, known.values()))
    candidates = torch.tensor(
        [list(islice(cycle(known[row.next_state % 5]), most)) for row in rows]
    )
    critic, batch = converge(rows, replace(discounts, tau=0.5), "qc", candidates)
    q, _ = solve(rows, 1.0)
    with torch.no_grad():
        found = scores_with_tails(critic, batch, rows)
    exact = torch.tensor([q[row.state, row.chunk] for row in rows])
    length = critic.support.v_max - critic.support.v_min
    assert (found - exact).abs().max() < TOLERANCE * length


@pytest.mark.slow
@pytest.mark.parametrize("make", [chain, gridworld])
def test_as_tau_goes_to_one_the_greedy_chunk_is_the_best_of_the_data(make: Make) -> None:
    discounts = Discounts(2, 0.9, 0.9, 0.98)
    rows = make(discounts)
    critic, _ = converge(rows, discounts, "deas")
    best, _ = solve(rows, 1.0)
    for state in sorted({row.state for row in rows}):
        here = sorted({row.chunk for row in rows if row.state == state})
        one_hot = torch.eye(1 + max(row.state for row in rows))[state].unsqueeze(0)
        with torch.no_grad():
            score = critic.score(torch.zeros(1, 0), one_hot, torch.tensor([here]))
        chosen = here[int(score.argmax())]
        optimum = max(best[state, chunk] for chunk in here)
        assert best[state, chosen] == pytest.approx(optimum, abs=1e-6), (state, chosen)


# The exact solver itself, by hand.


def test_expectile_of_two_values_by_hand() -> None:
    """``tau (1 - v) = (1 - tau) v`` for values 0 and 1, so ``v = tau``."""
    for tau in (0.1, 0.5, 0.7, 0.99):
        assert expectile([0.0, 1.0], tau) == pytest.approx(tau)
    assert expectile([0.0, 1.0, 5.0], 1.0) == pytest.approx(5.0)


def test_bandit_by_hand() -> None:
    """Means -2 (five rows) and -1 (three): ``3 tau (-1 - v) = 5 (1 - tau) (v + 2)``."""
    discounts = Discounts(2, 0.9, 0.99, 0.7)
    q, v = solve(bandit(discounts), discounts.tau)
    assert sorted(q.values()) == pytest.approx([-2, -1])
    assert v[0] == pytest.approx((-3 * 0.7 - 10 * 0.3) / (3 * 0.7 + 5 * 0.3))


def test_chain_by_hand() -> None:
    """Beside the goal the right step earns 0; two steps earn -1 and, cut there, bootstrap none."""
    discounts = Discounts(2, 0.9, 0.9, 1.0)
    q, v = solve(chain(discounts, length=4), discounts.tau)
    right = ((1.0,), (1.0,))
    assert q[3, ((1.0,), (0.0,))] == pytest.approx(0)
    assert q[2, right] == pytest.approx(-1)
    assert q[0, right] == pytest.approx(-1.9 + 0.81 * v[2])
