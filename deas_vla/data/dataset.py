"""Critic batches: chunk transitions over cached features, drawn by index on the training device."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.critic.batch import ChunkBatch
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.tails import TailConfig, Tails
from deas_vla.data.transitions import ChunkTransitions, gather_chunks, steps_until_limit
from deas_vla.errors import DeasError

_BLOCK_BYTES = 2**26  # of an array on its way to the device


@dataclass(frozen=True)
class Draw:
    """Which transitions make a batch, and what fixes the rest of them.

    Attributes:
        rows: int64 (B,), transitions.
        seeds: int64 (B,), of each row's tail; not negative.
    """

    rows: Tensor
    seeds: Tensor


class TransitionDataset:
    """`M` chunk transitions as index arithmetic over per-frame arrays.

    States, actions and transition indices live on `device`, and so do the features of a GPU if they
    fit; otherwise features stay memory-mapped and only a batch's rows travel. Of a CPU they stay
    mapped where they are: their pages are the host's memory already. Nothing is copied per
    transition, and there are no worker processes: a batch is a few index operations. Steps after a
    chunk's last executed one are drawn from `Tails`.

    Args:
        table: the episodes.
        features: (T, F) float16, one row per frame of the table, memory-mapped or not.
        transitions: of any subset of the table's episodes.
        horizon: critic chunk length `H`.
        device: where batches are made.
        resident: whether features move to the device; None decides by free memory.
        next_actions: also gather the dataset's chunk at `s'` (for EVOR's target).
        candidates: (T, N, H, A) policy samples at each frame, memory-mapped or not; those at `s'`
            are gathered (for QC's target), and those at `s` are one kind of tail.
        tails: what stands in a chunk after the step that ended its episode.
        member_weights: (E, episodes) from `bootstrap_episodes`, where each member of the ensemble
            has episodes of its own.

    Raises:
        DeasError: no transitions, or features or candidates of another number of frames.
    """

    def __init__(
        self,
        table: EpisodeTable,
        features: NDArray[np.float16],
        transitions: ChunkTransitions,
        horizon: int,
        *,
        device: torch.device | str = "cpu",
        resident: bool | None = None,
        next_actions: bool = False,
        candidates: NDArray[np.floating] | None = None,
        tails: TailConfig | None = None,
        member_weights: NDArray[np.floating] | None = None,
    ) -> None:
        for name, rows in (("features", features), ("candidates", candidates)):
            if rows is not None and len(rows) != table.num_frames:
                raise DeasError(
                    f"{name} have {len(rows)} rows, dataset {table.repo_id} has "
                    f"{table.num_frames} frames: extract {name} of this dataset"
                )
        if len(transitions) == 0:
            raise DeasError(
                f"dataset {table.repo_id} has no chunk of {horizon} steps: shorten the critic's "
                "chunk or record longer episodes"
            )
        self.device = torch.device(device)
        self.horizon = horizon
        self.resident = self._fits(features) if resident is None else resident
        self._mapped = features
        self._features = self._tensor(features) if self.resident else None
        self._state = self._tensor(table.state)
        self._action = self._tensor(table.action)
        self._start = self._tensor(transitions.start)
        self._next = self._tensor(transitions.next)
        self._reward = self._tensor(transitions.reward)
        self._bootstrap = self._tensor(transitions.bootstrap)
        self._terminated = self._tensor(transitions.terminated)
        self._valid_steps = self._tensor(transitions.valid_steps)
        self._candidates = candidates
        whole = self._start[self._valid_steps == horizon]
        tails = tails or TailConfig()
        self._tails = Tails(self._action, self._start, whole, horizon, tails)
        self._member_weights, self._episode = None, None
        if member_weights is not None:
            self._member_weights = self._tensor(member_weights.T.astype(np.float32))
            row = np.searchsorted(table.episode_start, transitions.start, side="right") - 1
            self._episode = self._tensor(row)
        self._next_steps = None
        if next_actions:
            left = steps_until_limit(table.terminated, table.episode_start, table.episode_end)
            self._next_steps = self._tensor(np.minimum(left[transitions.next], horizon))

    def __len__(self) -> int:
        return len(self._start)

    def batch(self, draw: Draw) -> ChunkBatch:
        """Gathers transitions.

        Args:
            draw: B rows, each in 0..M-1, and the seeds of their tails, on any device.

        Returns:
            float32 fields on `device`, states and actions in the table's units.
        """
        indices, seeds = draw.rows.to(self.device), draw.seeds.to(self.device)
        start, following = self._start[indices], self._next[indices]  # (B,)
        proposed, next_candidates = self._proposed(start), self._proposed(following)
        chunks = gather_chunks(self._action, start, self.horizon)
        actions = self._tails.fill(chunks, self._valid_steps[indices], seeds, proposed)
        next_actions = None
        if self._next_steps is not None:
            chunks = gather_chunks(self._action, following, self.horizon)
            # A terminated row's next chunk is its own: whole or cut, it is never read.
            steps = self._next_steps[indices].clamp(min=1)
            next_actions = self._tails.fill(chunks, steps, ~seeds, next_candidates)
        feature, next_feature = self._features_of(torch.cat([start, following])).chunk(2)
        return ChunkBatch(
            feature=feature,
            state=self._state[start],
            actions=actions,
            reward=self._reward[indices],
            bootstrap=self._bootstrap[indices],
            terminated=self._terminated[indices],
            next_feature=next_feature,
            next_state=self._state[following],
            next_actions=next_actions,
            next_candidates=next_candidates,
            member_weight=self._weights(indices),
        )

    def batches(self, draws: Iterable[Draw]) -> Iterator[ChunkBatch]:
        """One batch for each draw of rows; reads ahead by one where features are mapped."""
        if self.resident:
            yield from map(self.batch, draws)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = None
            for draw in draws:
                current, ahead = ahead, reader.submit(self.batch, draw)
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def _proposed(self, frames: Tensor) -> Tensor | None:
        """Policy samples at frames (B,): float32 (B, N, H, A), if there are any."""
        if self._candidates is None:
            return None
        rows = torch.from_numpy(self._candidates[frames.cpu().numpy()])
        return rows.to(self.device).float()

    def _weights(self, indices: Tensor) -> Tensor | None:
        """How often each member's bootstrap holds the transitions' episodes, (B, E)."""
        if self._member_weights is None or self._episode is None:
            return None
        return self._member_weights[self._episode[indices]]

    def _features_of(self, frames: Tensor) -> Tensor:
        """Features of some frames as float32 (B, F)."""
        if self._features is not None:
            return self._features[frames].float()
        rows = torch.from_numpy(self._mapped[frames.cpu().numpy()])
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True).float()

    def _fits(self, features: NDArray[np.float16]) -> bool:
        if self.device.type != "cuda":
            return type(features) is np.ndarray  # in memory, and no map of a file
        return features.nbytes <= torch.cuda.mem_get_info(self.device)[0] // 2

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        """An array on the device: the same memory where it may be, else copied block by block."""
        if self.device.type == "cpu" and type(values) is np.ndarray and values.flags.writeable:
            return torch.from_numpy(values)
        dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
        found = torch.empty(values.shape, dtype=dtype, device=self.device)
        rows = max(1, _BLOCK_BYTES * len(values) // max(1, values.nbytes))
        for at in range(0, len(values), rows):
            block = np.array(values[at : at + rows])  # a copy of it: maps are read-only
            found[at : at + rows] = torch.from_numpy(block)
        return found


def bootstrap_episodes(
    members: int, episodes: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """How often each member's bootstrap sample holds each episode (Efron and Tibshirani 1993).

    Members disagree about what only some of them have seen, and not where all were trained on the
    same batches.

    Args:
        members: E.
        episodes: Rows of the episodes that are trained on.
        count: Episodes of the table.
        generator: Of the draws, with replacement.

    Returns:
        (E, count); 0 for other episodes, 1 on average over ``episodes``.
    """
    weights = np.zeros((members, count), dtype=np.float32)
    for member in range(members):
        drawn = generator.choice(episodes, size=len(episodes))
        weights[member] = np.bincount(drawn, minlength=count)
    return weights
