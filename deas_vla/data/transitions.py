"""Chunk transitions: the semi-MDP view of an episode (DEAS, arXiv 2510.07730, section 4).

This module is the one home of the chunk bookkeeping. Conventions of a LeRobot episode: frame `t`
holds observation `o_t` and action `a_t`, and the reward and the success flag that came *after*
`a_t`. A chunk of `H` actions that starts at `t` leads to the observation of frame `t + H`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.errors import DeasError

Tail = Literal["drop", "bootstrap"]


@dataclass(frozen=True)
class ChunkTransitions:
    """`M` transitions `(s_t, a_{t:t+H-1}, R, s', bootstrap)`; every field has length `M`.

    Attributes:
        start: int64, global frame index of `s_t`.
        next: int64, global frame index of `s'`; equals `start`, unused, where terminated.
        reward: float32, `R = sum_k g1^k r_{t+k}` over the valid steps.
        bootstrap: float32, weight of `V(s')`: `g2^H`, `g2^k` for a chunk of `k` steps kept by
            `tail="bootstrap"`, 0 where terminated.
        terminated: bool, a true terminal (success) lies inside the chunk.
        valid_steps: int64 in 1..H, steps that were executed; `tails.Tails` draws the later ones.
    """

    start: NDArray[np.int64]
    next: NDArray[np.int64]
    reward: NDArray[np.float32]
    bootstrap: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    valid_steps: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class ChunkReturns:
    """Observed discounted returns of `M` chunk starts, in the view of the critic's own target.

    Attributes:
        start: int64 (M,), global frame index the return starts from.
        value: float32 (M,), discounted sum of the rewards that the episode really holds.
        remaining: float32 (M,), weight of the unobserved rest: 0 where the episode terminated, else
            the product of the bootstrap weights up to `last`. The return of an endless episode is
            `value + remaining * V(s_last)`, so `remaining` says how much of it is missing.
        last: int64 (M,), global frame index of the last frame of the episode.
    """

    start: NDArray[np.int64]
    value: NDArray[np.float32]
    remaining: NDArray[np.float32]
    last: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


def chunk_transitions(
    reward: NDArray[np.floating],
    terminated: NDArray[np.bool_],
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
    *,
    horizon: int,
    g1: float,
    g2: float,
    tail: Tail = "drop",
) -> ChunkTransitions:
    """Builds one transition from every frame of the given episodes that has one.

    - `H` steps without a terminal: needs frame `t + H` inside the same episode as `s'`.
    - A terminal at step `t + k`, `k < H`: kept, `k + 1` valid steps, no bootstrap.
    - The recording ends inside the chunk (time limit): dropped, or with `tail="bootstrap"` kept
      with the episode's last frame `T` as `s'`, the `k = T - t >= 1` rewards before it, and `g2^k`.
    - Frames recorded after the first terminal of an episode start no transition.

    Args:
        reward: (T,) reward after each frame's action, in the convention the critic is to learn.
        terminated: (T,) bool, the episode was solved by that frame's action.
        episode_start: (E,) first global frame index of each episode.
        episode_end: (E,) one past the last. A subset of a table's episodes may be given.
        horizon: critic chunk length `H >= 1`.
        g1: discount between the steps of a chunk, in (0, 1].
        g2: discount per step between chunks, in (0, 1].
        tail: what becomes of chunks that a time limit cuts.

    Returns:
        The transitions, ordered by episode and frame; empty when no episode is long enough.

    Raises:
        DeasError: a horizon, discount or tail out of range, or episode bounds outside the frames.

    Source: DEAS, arXiv 2510.07730, section 4.
    """
    _check_settings(horizon, g1, g2, tail)
    _check_bounds(len(reward), terminated, episode_start, episode_end)
    limit, has_terminal = _episode_limits(terminated, episode_start, episode_end)
    start, episode = _frames_before(limit, episode_start)

    steps_left = limit[episode] - start  # (N,) steps up to the terminal or the last frame
    valid_steps = np.minimum(steps_left, horizon)
    ends = has_terminal[episode] & (steps_left <= horizon)
    kept = ends | (steps_left >= (horizon if tail == "drop" else 1))
    start, ends, valid_steps = start[kept], ends[kept], valid_steps[kept]

    bootstrap = np.where(ends, 0.0, np.power(float(g2), valid_steps))
    return ChunkTransitions(
        start=start,
        next=np.where(ends, start, start + valid_steps),
        reward=_discounted_sums(reward, start, valid_steps, horizon, g1),
        bootstrap=bootstrap.astype(np.float32),
        terminated=ends,
        valid_steps=valid_steps,
    )


def gather_chunks(actions: Tensor, start: Tensor, horizon: int) -> Tensor:
    """The H recorded actions from each start on, whichever of them belong to its episode.

    Args:
        actions: (T, A) actions of all frames.
        start: int64 (M,), global frame index of each chunk's first action.
        horizon: `H`.

    Returns:
        (M, H, A); beyond the last frame that frame's action repeats.
    """
    step = torch.arange(horizon, device=start.device)
    return actions[(start.unsqueeze(1) + step).clamp_(max=len(actions) - 1)]


def monte_carlo_chunk_returns(
    reward: NDArray[np.floating],
    terminated: NDArray[np.bool_],
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
    *,
    horizon: int,
    g1: float,
    g2: float,
) -> ChunkReturns:
    """Return of every chunk start by following the episode chunk after chunk.

    `G(t) = R(t) + bootstrap(t) G(t + H)` with the dual discounts of `chunk_transitions`, so that a
    perfect critic of the recorded behaviour would equal `value + remaining * V(s_last)`. Starts are
    those of `tail="bootstrap"`: every frame from which at least one reward is known.

    Args and errors: as `chunk_transitions`.

    Source: the target of DEAS section 4 unrolled along the episode.
    """
    transitions = chunk_transitions(
        reward,
        terminated,
        episode_start,
        episode_end,
        horizon=horizon,
        g1=g1,
        g2=g2,
        tail="bootstrap",
    )
    limit, has_terminal = _episode_limits(terminated, episode_start, episode_end)
    _, episode = _frames_before(limit, episode_start)
    value = np.zeros(len(reward), dtype=np.float64)  # by frame; 0 at the last frame of an episode
    remaining = np.zeros(len(reward), dtype=np.float64)
    remaining[np.asarray(episode_end)[~has_terminal] - 1] = 1.0

    # Chunks are solved from the episodes' ends backwards; all chunks with the same number of
    # chunks after them are independent of each other and are solved at once.
    chunks_after = (limit[episode] - transitions.start - 1) // horizon
    order = np.argsort(chunks_after, kind="stable")
    bounds = np.flatnonzero(np.diff(chunks_after[order])) + 1
    for group in np.split(order, bounds):
        frame, follower = transitions.start[group], transitions.next[group]
        weight = transitions.bootstrap[group].astype(np.float64)
        value[frame] = transitions.reward[group] + weight * value[follower]
        remaining[frame] = weight * remaining[follower]
    return ChunkReturns(
        start=transitions.start,
        value=value[transitions.start].astype(np.float32),
        remaining=remaining[transitions.start].astype(np.float32),
        last=np.asarray(episode_end, dtype=np.int64)[episode] - 1,
    )


def steps_until_limit(
    terminated: NDArray[np.bool_],
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Recorded actions from each frame on, up to its episode's first terminal or end.

    Used for the chunk that follows `s'`: its valid steps are `min(H, steps_until_limit[next])`.
    Unlike a transition's valid steps the last frame's own action counts: it was executed, only its
    outcome was not observed.

    Returns:
        (T,) int64; 0 after a terminal and outside the given episodes.
    """
    limit, has_terminal = _episode_limits(terminated, episode_start, episode_end)
    limit = limit + ~has_terminal
    frame, episode = _frames_before(limit, episode_start)
    steps = np.zeros(len(terminated), dtype=np.int64)
    steps[frame] = limit[episode] - frame
    return steps


def _episode_limits(
    terminated: NDArray[np.bool_],
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """One past the last step with an observed outcome (E,), and whether it is a terminal (E,)."""
    start = np.asarray(episode_start, dtype=np.int64)
    end = np.asarray(episode_end, dtype=np.int64)
    terminal_frames = np.append(np.flatnonzero(terminated), len(terminated))
    first = terminal_frames[np.searchsorted(terminal_frames[:-1], start)]  # (E,)
    has_terminal = first < end
    return np.where(has_terminal, first + 1, end - 1), has_terminal


def _frames_before(
    limit: NDArray[np.int64], episode_start: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Global indices of the frames before their episode's limit, and their episode's row. (N,)"""
    start = np.asarray(episode_start, dtype=np.int64)
    counts = limit - start
    episode = np.repeat(np.arange(len(start)), counts)
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return start[episode] + offset, episode


