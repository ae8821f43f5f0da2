"""Paired evaluation: every number of candidates sees the same episodes."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deas_vla.envs.env import EnvSpec
from deas_vla.envs.rollout import Episode
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.smoothness import jerk
from deas_vla.evaluation.engine.workers import Finished, Job, RunEpisode, SimulatorPool, Trial

SUCCESS, TIMEOUT, ERROR = "success", "time limit", "error"


@dataclass(frozen=True)
class Outcome:
    """One line of ``episodes.jsonl``.

    Attributes:
        episode_id: ``<task>-<seed>-<candidates>``.
        task: Task name.
        seed: Episode seed.
        candidates: N.
        success: Whether the task counted as solved after any step.
        steps: Steps run.
        outcome: ``success``, ``time limit`` or ``error`` (the simulator failed twice).
        plans: Number of decisions.
        not_finite: Decisions at which a score was not finite, so that candidate 0 was kept.
        q_chosen: Critic value of the chosen chunk at each decision; empty for N = 1.
        evaluation_seed: The set of episodes that this one belongs to.
        instruction: What the policy was told; empty where the simulator failed.
        error: Why the simulator failed; empty where it did not.
        jerk_at_seams: RMS second difference of the actions where chunks meet; see `jerk`.
        jerk_within: Elsewhere.
    """

    episode_id: str
    task: str
    seed: int
    candidates: int
    success: bool
    steps: int
    outcome: str
    plans: int
    q_chosen: list[float]
    evaluation_seed: int = 0
    instruction: str = ""
    error: str = ""
    not_finite: int = 0
    jerk_at_seams: float | None = None
    jerk_within: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired_trials(
    tasks: Sequence[str],
    seeds: Sequence[int],
    episodes: int,
    candidates: Sequence[int],
    *,
    per_task: bool = True,
) -> list[Trial]:
    """All trials of an evaluation: tasks x seeds x episodes x candidates, pairs side by side.

    Args:
        tasks: Names.
        seeds: Evaluation seeds; no two share an episode or a noise stream.
        episodes: Of each task and seed.
        candidates: Values of N, each over the same episodes.
        per_task: Whether every task has episode seeds of its own, so that a pool of tasks holds
            independent episodes.

    Raises:
        DeasError: No episodes, or values that are not distinct or not positive.
    """
    if episodes < 1:
        raise DeasError(f"episodes {episodes}: use 1 or more")
    if not candidates or min(candidates) < 1 or len(set(candidates)) < len(candidates):
        raise DeasError(
            f"candidates {list(candidates)}: use distinct numbers of 1 or more, such as [1,16]"
        )
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise DeasError(f"seeds {list(seeds)}: use distinct numbers of 0 or more, such as [0,1,2]")
    return [
        Trial(task, episode_seed(seed, index, task if per_task else ""), n, seed)
        for task in tasks
        for seed in seeds
        for index in range(episodes)
        for n in candidates
    ]


def episode_seed(seed: int, index: int, task: str = "") -> int:
    """Seed of one episode: no two evaluation seeds, and no two named tasks, share episodes."""
    entropy = (seed, index, zlib.crc32(task.encode())) if task else (seed, index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0]) >> 1


def outcome_of(trial: Trial, episode: Episode, spec: EnvSpec) -> Outcome:
    """The line that stands for an episode."""
    infos = [info for _, info in episode.plans]
    at_seams, within = jerk(episode.actions, [step for step, _ in episode.plans])
    return Outcome(
        episode_id=trial.episode_id,
        task=trial.task,
        seed=trial.seed,
        candidates=trial.candidates,
        success=episode.success,
        steps=episode.steps,
        outcome=SUCCESS if episode.success else TIMEOUT,
        plans=len(infos),
        q_chosen=[info["scores"][info["chosen"]] for info in infos if "scores" in info],
        evaluation_seed=trial.evaluation_seed,
        instruction=episode.instruction,
        not_finite=sum("not_finite" in info for info in infos),
        jerk_at_seams=at_seams,
        jerk_within=within,
    )


Deliver = Callable[[Trial, Episode, EnvSpec], Outcome]


def run_trials(
    pool: SimulatorPool,
    trials: Iterable[Trial],
    deliver: Deliver = outcome_of,
    record: Callable[[int], bool] | None = None,
) -> Iterator[Outcome]:
    """Yield outcomes as they finish; the same for any number of workers.

    Args:
        pool: Simulators.
        trials: Episodes to run.
        deliver: What becomes of an episode in its worker.
        record: Which steps it keeps pictures of, as in `RunEpisode`.
    """
    work = RunEpisode(deliver, record)
    for end in pool.run([Job(trial, work) for trial in trials]):
        yield outcome_or_error(end)


def outcome_or_error(end: Finished[Outcome]) -> Outcome:
    """An episode's line, also where the simulator could not run it."""
    if end.result is not None:
        return end.result
    trial = end.trial
    return Outcome(
        episode_id=trial.episode_id,
        task=trial.task,
        seed=trial.seed,
        candidates=trial.candidates,
        success=False,
        steps=0,
        outcome=ERROR,
        plans=0,
        q_chosen=[],
        evaluation_seed=trial.evaluation_seed,
        error=end.error or "",
    )
