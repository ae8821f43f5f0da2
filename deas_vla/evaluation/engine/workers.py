"""Simulator processes that feed one planner in this process.

A worker rolls an episode out and asks for a chunk whenever it needs one; the planner decides for
those that wait together. Workers are spawned, because a forked GL context is unusable, and import
no policy. One that dies is replaced and its episode run again.
"""

import contextlib
import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import EnvSpec, SimEnv
from deas_vla.envs.rollout import Episode, Plan, rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.planning import Look, Planner

_TRIES = 2  # of an episode that the simulator raises in
_DEATHS = 3  # of workers under one episode
_DEATHS_IN_A_ROW = 8  # with no episode finished in between
_PATIENCE = 0.02  # seconds that a look waits for company, where the planner takes several


@dataclass(frozen=True)
class Trial:
    """One episode to run.

    Attributes:
        task: Name that the environment's maker knows.
        seed: Fixes scene, objects, initial state and the candidates' noise: trials of the same
            task and seed are paired.
        candidates: N.
        evaluation_seed: The set of episodes that this one belongs to.
    """

    task: str
    seed: int
    candidates: int
    evaluation_seed: int = 0

    @property
    def episode_id(self) -> str:
        return f"{self.task}-{self.seed}-{self.candidates}"


@dataclass(frozen=True)
class Job[Result]:
    """A trial and what is done with it.

    Attributes:
        trial: The episode.
        work: Makes the result in the worker, from its simulator and an agent that asks the
            planner; picklable.
    """

    trial: Trial
    work: Callable[[SimEnv, "RemoteAgent", Trial], Result]


@dataclass(frozen=True)
class RunEpisode[Result]:
    """The work of most jobs: one rollout, and what becomes of it.

    Attributes:
        deliver: Makes the result; importable by name.
        record: As ``record_images`` of `rollout`: which steps the episode keeps pictures of;
            importable by name.
    """

    deliver: Callable[[Trial, Episode, EnvSpec], Result]
    record: Callable[[int], bool] | None = None

    def __call__(self, env: SimEnv, agent: "RemoteAgent", trial: Trial) -> Result:
        episode = rollout(env, agent, trial.seed, record_images=self.record)
        try:
            return self.deliver(trial, episode, env.spec)
        except OSError as error:  # a full disk is no fault of the simulator
            raise DeasError(str(error)) from error


def every_step(step: int) -> bool:
    """A ``record`` that films all of an episode."""
    return True


@dataclass(frozen=True)
class Finished[Result]:
    """A trial that has come to its end.

    Attributes:
        trial: As in the job.
        result: What ``deliver`` made; None where the simulator failed.
        error: Why it failed; None where it did not.
    """

    trial: Trial
    result: Result | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Broken:
    """A worker's word that its simulator raised."""

    message: str


@dataclass(frozen=True)
class _Refused:
    """A worker's word that no episode can work: a mistake of the user."""

    message: str


@dataclass(frozen=True)
class _Died:
    """What stands for the word of a worker that is no more."""

    message: str


class _MainIsGone(Exception):
    """The process that this worker works for has ended."""


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Job[Any] | None = None
    look: Look | None = None
    since: float = 0.0  # when the look came, seconds


