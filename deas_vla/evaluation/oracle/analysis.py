"""What a critic's choices are worth, against what became of every candidate.

A decision point has N candidates and R continuations of each; the Monte-Carlo value of a candidate
is the share of its continuations that solved the task. Everything is within one state: how states
differ from each other is not asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.critic.base import Critic
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Estimate, Floats, Indices, bootstrap, mean_over
from deas_vla.evaluation.offline.metrics import spearman
from deas_vla.evaluation.oracle.branching import DecisionPoint
from deas_vla.evaluation.oracle.records import Branched
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.selection import select


@dataclass(frozen=True)
class Decisions:
    """M decision points of several episodes, scored by one critic.

    Attributes:
        episode: int64 (M,), the episode of each.
        step: int64 (M,), steps of the episode before it.
        success: bool (M, N, R).
        candidates: float32 (M, N, H, A), environment units.
        members: float32 (E, M, N), the ensemble's values.
        scale: float32 (A,), units that distances between chunks are measured in.
    """

    episode: Indices
    step: Indices
    success: NDArray[np.bool_]
    candidates: torch.Tensor
    members: torch.Tensor
    scale: torch.Tensor

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def value(self) -> Floats:
        """Monte-Carlo value of every candidate, (M, N)."""
        mean: Floats = self.success.mean(axis=2)
        return mean

    def at(self, rows: Indices) -> "Decisions":
        """Some of the decision points."""
        names = ("episode", "step", "success", "candidates")
        some = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **some, members=self.members[:, rows])

    def phases(self, count: int = 3) -> list["Decisions"]:
        """As many decision points early, in the middle and late in their episodes."""
        in_turn = np.argsort(self.step, kind="stable")
        return [self.at(rows) for rows in np.array_split(in_turn, count) if len(rows)]


@torch.inference_mode()
def score_decisions(critic: Critic, branched: Sequence[Branched]) -> Decisions:
    """Score all candidates of all decision points.

    Args:
        critic: In evaluation mode.
        branched: Episodes with the same N and R.

    Raises:
        DeasError: They are of runs with different N or R.
    """
    points: list[DecisionPoint] = [point for each in branched for point in each.points]
    shapes = sorted({point.success.shape for point in points})
    if len(shapes) > 1:
        raise DeasError(
            f"decisions of {shapes} candidates and continuations are not of one run: "
            "give each its own --output_dir"
        )
    episode = np.repeat(np.arange(len(branched)), [len(each.points) for each in branched])
    device = critic.normalizer.state_mean.device
    stacked = lambda name: torch.from_numpy(np.stack([getattr(p, name) for p in points]))  # noqa: E731
    chunks = stacked("candidates")[:, :, : critic.config.horizon]
    members = critic.member_scores(
        stacked("feature").to(device), stacked("state").to(device), chunks.to(device)
    )
    return Decisions(
        episode,
        np.array([point.step for point in points]),
        np.stack([point.success for point in points]),
        chunks,
        members.cpu(),
        critic.normalizer.action_std.cpu(),
    )


def choose(decisions: Decisions, rule: SelectionConfig, count: int, seed: int) -> Indices:
    """What ``rule`` takes among the first ``count`` candidates of every decision point, (M,)."""
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(decisions))]
    found = select(
        rule,
        decisions.candidates[:, :count],
        decisions.members[:, :, :count] if rule.asks_critic else None,
        generators,
        decisions.scale,
    )
    chosen: Indices = found.chosen.numpy()
    return chosen


def oracle_choice(
    success: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[Indices, Floats]:
    """The best candidate by half of the continuations, and its value in the other half.

    The best of noisy values is worth less than it looks; what is asked of the half that did not
    choose is unbiased. With one continuation there is no other half: the value is an upper bound.

    Args:
        success: bool (M, N, R).
        generator: Breaks ties.

    Returns:
        int64 (M,) of the first half's choice, and the mean of both halves' values (M,).
    """
    repeats = success.shape[2]
    halves = [slice(0, (repeats + 1) // 2), slice(repeats // 2, repeats)]
    row = np.arange(len(success))
    chosen, values = [], []
    for mine, other in (halves, halves[::-1]):
        judged = success[:, :, mine].mean(axis=2)
        judged = judged + 1e-6 * generator.random(judged.shape)
        chosen.append(judged.argmax(axis=1))
        values.append(success[:, :, other].mean(axis=2)[row, chosen[-1]])
    return chosen[0], np.mean(values, axis=0)


def gains(
    decisions: Decisions,
    rules: Mapping[str, SelectionConfig],
    counts: Sequence[int],
    generator: np.random.Generator,
    resamples: int,
    seed: int,
) -> dict[tuple[str, int], dict[str, Estimate]]:
    """Success of one decision by each rule at each N, followed by the base policy.

    Args:
        decisions: Scored.
        rules: By name; ``oracle`` is added, the choice of one who knows.
        counts: Values of N.
        generator: Of the oracle's ties and the resamples.
        resamples: Of the bootstrap over episodes.
        seed: Of rules that draw.

    Returns:
        For each rule and N: ``success``, ``gain`` over candidate 0 and ``regret`` to the oracle.
    """
    row, value = np.arange(len(decisions)), decisions.value
    base = value[:, 0]
    found = {}
    for count in counts:
        _, best = oracle_choice(decisions.success[:, :count], generator)
        reached = {
            name: value[row, choose(decisions, rule, count, seed)] for name, rule in rules.items()
        }
        reached["oracle"] = best
        for name, got in reached.items():
            columns = {"success": got, "gain": got - base, "regret": best - got}
            found[name, count] = {
                kind: mean_over(column, decisions.episode, generator, resamples)
                for kind, column in columns.items()
            }
    return found


def rank_agreement(
    decisions: Decisions, generator: np.random.Generator, resamples: int
) -> dict[str, Estimate]:
    """Whether Q orders the candidates of one state as what became of them does.

    Returns:
        ``concordance``: of pairs of one state that differ in Monte-Carlo value, the share that Q
        (the smallest member) orders alike, ties half: 0.5 is chance. ``rank_correlation``: mean
        of Spearman's over states in which values differ.
    """
    q, value = decisions.members.amin(0).double().numpy(), decisions.value
    shares = np.array([_concordance(*pair) for pair in zip(q, value, strict=True)])
    correlations = np.array([spearman(*pair) for pair in zip(q, value, strict=True)])
    return {
        "concordance": mean_over(shares, decisions.episode, generator, resamples),
        "rank_correlation": mean_over(correlations, decisions.episode, generator, resamples),
    }


def _concordance(q: Floats, value: Floats) -> float:
    better = value[:, None] > value[None, :]
    if not better.any():
        return float("nan")
    above = q[:, None] > q[None, :]
    tied = q[:, None] == q[None, :]
    return float((above + 0.5 * tied)[better].mean())


@dataclass(frozen=True)
class ProposedBin:
    """Proposed chunks between two quantiles of Q: how many, mean Q, share that succeeded."""

    chunks: int
    q: float
    success: Estimate


def proposed_calibration(
    decisions: Decisions, generator: np.random.Generator, resamples: int, bins: int = 8
) -> list[ProposedBin]:
    """Q of what the policy proposes against how often it then succeeds, in ascending bins of Q."""
    q = decisions.members.amin(0).double().numpy().ravel()
    value = decisions.value.ravel()
    episode = np.repeat(decisions.episode, decisions.success.shape[1])
    member = np.argsort(np.argsort(q, kind="stable")) * bins // len(q)

    def statistic(which: int) -> Callable[[Indices], Floats]:
        def share(rows: Indices) -> Floats:
            mine = rows[member[rows] == which]
            return np.array([value[mine].mean() if len(mine) else np.nan])

        return share

    return [
        ProposedBin(
            int((member == b).sum()),
            float(q[member == b].mean()),
            bootstrap(statistic(b), episode, generator, resamples)[0],
        )
        for b in range(bins)
    ]