def _discounted_sums(
    reward: NDArray[np.floating],
    start: NDArray[np.int64],
    valid_steps: NDArray[np.int64],
    horizon: int,
    g1: float,
) -> NDArray[np.float32]:
    """`sum_{k < valid_steps} g1^k r_{start+k}` for each start, accumulated in float64. (M,)"""
    padded = np.append(np.asarray(reward, dtype=np.float64), np.zeros(horizon))
    total = np.zeros(len(start))
    for k in range(horizon):
        total += np.where(k < valid_steps, padded[start + k], 0.0) * g1**k
    return total.astype(np.float32)


def _check_settings(horizon: int, g1: float, g2: float, tail: str) -> None:
    if horizon < 1:
        raise DeasError(f"critic chunk length is {horizon}: set it to 1 or more")
    for name, discount in (("g1", g1), ("g2", g2)):
        if not 0.0 < discount <= 1.0:
            raise DeasError(f"discount {name} is {discount}: set it in (0, 1]")
    if tail not in get_args(Tail):
        raise DeasError(f"tail is {tail!r}: choose one of {', '.join(get_args(Tail))}")


def _check_bounds(
    num_frames: int,
    terminated: NDArray[np.bool_],
    episode_start: NDArray[np.integer],
    episode_end: NDArray[np.integer],
) -> None:
    start, end = np.asarray(episode_start), np.asarray(episode_end)
    if len(terminated) != num_frames:
        raise DeasError(
            f"{num_frames} rewards but {len(terminated)} terminated flags: pass one per frame"
        )
    bad = (start < 0) | (end > num_frames) | (end <= start)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DeasError(
            f"episode {row} spans frames {start[row]}..{end[row]} of {num_frames}: "
            "give non-empty bounds inside the frames"
        )
