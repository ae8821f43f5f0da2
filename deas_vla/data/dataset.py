"""Critic batches: chunk transitions over cached features, drawn by index on the training device."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.critic.batch import ChunkBatch
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.transitions import ChunkTransitions, steps_until_limit
from deas_vla.errors import DeasError


class TransitionDataset:
    """`M` chunk transitions as index arithmetic over per-frame arrays.

    States, actions and transition indices live on `device`, and so do the features if they fit;
    otherwise features stay memory-mapped and only a batch's rows travel. Nothing is copied per
    transition, and there are no worker processes: a batch is a few index operations.

    Args:
        table: the episodes.
        features: (T, F) float16, one row per frame of the table, memory-mapped or not.
        transitions: of any subset of the table's episodes.
        horizon: critic chunk length `H`.
        device: where batches are made.
        resident: whether features move to the device; None decides by free memory.
        next_actions: also gather the dataset's chunk at `s'` (for EVOR's target).
        candidates: (T, N, H, A) policy samples at each frame, memory-mapped or not; those at `s'`
            are gathered (for QC's target).

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
        fits = features.nbytes <= _free_bytes(self.device) // 2
        self.resident = fits if resident is None else resident
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
        self._step = torch.arange(horizon, device=self.device)
        self._candidates = candidates
        self._next_steps = None
        if next_actions:
            left = steps_until_limit(table.terminated, table.episode_start, table.episode_end)
            self._next_steps = self._tensor(np.minimum(left[transitions.next], horizon))

    def __len__(self) -> int:
        return len(self._start)

    def batch(self, indices: Tensor) -> ChunkBatch:
        """Gathers transitions.

        Args:
            indices: int64 (B,), each in 0..M-1, on any device.

        Returns:
            float32 fields on `device`, states and actions in the table's units.
        """
        indices = indices.to(self.device)
        start, following = self._start[indices], self._next[indices]  # (B,)
        actions, valid = self._chunks(start, self._valid_steps[indices])
        next_actions, next_valid = None, None
        if self._next_steps is not None:
            next_actions, next_valid = self._chunks(following, self._next_steps[indices])
        next_candidates = None
        if self._candidates is not None:
            rows = torch.from_numpy(self._candidates[following.cpu().numpy()])
            next_candidates = rows.to(self.device).float()
        feature, next_feature = self._features_of(torch.cat([start, following])).chunk(2)
        return ChunkBatch(
            feature=feature,
            state=self._state[start],
            actions=actions,
            action_valid=valid,
            reward=self._reward[indices],
            bootstrap=self._bootstrap[indices],
            terminated=self._terminated[indices],
            next_feature=next_feature,
            next_state=self._state[following],
            next_actions=next_actions,
            next_action_valid=next_valid,
            next_candidates=next_candidates,
        )

    def batches(self, draws: Iterable[Tensor]) -> Iterator[ChunkBatch]:
        """One batch for each draw of indices; reads ahead by one where features are mapped."""
        if self.resident:
            yield from map(self.batch, draws)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = None
            for indices in draws:
                current, ahead = ahead, reader.submit(self.batch, indices)
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def _chunks(self, start: Tensor, valid_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Zero-filled chunks (B, H, A) and their validity (B, H); as `gather_actions`."""
        valid = self._step < valid_steps.unsqueeze(1)
        frames = (start.unsqueeze(1) + self._step).clamp_(max=len(self._action) - 1)
        return self._action[frames].masked_fill_(~valid.unsqueeze(2), 0.0), valid

    def _features_of(self, frames: Tensor) -> Tensor:
        """Features of some frames as float32 (B, F)."""
        if self._features is not None:
            return self._features[frames].float()
        rows = torch.from_numpy(self._mapped[frames.cpu().numpy()])
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True).float()

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.device)  # a copy: maps are read-only


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