class SimulatorPool:
    """``workers`` simulator processes around one planner; a context manager.

    Results depend on the trials and the planner alone, not on the number of workers.

    Args:
        workers: Processes; they start with the first job.
        make_env: Builds a task's simulator; importable by name. A worker keeps one at a time.
        planner: Decides; it lives in this process.

    Raises:
        DeasError: No worker.
    """

    def __init__(self, workers: int, make_env: Callable[[str], SimEnv], planner: Planner) -> None:
        if workers < 1:
            raise DeasError(f"workers {workers}: use 1 or more")
        self._size = workers
        self._make_env = make_env
        self._planner = planner
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._deaths_in_a_row = 0

    def run[Result](self, jobs: Iterable[Job[Result]]) -> Iterator[Finished[Result]]:
        """Yield every job's end, as they come.

        An episode in which the simulator raises gets a fresh simulator and a second chance; one
        whose worker dies is run again by a new worker, three times at most.

        Raises:
            DeasError: A mistake that no episode could work with, or workers that die one after
                another.
        """
        queue = deque(jobs)
        failures: Counter[tuple[Trial, type]] = Counter()
        while self._assign(queue):
            # By connection: the dead leave the list of workers while it is gone through.
            workers = {worker.connection: worker for worker in self._workers}
            for ready in wait(list(workers), self._time_left()):
                worker = workers[ready]  # type: ignore[index]
                job = worker.job
                message = self._receive(worker)
                if isinstance(message, Finished):
                    yield message
                elif isinstance(message, _Broken | _Died) and job is not None:
                    failures[job.trial, type(message)] += 1
                    tries = _TRIES if isinstance(message, _Broken) else _DEATHS
                    if failures[job.trial, type(message)] < tries:
                        queue.appendleft(job)
                    else:
                        yield Finished(job.trial, error=message.message)
            if self._time_left() == 0:
                self._plan()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
        for worker in self._workers:
            # One in the middle of an episode would listen only at its end.
            worker.process.join(timeout=0 if worker.job else 5)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
            worker.connection.close()
        self._workers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._make_env), daemon=True)
        process.start()
        there.close()  # so that a worker's death ends the pipe
        return _Worker(process, here)

    def _assign(self, queue: deque[Job[Any]]) -> bool:
        """Give idle workers their jobs; whether anything is left to wait for."""
        idle = [worker for worker in self._workers if worker.job is None]
        while queue and (idle or len(self._workers) < self._size):
            if not idle:
                idle.append(self._spawn())
                self._workers.append(idle[-1])
            worker = idle.pop()
            worker.job = queue.popleft()
            with contextlib.suppress(OSError):  # a dead one is found where it is listened to
                worker.connection.send(worker.job)
        return any(worker.job for worker in self._workers)

    def _receive(self, worker: _Worker) -> object:
        """What a worker has to say; a dead one is replaced."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            message = self._bury(worker)
        if isinstance(message, _Refused):
            raise DeasError(message.message)
        if isinstance(message, Look):
            worker.look, worker.since = message, time.monotonic()
        else:
            worker.job = worker.look = None
        if isinstance(message, Finished):
            self._deaths_in_a_row = 0
        return message

    def _bury(self, worker: _Worker) -> _Died:
        worker.process.join()
        worker.connection.close()
        code = worker.process.exitcode
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= _DEATHS_IN_A_ROW:
            raise DeasError(
                f"{self._deaths_in_a_row} simulator processes in a row died (the last with exit "
                f"code {code}): free memory, use fewer --workers, or run one task with --workers=1 "
                "and read what it prints"
            )
        self._workers.remove(worker)
        return _Died(f"simulator process died with exit code {code}")

    def _group(self) -> list[_Worker]:
        """Those whose looks go into the next call, the longest waiting first."""
        waiting = sorted((w for w in self._workers if w.look), key=lambda w: w.since)
        if not waiting:
            return []
        same = [w for w in waiting if _candidates(w) == _candidates(waiting[0])]
        return same[: self._planner.batch_size]

    def _time_left(self) -> float | None:
        """Seconds until the next call must be made; None while no look waits."""
        group = self._group()
        if not group:
            return None
        full = len(group) == self._planner.batch_size
        if full or all(w.look for w in self._workers if w.job):
            return 0.0
        return max(0.0, group[0].since + _PATIENCE - time.monotonic())

    def _plan(self) -> None:
        group = self._group()
        plans = self._planner.plan([w.look for w in group if w.look])
        for worker, plan in zip(group, plans, strict=True):
            worker.look = None
            with contextlib.suppress(OSError):
                worker.connection.send(plan)


def _candidates(worker: _Worker) -> int:
    return worker.look.candidates if worker.look else 0


# ---- in the worker ------------------------------------------------------------------------------


class RemoteAgent:
    """Asks the main process for its plans."""

    def __init__(self, connection: Connection, candidates: int) -> None:
        self._connection = connection
        self._candidates = candidates

    def reset(self, seed: int) -> None:
        self._seed, self._plans = seed, 0
        self._rest: NDArray[np.float32] | None = None

    def plan(self, env: SimEnv) -> Plan:
        look = Look(env.observe(), self._seed, self._plans, self._candidates, rest=self._rest)
        self._plans += 1
        plan = self.ask(look)
        self._rest = plan.rest
        return plan

    def ask(self, look: Look) -> Plan:
        """The planner's answer to any look."""
        try:
            self._connection.send(look)
            plan: Plan = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _MainIsGone from error
        return plan


class _Desk:
    """One worker's simulator and its jobs."""

    def __init__(self, connection: Connection, make_env: Callable[[str], SimEnv]) -> None:
        self._connection = connection
        self._make_env = make_env
        self._env: SimEnv | None = None
        self._task = ""

    def handle(self, job: Job[Any]) -> Finished[Any] | _Broken | _Refused:
        agent = RemoteAgent(self._connection, job.trial.candidates)
        try:
            env = self._simulator(job.trial.task)
            return Finished(job.trial, job.work(env, agent, job.trial))
        except _MainIsGone:
            raise
        except DeasError as error:
            return _Refused(str(error))
        except Exception as error:
            self.close()
            return _Broken(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _simulator(self, task: str) -> SimEnv:
        if self._env is None or task != self._task:
            self.close()
            self._env, self._task = self._make_env(task), task
        return self._env

    def close(self) -> None:
        """End the simulator, so that no renderer is left to an interpreter that is going."""
        if self._env is not None:
            with contextlib.suppress(Exception):  # it may be what broke
                self._env.close()
        self._env = None


def _serve(connection: Connection, make_env: Callable[[str], SimEnv]) -> None:
    """A worker's life: jobs until None or until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's
    desk = _Desk(connection, make_env)
    with contextlib.suppress(_MainIsGone, EOFError, OSError):
        while (job := connection.recv()) is not None:
            connection.send(desk.handle(job))
    desk.close()
