"""Offline evaluation: what a critic says on episodes that it was not trained on.

Everything here is arithmetic over per-frame arrays and critic calls; ``eval/critic.py`` is the
command. Intervals are percentile bootstraps over whole episodes (Efron and Tibshirani 1993, chapter
13), because the chunks of one episode are anything but independent.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import Normalizer, compute_statistics
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig
from deas_vla.data.transitions import monte_carlo_chunk_returns, steps_until_limit
from deas_vla.errors import DeasError
from deas_vla.training.critic_data import rewards

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_ROWS = 256  # observations scored at once


# ---- which episodes ------------------------------------------------------------------------------


def episode_digests(table: EpisodeTable, episodes: Indices) -> list[str]:
    """What tells an episode from all others, wherever it is copied to: one short hash for each.

    Over states, actions and success flags, so that neither a new name, nor a new number, nor newly
    encoded videos hide an episode that was trained on. For ``bundle.json``.
    """
    digests = []
    for episode in episodes:
        frames = table.frames(int(episode))
        digest = hashlib.sha256()
        for column in (table.state, table.action, table.success):
            digest.update(np.ascontiguousarray(column[frames]))
        digests.append(digest.hexdigest()[:16])
    return digests


def held_out_episodes(
    manifest: Mapping[str, Any], table: EpisodeTable, chosen: Sequence[int] | None = None
) -> Indices:
    """Episode rows to evaluate a bundle on, none of which it was trained on.

    Args:
        manifest: ``bundle.json``.
        table: The training dataset, or another one entirely.
        chosen: Values of ``episode_index``; when None, the bundle's held-out episodes of its own
            dataset, and all of another.

    Raises:
        DeasError: Overlap with training, an unknown episode, or nothing that was held out.
    """
    data = manifest["data"]
    own = data["fingerprint"] == table.fingerprint
    allowed = set(data["held_out_episodes"]) if own else set(table.episode_ids.tolist())
    wanted = sorted(allowed if chosen is None else set(chosen))
    rows = {int(episode): row for row, episode in enumerate(table.episode_ids)}
    for episode in wanted:
        if episode not in rows:
            raise DeasError(f"episode {episode} is not in dataset {table.root}: choose another")
        if episode not in allowed:
            raise DeasError(
                f"episode {episode} of dataset {table.root} was trained on: "
                f"choose --episodes among the held-out {sorted(allowed)}"
            )
    if not wanted:
        raise DeasError(
            "the bundle held no episode out: train with --dataset.holdout above 0, or evaluate "
            "on another dataset"
        )
    found = np.array([rows[episode] for episode in wanted], dtype=np.int64)
    if not own:
        _refuse_trained(data, table, found)
    return found


def _refuse_trained(data: Mapping[str, Any], table: EpisodeTable, episodes: Indices) -> None:
    """DeasError where another dataset holds copies of episodes that the bundle was trained on."""
    if "trained_episode_digests" not in data:
        raise DeasError(
            f"dataset {table.root} is not the one of the bundle ({data['repo_id']}, fingerprint "
            f"{data['fingerprint'][:12]}), and the bundle does not say which episodes it was "
            "trained on: run the recipe again"
        )
    trained = set(data["trained_episode_digests"])
    digests = episode_digests(table, episodes)
    copies = [
        int(e) for e, d in zip(table.episode_ids[episodes], digests, strict=True) if d in trained
    ]
    if copies:
        raise DeasError(
            f"dataset {table.root} is neither the bundle's (fingerprint {table.fingerprint[:12]}, "
            f"not {data['fingerprint'][:12]}) nor another one: {len(copies)} of its episodes were "
            f"trained on (first: {copies[0]}); leave them out with --episodes"
        )


def check_same_critic(manifest: Mapping[str, Any], critic: CriticConfig) -> None:
    """DeasError where ``bundle.json`` describes the training of another critic than this one.

    The reward convention stands in the manifest alone, so the two must belong together.
    """
    trained = manifest["config"]["critic"]
    for name in ("algorithm", "horizon", "g1", "g2", "expectile"):
        if trained[name] != getattr(critic, name):
            raise DeasError(
                f"bundle.json says critic.{name} = {trained[name]}, critic/ has "
                f"{getattr(critic, name)}: train both in one run"
            )


def check_statistics(normalizer: Normalizer, table: EpisodeTable, trained: Indices) -> None:
    """DeasError where the critic normalises by statistics of other episodes than ``trained``."""
    frames = table.frames_of(trained)
    state, action = (torch.from_numpy(rows[frames]) for rows in (table.state, table.action))
    expected = compute_statistics(torch.zeros(len(frames), 0), state, action)
    for name in ("state_mean", "state_std", "action_mean", "action_std"):
        have, want = getattr(normalizer, name).cpu(), getattr(expected, name)
        if not torch.allclose(have, want, rtol=1e-3, atol=1e-5):
            at = int((have - want).abs().argmax())
            raise DeasError(
                f"the critic has statistics of another dataset: {name}[{at}] is {have[at]:.4g}, "
                f"the episodes that bundle.json says it was trained on make it {want[at]:.4g}; "
                "train policy and critic of a bundle in one run"
            )


# ---- the critic's opinion ------------------------------------------------------------------------


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
    def scores(self, frames: Indices, chunks: NDArray[np.float32]) -> Floats:
        """``Q(s, a)`` of chunks (M, N, H, A) in environment units at frames (M,): (M, N)."""
        out = []
        for at, part in zip(range(0, len(frames), _ROWS), _parts(frames), strict=True):
            actions = torch.from_numpy(chunks[at : at + _ROWS]).to(self._device)
            out.append(self.critic.score(*self._observe(part), actions).cpu())
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
    critic: FrameCritic, table: EpisodeTable, episodes: Indices, reward: RewardConfig
) -> ScoredChunks:
    """Scores the dataset's own chunks in ``episodes``.

    Chunks that the episode's end cuts are left out: a candidate at rollout time is never cut.
    Returns are those of `monte_carlo_chunk_returns`, ``value + remaining * V(s_last)``.

    Raises:
        DeasError: No whole chunk, or returns that the critic's support does not contain.
    """
    config = critic.critic.config
    observed = monte_carlo_chunk_returns(
        rewards(table, reward),
        table.terminated,
        table.episode_start[episodes],
        table.episode_end[episodes],
        horizon=config.horizon,
        g1=config.g1,
        g2=config.g2,
    )
    _check_support(observed.value, config)
    left = steps_until_limit(table.terminated, table.episode_start, table.episode_end)
    whole = left[observed.start] >= config.horizon
    if not whole.any():
        raise DeasError(
            f"no evaluated episode of dataset {table.root} holds a chunk of {config.horizon} "
            "steps: evaluate longer ones"
        )
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


# ---- intervals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where the episodes do not define it."""

    value: float
    low: float
    high: float

    def row(self, metric: str) -> dict[str, Any]:
        """One row of ``results.json``."""
        return {
            "metric": metric,
            "value": _json(self.value),
            "ci95": [_json(self.low), _json(self.high)],
        }


