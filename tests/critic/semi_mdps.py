"""Small semi-MDPs with exact solutions: a chain, a gridworld, a bandit of chunks.

Everything here is plain Python written from the table of chunk transitions and the expectile
recursion, so that it shares nothing with the code that it judges.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from deas_vla.critic import ChunkBatch

Chunk = tuple[tuple[float, ...], ...]  # H steps of A numbers


@dataclass(frozen=True)
class Row:
    """One chunk transition between numbered states."""

    state: int
    chunk: Chunk
    valid: tuple[bool, ...]
    reward: float
    bootstrap: float
    next_state: int
    terminated: bool


@dataclass(frozen=True)
class Discounts:
    horizon: int
    g1: float
    g2: float
    tau: float


Step = Callable[[int, tuple[float, ...]], tuple[int, float, bool]]


def roll(step: Step, state: int, chunk: Chunk, discounts: Discounts) -> Row:
    """Run a chunk step by step; a terminal cuts it and ends the bootstrap.

    What stands behind the cut is no part of the transition: zeros are its name in the tables of
    `solve`, and `with_tails` puts actions there.
    """
    reward, here, taken = 0.0, state, len(chunk)
    terminated = False
    for k, action in enumerate(chunk):
        here, r, terminated = step(here, action)
        reward += discounts.g1**k * r
        if terminated:
            taken = k + 1
            break
    zero = (0.0,) * len(chunk[0])
    return Row(
        state=state,
        chunk=chunk[:taken] + (zero,) * (len(chunk) - taken),
        valid=(True,) * taken + (False,) * (len(chunk) - taken),
        reward=reward,
        bootstrap=discounts.g2 ** len(chunk),
        next_state=here,
        terminated=terminated,
    )


def chain(discounts: Discounts, length: int = 5) -> list[Row]:
    """Steps left and right on a line; reaching the right end ends the episode with reward 0.

    Each chunk is seen one to three times: the behaviour policy isn't uniform.
    """

    def step(position: int, action: tuple[float, ...]) -> tuple[int, float, bool]:
        there = max(0, position + int(action[0]))
        return there, (0.0 if there == length else -1.0), there == length

    moves = ((-1.0,), (1.0,))
    return [
        roll(step, position, chunk, discounts)
        for position in range(length)
        for i, chunk in enumerate(itertools.product(moves, repeat=discounts.horizon))
        for _ in range(1 + (position + i) % 3)
    ]


def gridworld(discounts: Discounts, side: int = 3) -> list[Row]:
    """Four moves on a square with a pit that costs 3 in its middle and the goal in a corner.

    Of the chunks at each cell the data holds two in three.
    """
    goal, pit = side * side - 1, (side * side) // 2

    def step(cell: int, action: tuple[float, ...]) -> tuple[int, float, bool]:
        x = min(max(cell % side + int(action[0]), 0), side - 1)
        y = min(max(cell // side + int(action[1]), 0), side - 1)
        there = y * side + x
        return there, {goal: 0.0, pit: -3.0}.get(there, -1.0), there == goal

    moves = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
    return [
        roll(step, cell, chunk, discounts)
        for cell in range(goal)
        for i, chunk in enumerate(itertools.product(moves, repeat=discounts.horizon))
        if (cell + i) % 3
    ]


def bandit(discounts: Discounts) -> list[Row]:
    """One decision between two ways of doing it: reliably -2, or 0 twice in three times, else -3.

    What lies between the two modes, in action space, isn't in the data.
    """
    outcomes = {-1.0: (-2.0, -2.0, -2.0, -2.0, -2.0), 1.0: (0.0, 0.0, -3.0)}
    return [
        Row(
            state=0,
            chunk=((mode,),) * discounts.horizon,
            valid=(True,) * discounts.horizon,
            reward=reward,
            bootstrap=discounts.g2**discounts.horizon,
            next_state=0,
            terminated=True,
        )
        for mode, rewards in outcomes.items()
        for reward in rewards
    ]


QTable = dict[tuple[int, Chunk], float]
VTable = dict[int, float]


def expectile(values: list[float], tau: float) -> float:
    """The v with ``sum_i |tau - 1(q_i < v)| (q_i - v) = 0``, by bisection; the maximum at 1."""
    low, high = min(values), max(values)
    for _ in range(200):
        v = (low + high) / 2
        slope = sum((tau if q >= v else 1 - tau) * (q - v) for q in values)
        low, high = (v, high) if slope > 0 else (low, v)
    return high


def solve(rows: list[Row], tau: float) -> tuple[QTable, VTable]:
    """The fixed point of ``Q = mean[R + bootstrap (1 - terminated) V(s')]``, ``V = expectile Q``.

    Each row counts once in its state's expectile: the data's own chunk distribution.
    """
    by_pair: dict[tuple[int, Chunk], list[Row]] = defaultdict(list)
    by_state: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_pair[row.state, row.chunk].append(row)
        by_state[row.state].append(row)

    v = dict.fromkeys(by_state, 0.0)
    while True:
        q = {
            pair: sum(
                row.reward + (0.0 if row.terminated else row.bootstrap * v[row.next_state])
                for row in same
            )
            / len(same)
            for pair, same in by_pair.items()
        }
        new = {
            s: expectile([q[row.state, row.chunk] for row in at_s], tau)
            for s, at_s in by_state.items()
        }
        moved = max(abs(new[s] - v[s]) for s in v)
        v = new
        if moved < 1e-9:
            return q, v


def with_tails(
    batch: ChunkBatch, rows: list[Row], moves: torch.Tensor, generator: torch.Generator
) -> ChunkBatch:
    """The batch with moves (K, A) drawn anew into every step after a terminal one."""
    valid = torch.tensor([row.valid for row in rows])  # (B, H)
    drawn = moves[torch.randint(len(moves), valid.shape, generator=generator)]  # (B, H, A)
    return replace(batch, actions=torch.where(valid.unsqueeze(-1), batch.actions, drawn))


def moves_of(rows: list[Row]) -> torch.Tensor:
    """All actions of a semi-MDP, (K, A)."""
    steps = {step for row in rows for step, real in zip(row.chunk, row.valid, strict=True) if real}
    return torch.tensor(sorted(steps))


def to_batch(rows: list[Row], states: int, **extra: torch.Tensor | None) -> ChunkBatch:
    """All rows as one batch; states are one-hot, there is no feature."""
    eye = torch.eye(states)
    empty = torch.zeros(len(rows), 0)
    return ChunkBatch(
        feature=empty,
        state=eye[[row.state for row in rows]],
        actions=torch.tensor([row.chunk for row in rows]),
        reward=torch.tensor([row.reward for row in rows]),
        bootstrap=torch.tensor([row.bootstrap for row in rows]),
        terminated=torch.tensor([row.terminated for row in rows]),
        next_feature=empty,
        # The goal has no row of its own; what stands for it is never read.
        next_state=eye[[row.next_state % states for row in rows]],
        **extra,
    )
