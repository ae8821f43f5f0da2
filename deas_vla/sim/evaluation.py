"""Paired evaluation: every number of candidates sees the same episodes."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deas_vla.errors import DeasError
from deas_vla.sim.env import SimEnv
from deas_vla.sim.rollout import Agent, Episode, rollout

SUCCESS, TIMEOUT, ERROR = "success", "time limit", "error"


@dataclass(frozen=True)
class Trial:
    """One episode to run: the same ``seed`` means the same initial state and noise."""

    index: int
    seed: int
    candidates: int


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
        q_chosen: Critic value of the chosen chunk at each decision; empty for N = 1.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Worker:
    """How a process builds what it needs: both callables must be importable by name.

    Attributes:
        make_env: The simulator.
        make_agent: The policy with ``candidates`` chunks per decision.
    """

    make_env: Callable[[], SimEnv]
    make_agent: Callable[[int], Agent]


def paired_trials(seed: int, episodes: int, candidates: list[int]) -> list[Trial]:
    """All trials of an evaluation: episodes x candidates, seeds independent between ``seed``s.

    Raises:
        DeasError: No episodes, or candidates that are not positive and distinct.
    """
    if episodes < 1:
        raise DeasError(f"episodes {episodes}: use 1 or more")
    if not candidates or min(candidates) < 1 or len(set(candidates)) < len(candidates):
        raise DeasError(
            f"candidates {candidates}: use distinct numbers of 1 or more, such as [1,16]"
        )
    seeds = [episode_seed(seed, index) for index in range(episodes)]
    pairs = itertools.product(enumerate(seeds), candidates)
    return [Trial(index, episode, n) for (index, episode), n in pairs]


def episode_seed(seed: int, index: int) -> int:
    """Seed of one episode: no two evaluation seeds share episodes."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)[0]) >> 1


def run_trials(worker: Worker, trials: list[Trial], workers: int) -> Iterator[Outcome]:
    """Yield outcomes as they finish; the same trials give the same outcomes for any ``workers``."""
    if workers == 1:
        _start(worker, threads=None)
        yield from map(_run, trials)
        return
    spawn = multiprocessing.get_context("spawn")  # a forked GL context is unusable
    with spawn.Pool(workers, _start, (worker, 1)) as pool:
        yield from pool.imap_unordered(_run, trials)


_process: dict[str, Any] = {}  # the simulator and agents of this worker process


def _start(worker: Worker, threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    _process.clear()
    _process.update(worker=worker, env=worker.make_env(), agents={})


def _run(trial: Trial) -> Outcome:
    agents = _process["agents"]
    if trial.candidates not in agents:
        agents[trial.candidates] = _process["worker"].make_agent(trial.candidates)
    agent = agents[trial.candidates]
    try:
        return outcome_of(rollout(_process["env"], agent, trial.seed), trial, _process["env"])
    except DeasError:
        raise
    except Exception:  # a simulator that fails once gets a fresh one and a second chance
        _process["env"].close()
        _process["env"] = _process["worker"].make_env()
    try:
        return outcome_of(rollout(_process["env"], agent, trial.seed), trial, _process["env"])
    except DeasError:
        raise
    except Exception:
        return outcome_of(None, trial, _process["env"])


def outcome_of(episode: Episode | None, trial: Trial, env: SimEnv) -> Outcome:
    """The line that stands for an episode; ``None`` for one that the simulator could not run."""
    task = env.spec.name
    infos = [info for _, info in episode.plans] if episode else []
    return Outcome(
        episode_id=f"{task}-{trial.seed}-{trial.candidates}",
        task=task,
        seed=trial.seed,
        candidates=trial.candidates,
        success=bool(episode and episode.success),
        steps=episode.steps if episode else 0,
        outcome=ERROR if episode is None else SUCCESS if episode.success else TIMEOUT,
        plans=len(infos),
        q_chosen=[info["scores"][info["chosen"]] for info in infos if "scores" in info],
    )
