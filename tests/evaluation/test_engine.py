"""Paired trials and the processes that run them, with a simulator made of a few lines."""

import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import pytest
from sim_cases import ToyEnv, ToyMaker, ToyPlanner

from deas_vla.envs.rollout import Plan, rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.trials import (
    ERROR,
    Outcome,
    episode_seed,
    paired_trials,
    run_trials,
)
from deas_vla.evaluation.engine.workers import SimulatorPool


def outcomes(
    scratch: Path, task: str = "Toy", workers: int = 1, batch_size: int = 1, episodes: int = 12
) -> list[Outcome]:
    trials = paired_trials([task], [0], episodes, [1, 4], per_task=False)
    planner = ToyPlanner(batch_size)
    with SimulatorPool(workers, ToyMaker(scratch), planner) as pool:
        found = list(run_trials(pool, trials))
    assert len(found) == len(trials)
    if batch_size > 1 and workers > 1:
        assert max(planner.calls) > 1  # they were decided together
    return sorted(found, key=lambda outcome: outcome.episode_id)


def anywhere(found: list[Outcome]) -> list[tuple]:
    """Everything about outcomes but the task's name."""
    return sorted((o.seed, o.candidates, o.success, o.steps, o.plans, o.q_chosen) for o in found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    found = outcomes(tmp_path_factory.mktemp("undisturbed"))
    assert {o.success for o in found} == {True, False}  # else the comparisons below say little
    return found


def test_trials_are_paired_and_seeds_and_tasks_independent() -> None:
    trials = paired_trials(["A", "B"], [0, 1], 50, [1, 16])
    seeds = {
        (task, seed, n): [
            t.seed for t in trials if (t.task, t.evaluation_seed, t.candidates) == (task, seed, n)
        ]
        for task in "AB"
        for seed in (0, 1)
        for n in (1, 16)
    }
    for task in "AB":
        for seed in (0, 1):
            assert seeds[task, seed, 1] == seeds[task, seed, 16]
    distinct = {s for (_, _, n), values in seeds.items() if n == 1 for s in values}
    assert len(distinct) == 200


def test_more_episodes_contain_the_fewer() -> None:
    few, many = (paired_trials(["A"], [3], k, [1, 2]) for k in (5, 9))
    assert many[: len(few)] == few


def test_seeds_stay_what_they_were() -> None:
    assert [episode_seed(2, index) for index in range(2)] == [1417063493, 153813223]


@pytest.mark.parametrize("candidates", [[], [0], [1, 1]])
def test_senseless_candidates_are_refused(candidates: list[int]) -> None:
    with pytest.raises(DeasError, match="candidates"):
        paired_trials(["A"], [0], 1, candidates)


@pytest.mark.parametrize("seeds", [[], [-1], [2, 2]])
def test_senseless_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(DeasError, match="seeds"):
        paired_trials(["A"], seeds, 1, [1])


def test_success_counts_at_the_step_it_happens(tmp_path: Path) -> None:
    class Agent:
        def reset(self, seed: int) -> None:
            pass

        def plan(self, env: ToyEnv) -> Plan:
            return Plan(np.full((4, 1), 0.6, np.float32))

    episode = rollout(ToyEnv("Toy", tmp_path), Agent(), 1)
    assert episode.success and episode.steps == 3 and len(episode.plans) == 1
    assert episode.instruction == "go from 1"


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 1), (3, 4)])
def test_workers_and_batches_change_nothing(
    tmp_path: Path, undisturbed: list[Outcome], workers: int, batch_size: int
) -> None:
    assert outcomes(tmp_path, workers=workers, batch_size=batch_size) == undisturbed


def test_a_simulator_that_raises_once_gets_a_second_chance(
    tmp_path: Path, undisturbed: list[Outcome]
) -> None:
    assert anywhere(outcomes(tmp_path, "BreaksOnce")) == anywhere(undisturbed)
    assert (tmp_path / "BreaksOnce").exists()


@pytest.mark.parametrize(("workers", "pause"), [(2, 0.0), (4, 0.1)])  # alone; others speak, too
def test_a_killed_worker_is_replaced_and_its_episode_run_again(
    tmp_path: Path,
    undisturbed: list[Outcome],
    workers: int,
    pause: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late(connections: list[Connection], timeout: float | None) -> list[object]:
        time.sleep(pause)
        return wait(connections, timeout)

    monkeypatch.setattr("deas_vla.evaluation.engine.workers.wait", late)
    assert anywhere(outcomes(tmp_path, "DiesOnce", workers=workers)) == anywhere(undisturbed)
    assert (tmp_path / "DiesOnce").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Breaks", "RuntimeError: simulator exploded"),
        ("Dies", "simulator process died with exit code -9"),
    ],
)
def test_broken_episodes_are_told_apart_and_none_is_dropped(
    tmp_path: Path, undisturbed: list[Outcome], task: str, message: str
) -> None:
    found = outcomes(tmp_path, task, episodes=3)
    broken = [o for o in found if o.seed % 5 == 0]
    assert broken and all(o.outcome == ERROR and o.error == message for o in broken)
    seeds = {o.seed for o in found if o.seed % 5 != 0}
    whole = [o for o in undisturbed if o.seed in seeds]
    assert anywhere([o for o in found if o.seed in seeds]) == anywhere(whole)


def test_a_users_mistake_ends_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="asset 'mug' is missing"):
        outcomes(tmp_path, "Refuses", workers=2)


class MissingMaker(ToyMaker):
    """Kills every worker before its first step."""

    def __call__(self, task: str) -> ToyEnv:
        import os

        os._exit(3)


def test_workers_that_all_die_end_the_evaluation(tmp_path: Path) -> None:
    trials = paired_trials(["Toy"], [0], 8, [1])
    with (
        SimulatorPool(2, MissingMaker(tmp_path), ToyPlanner()) as pool,
        pytest.raises(DeasError, match=r"8 simulator processes in a row died .*exit code 3"),
    ):
        list(run_trials(pool, trials))


def test_workers_close_their_simulators_at_the_end(tmp_path: Path) -> None:
    """A renderer that only the interpreter's end finds leaves EGL's errors on the screen."""
    outcomes(tmp_path, "Closes", workers=2, episodes=4)
    assert len(list(tmp_path.glob("closed.*"))) == 2


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="workers 0"):
        SimulatorPool(0, ToyMaker(tmp_path), ToyPlanner())


def test_simulator_processes_import_no_policy() -> None:
    modules = [
        "engine.workers",
        "engine.trials",
        "engine.journal",
        "results.report",
        "results.films",
        "recording",
        "kitchens",
    ]
    code = (
        f"import sys, {', '.join(f'deas_vla.evaluation.{name}' for name in modules)}\n"
        "assert not {'torch', 'lerobot', 'accelerate', 'robocasa', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