def bootstrap(
    statistic: Callable[[Indices], Floats],
    episode: Indices,
    generator: np.random.Generator,
    resamples: int,
) -> list[Estimate]:
    """95 % percentile intervals by resampling whole episodes with replacement.

    Args:
        statistic: From row indices, repeats allowed, to (K,) numbers. NaN where those rows do not
            define one; such resamples do not count.
        episode: (M,) the episode of each row.
        generator: Of the resamples.
        resamples: How many.

    Returns:
        K estimates; the values are the statistic of all rows.
    """
    groups = [np.flatnonzero(episode == e) for e in np.unique(episode)]
    value = statistic(np.arange(len(episode)))
    draws = np.stack(
        [
            statistic(
                np.concatenate(
                    [groups[k] for k in generator.integers(len(groups), size=len(groups))]
                )
            )
            for _ in range(resamples)
        ]
    )  # (resamples, K)
    return [
        Estimate(float(v), *_percentiles(column[np.isfinite(column)]))
        for v, column in zip(value, draws.T, strict=True)
    ]


def _percentiles(draws: Floats) -> tuple[float, float]:
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---- calibration and overestimation --------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationBin:
    """Chunks between two quantiles of Q.

    Attributes:
        chunks: How many.
        q: Mean Q.
        returns: Mean return.
        overestimation: Mean of Q minus return.
    """

    chunks: int
    q: Estimate
    returns: Estimate
    overestimation: Estimate


@dataclass(frozen=True)
class Calibration:
    """Q against the returns that followed, in units of return.

    Attributes:
        error: Expected calibration error, ``sum_b n_b/n |mean Q - mean return|`` over bins of
            equally many chunks (Naeini et al. 2015, for values instead of probabilities).
        rank_correlation: Spearman's, of Q and return over chunks.
        overestimation: Mean of Q minus return.
        bins: In ascending order of Q.
    """

    error: Estimate
    rank_correlation: Estimate
    overestimation: Estimate
    bins: list[CalibrationBin]


