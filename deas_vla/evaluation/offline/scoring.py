"""The critic's opinion of a dataset: Q and V at its frames, beside the returns that followed."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig, table_rewards
from deas_vla.data.transitions import monte_carlo_chunk_returns, steps_until_limit
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Floats, Indices
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.selection import pooled

_ROWS = 256  # observations scored at once


class FrameCritic:
    """A critic over the frames of a dataset.

    Args:
        critic: In evaluation mode.
        table: The dataset, in environment units.
        features: (T, F) pooled features.
    """

    def __init__(self, critic: Critic, table: EpisodeTable, features: NDArray[np.floating]) -> None:
        if len(features) != table.num_frames or features.shape[1] != critic.config.feature_dim:
            raise DeasError(
                f"features have shape {features.shape}, the critic and dataset {table.root} make "
                f"it {(table.num_frames, critic.config.feature_dim)}: extract them with the "
                "bundle's own backbone and pooling"
            )
        self.critic = critic
        self._table = table
        self._features = features
        self._device = critic.normalizer.state_mean.device

    @torch.inference_mode()
    def values(self, frames: Indices) -> Floats:
        """``V(s)`` at frames (M,), in units of return."""
        out = [self.critic.value(*self._observe(part)).cpu() for part in _parts(frames)]
        return torch.cat(out).double().numpy()

    @torch.inference_mode()
    def scores(
        self,
        frames: Indices,
        chunks: NDArray[np.float32],
        selection: SelectionConfig | None = None,
    ) -> Floats:
        """``Q(s, a)`` of chunks (M, N, H, A) in environment units at frames (M,): (M, N).

        Of an ensemble its smallest member, or what ``selection`` makes of the members.
        """
        out = []
        rule = selection or SelectionConfig()
        for at, part in zip(range(0, len(frames), _ROWS), _parts(frames), strict=True):
            actions = torch.from_numpy(chunks[at : at + _ROWS]).to(self._device)
            members = self.critic.member_scores(*self._observe(part), actions)  # (E, B, N)
            out.append(pooled(members, rule).cpu())
        return torch.cat(out).double().numpy()

    def _observe(self, frames: Indices) -> tuple[Tensor, Tensor]:
        feature = torch.from_numpy(np.asarray(self._features[frames])).float()
        state = torch.from_numpy(self._table.state[frames])
        return feature.to(self._device), state.to(self._device)


@dataclass(frozen=True)
class ScoredChunks:
    """Every chunk of H executed actions in some episodes, its value and its observed return.

    Attributes:
        frame: int64 (M,), global index of the chunk's first frame; episode after episode.
        episode: int64 (M,), episode row.
        chunk: float32 (M, H, A), environment units.
        q: (M,) ``Q`` of the chunk, in units of return.
        returns: (M,) what the episode paid from there on, in the critic's reward and discounts.
            Where a time limit ended it, the rest is the critic's own ``V`` of the last frame times
            the weight of the rest.
        terminated: bool (M,), the episode ended by success: ``returns`` is observed to the end.
    """

    frame: Indices
    episode: Indices
    chunk: NDArray[np.float32]
    q: Floats
    returns: Floats
    terminated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.frame)

    def of_episode(self, episode: int) -> "ScoredChunks":
        """The chunks of one episode, by its row."""
        rows = self.episode == episode
        return ScoredChunks(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def score_dataset_chunks(
    critic: FrameCritic,
    table: EpisodeTable,
    episodes: Indices,
    reward: RewardConfig,
    at_most: int | None = None,
) -> ScoredChunks:
    """Scores the dataset's own chunks in ``episodes``, or ``at_most`` of them, evenly spaced.

    Chunks that the episode's end cuts are left out: a candidate at rollout time is never cut.
    Returns are those of `monte_carlo_chunk_returns`, ``value + remaining * V(s_last)``.

    Raises:
        DeasError: No whole chunk, or returns that the critic's support does not contain.
    """
    config = critic.critic.config
    observed = monte_carlo_chunk_returns(
        table_rewards(table, reward),
        table.terminated,
        table.episode_start[episodes],
        table.episode_end[episodes],
        horizon=config.horizon,
        g1=config.g1,
        g2=config.g2,
    )
    _check_support(observed.value, config)
    left = steps_until_limit(table.terminated, table.episode_start, table.episode_end)
    whole = np.flatnonzero(left[observed.start] >= config.horizon)
    if len(whole) == 0:
        raise DeasError(
            f"no evaluated episode of dataset {table.root} holds a chunk of {config.horizon} "
            "steps: evaluate longer ones"
        )
    if at_most is not None and len(whole) > at_most:
        whole = whole[np.linspace(0, len(whole) - 1, at_most).astype(np.int64)]
    frame, last, remaining = observed.start[whole], observed.last[whole], observed.remaining[whole]
    chunk = table.action[frame[:, None] + np.arange(config.horizon)]
    return ScoredChunks(
        frame=frame,
        episode=np.searchsorted(table.episode_start, frame, side="right") - 1,
        chunk=chunk,
        q=critic.scores(frame, chunk[:, None])[:, 0],
        returns=observed.value[whole] + remaining * critic.values(last),
        terminated=remaining == 0,
    )


def _check_support(returns: NDArray[np.float32], config: CriticConfig) -> None:
    v_min, v_max = config.bounds
    low, high = float(returns.min()), float(returns.max())
    if low < v_min or high > v_max:
        raise DeasError(
            f"the critic's support [{v_min:.3g}, {v_max:.3g}] does not contain the returns "
            f"[{low:.3g}, {high:.3g}] of these episodes: train it on their reward"
        )


def values_along(
    critic: FrameCritic, table: EpisodeTable, episodes: Indices, fractions: Floats
) -> Floats:
    """``V`` at fractions of each episode elapsed: (E, K), in units of return.

    Fraction 0 is the first observation, 1 the one before the last action that counts: the action
    that succeeded, or the last before the time limit.
    """
    left = steps_until_limit(table.terminated, table.episode_start, table.episode_end)
    start = table.episode_start[episodes]
    frames = start[:, None] + np.rint(fractions * (left[start] - 1)[:, None]).astype(np.int64)
    return critic.values(frames.ravel()).reshape(frames.shape)


def _parts(frames: Indices) -> list[Indices]:
    return [frames[at : at + _ROWS] for at in range(0, len(frames), _ROWS)]
