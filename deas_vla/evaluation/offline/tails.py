"""Is Q right where the task is being solved? Chunks with success inside, whatever stands behind it.

A chunk that ends its episode has steps that were never executed. Its return is known exactly, and
it is the same for every tail; a candidate that solves the task has such a tail too, one that the
policy put there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.critic.config import CriticConfig
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig, table_rewards
from deas_vla.data.tails import TailConfig, Tails
from deas_vla.data.transitions import chunk_transitions, gather_chunks
from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, mean_over
from deas_vla.evaluation.offline.scoring import FrameCritic

_DRAWS = 4  # tails of each kind behind every chunk


@dataclass(frozen=True)
class SolvingChunks:
    """Chunks of some episodes with success inside.

    Attributes:
        frame: int64 (M,), global index of the first frame.
        episode: int64 (M,), episode row.
        chunk: float32 (M, H, A), environment units; steps after the terminal one are no part of it.
        valid_steps: int64 (M,) in 1..H, steps up to the terminal one.
        returns: (M,) what they paid, in the critic's reward and discounts.
    """

    frame: Indices
    episode: Indices
    chunk: torch.Tensor
    valid_steps: Indices
    returns: Floats

    def some(self, rows: Indices) -> "SolvingChunks":
        """Those alone."""
        chunk = self.chunk[torch.from_numpy(rows)]
        others = (self.valid_steps[rows], self.returns[rows])
        return SolvingChunks(self.frame[rows], self.episode[rows], chunk, *others)


def solving_chunks(
    table: EpisodeTable, episodes: Indices, reward: RewardConfig, config: CriticConfig
) -> SolvingChunks:
    """All chunks of ``episodes`` in which the task is solved; none where it never is."""
    found = chunk_transitions(
        table_rewards(table, reward),
        table.terminated,
        table.episode_start[episodes],
        table.episode_end[episodes],
        horizon=config.horizon,
        g1=config.g1,
        g2=config.g2,
    )
    rows = found.terminated
    frame = found.start[rows]
    return SolvingChunks(
        frame,
        np.searchsorted(table.episode_start, frame, side="right") - 1,
        gather_chunks(torch.from_numpy(table.action), torch.from_numpy(frame), config.horizon),
        found.valid_steps[rows],
        found.reward[rows].astype(np.float64),
    )


def tail_errors(
    critic: FrameCritic,
    table: EpisodeTable,
    chunks: SolvingChunks,
    proposed: NDArray[np.float32] | None,
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, Estimate]:
    """Mean ``|Q - return|`` by kind of tail, as a share of the critic's support.

    Args:
        critic: Asked.
        table: The dataset; other chunks' steps come from it.
        chunks: With success inside, one at least.
        proposed: (M, N, H, A) what the policy proposes at the same frames, if it was asked.
        generator: Of the tails and the resamples.
        resamples: Of the bootstrap over episodes.

    Returns:
        By kind: ``hold``, ``steps``, ``chunks`` as in `TailConfig`, ``policy`` where it was asked,
        and ``zero``, a constant that no policy proposes.
    """
    horizon = chunks.chunk.shape[1]
    frames = torch.arange(table.num_frames)
    inside = np.repeat(table.episode_end, table.episode_lengths) - np.arange(table.num_frames)
    whole = frames[torch.from_numpy(inside >= horizon)]
    tails = Tails(torch.from_numpy(table.action), frames, whole, horizon, TailConfig())
    valid = torch.from_numpy(chunks.valid_steps)
    kinds: dict[str, Floats] = {}
    sampled = None if proposed is None else torch.from_numpy(proposed)
    for kind in ("hold", "steps", "chunks", *(("policy",) if sampled is not None else ())):
        filled = []
        for _ in range(_DRAWS):
            seeds = torch.from_numpy(generator.integers(2**62, size=len(valid)))
            tail = tails.draw(kind, chunks.chunk, valid, seeds, sampled)
            filled.append(_behind(chunks.chunk, valid, tail))
        kinds[kind] = _errors(critic, chunks, torch.stack(filled, dim=1))
    zero = _behind(chunks.chunk, valid, torch.zeros_like(chunks.chunk))
    kinds["zero"] = _errors(critic, chunks, zero.unsqueeze(1))
    return {
        kind: mean_over(error, chunks.episode, generator, resamples)
        for kind, error in kinds.items()
    }


def _behind(chunk: torch.Tensor, valid: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """The executed steps, then ``tail``: all (M, H, A), valid (M,)."""
    executed = torch.arange(chunk.shape[1]) < valid.unsqueeze(1)
    return torch.where(executed.unsqueeze(2), chunk, tail)


def _errors(critic: FrameCritic, chunks: SolvingChunks, filled: torch.Tensor) -> Floats:
    """Mean over tails of ``|Q - return|`` as a share of the support, (M,)."""
    v_min, v_max = critic.critic.config.bounds
    q = critic.scores(chunks.frame, filled.numpy())  # (M, draws)
    error: Floats = np.abs(q - chunks.returns[:, None]).mean(axis=1) / (v_max - v_min)
    return error