def calibration(
    q: Floats,
    returns: Floats,
    episode: Indices,
    generator: np.random.Generator,
    resamples: int,
    bins: int = 10,
) -> Calibration:
    """Compare values (M,) with returns (M,) of chunks in episodes (M,), all bins with intervals.

    Bins are cut at the quantiles of all chunks and stay there in every resample.
    """
    bins = min(bins, len(q))
    member = (rankdata(q, method="ordinal") - 1).astype(np.int64) * bins // len(q)

    def statistic(rows: Indices) -> Floats:
        count = np.bincount(member[rows], minlength=bins)
        with np.errstate(invalid="ignore"):  # a bin that a resample leaves empty is NaN
            mean_q = np.bincount(member[rows], q[rows], bins) / count
            mean_return = np.bincount(member[rows], returns[rows], bins) / count
        gap = mean_q - mean_return
        error = np.nansum(count * np.abs(gap)) / len(rows)
        over = float((q[rows] - returns[rows]).mean())
        correlation = spearman(q[rows], returns[rows])
        return np.concatenate([[error, correlation, over], mean_q, mean_return, gap])

    found = bootstrap(statistic, episode, generator, resamples)
    error, correlation, over, *rest = found
    return Calibration(
        error,
        correlation,
        over,
        [CalibrationBin(int((member == b).sum()), *rest[b::bins]) for b in range(bins)],
    )


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of (M,) and (M,); NaN where one of them is constant."""
    ranks = np.stack([rankdata(x), rankdata(y)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1).prod())
    return float(ranks.prod(axis=0).sum() / norm) if norm > 0 else float("nan")


# ---- success against failure ---------------------------------------------------------------------


def separation(
    values: Floats, success: NDArray[np.bool_], generator: np.random.Generator, resamples: int
) -> list[Estimate]:
    """AUC of V between successful and failed episodes, at each fraction of the episode elapsed.

    Args:
        values: (E, K) from `values_along`.
        success: bool (E,).
        generator: Of the resamples.
        resamples: How many.

    Returns:
        K estimates in 0..1, 0.5 for a V that cannot tell; NaN without both outcomes.
    """

    def statistic(rows: Indices) -> Floats:
        solved = rows[success[rows]], rows[~success[rows]]
        return np.array([auc(*(column[part] for part in solved)) for column in values.T])

    return bootstrap(statistic, np.arange(len(success)), generator, resamples)


def auc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive (P,) is above a negative (N,), ties half (Mann-Whitney U)."""
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    u = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(u / (len(positive) * len(negative)))


# ---- ranking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rivals:
    """Chunks that compete with the dataset's own at the same observation.

    Attributes:
        row: int64 (R,), which of the `ScoredChunks`.
        chunk: float32 (R, H, A), environment units. A row may have several rivals, or none.
    """

    row: Indices
    chunk: NDArray[np.float32]


def chunks_of_other_episodes(
    chunks: ScoredChunks, generator: np.random.Generator, count: int = 8
) -> Rivals:
    """``count`` chunks for each row, drawn from all chunks of the other episodes.

    Raises:
        DeasError: Fewer than two episodes.
    """
    _, first, size = np.unique(chunks.episode, return_index=True, return_counts=True)
    if len(first) < 2:
        raise DeasError("ranking against another episode needs two episodes: evaluate more")
    # Rows are ordered by episode: drawing among the others is drawing around one block.
    group = np.repeat(np.arange(len(first)), size)
    row = np.repeat(np.arange(len(chunks)), count)
    own_first, own_size = first[group[row]], size[group[row]]
    donor = generator.integers(len(chunks) - own_size)
    donor += own_size * (donor >= own_first)
    return Rivals(row, chunks.chunk[donor])


def time_shifted_chunks(chunks: ScoredChunks) -> Rivals:
    """The chunks H steps earlier and later in the same episode, where they exist."""
    horizon = chunks.chunk.shape[1]
    rows, donors = [], []
    for shift in (-horizon, horizon):
        donor = np.searchsorted(chunks.frame, chunks.frame + shift).clip(max=len(chunks) - 1)
        there = chunks.frame[donor] == chunks.frame + shift
        there &= chunks.episode[donor] == chunks.episode
        rows.append(np.flatnonzero(there))
        donors.append(donor[there])
    return Rivals(np.concatenate(rows), chunks.chunk[np.concatenate(donors)])


def noised_chunks(
    chunks: ScoredChunks,
    level: float,
    scale: NDArray[np.float32],
    generator: np.random.Generator,
    count: int = 4,
) -> Rivals:
    """The chunk itself with Gaussian noise of ``level`` times ``scale`` (A,) in every step.

    Clipped to the range of each action dimension in these chunks, so that noise is not told by
    values that no chunk has.
    """
    row = np.repeat(np.arange(len(chunks)), count)
    own = chunks.chunk[row]
    noise = level * scale * generator.standard_normal(own.shape, dtype=np.float32)
    low, high = (f(chunks.chunk, axis=(0, 1)) for f in (np.min, np.max))
    return Rivals(row, np.clip(own + noise, low, high).astype(np.float32))


def win_rate(critic: FrameCritic, chunks: ScoredChunks, rivals: Rivals) -> Floats:
    """Share of its rivals that each dataset chunk scores above, ties half: (M,), or NaN."""
    score = critic.scores(chunks.frame[rivals.row], rivals.chunk[:, None])[:, 0]
    own = chunks.q[rivals.row]
    won = (own > score) + 0.5 * (own == score)
    with np.errstate(invalid="ignore"):
        total = np.bincount(rivals.row, won, len(chunks))
        rate: Floats = total / np.bincount(rivals.row, minlength=len(chunks))
    return rate


def mean_over(
    values: Floats, episode: Indices, generator: np.random.Generator, resamples: int
) -> Estimate:
    """Mean of the rows (M,) that are not NaN, with its interval over episodes."""
    known = np.isfinite(values)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    values = values[known]
    return bootstrap(
        lambda rows: values[rows].mean(keepdims=True), episode[known], generator, resamples
    )[0]


def _parts(frames: Indices) -> list[Indices]:
    return [frames[at : at + _ROWS] for at in range(0, len(frames), _ROWS)]
