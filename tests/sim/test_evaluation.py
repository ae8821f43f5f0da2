"""Paired trials, outcomes and what is written of them, with a simulator made of a few lines."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.sim import results
from deas_vla.sim.env import EnvSpec, Observation, SimEnv
from deas_vla.sim.evaluation import ERROR, Worker, episode_seed, paired_trials, run_trials
from deas_vla.sim.rollout import Plan, rollout

SPEC = EnvSpec("Toy", "go", {}, ("x",), ("dx",), 10, 6, "toy")


class ToyEnv:
    """Succeeds at the step after which x passes 1.5; every fifth seed breaks the simulator."""

    spec = SPEC

    def __init__(self, breaks: bool = False) -> None:
        self.breaks = breaks

    def reset(self, seed: int) -> None:
        self.seed, self.x = seed, 0.0

    def observe(self, *, images: bool = True) -> Observation:
        return Observation({}, np.array([self.x], np.float32), "go")

    def step(self, action: NDArray[np.float32]) -> bool:
        if self.breaks and self.seed % 5 == 0:
            raise RuntimeError("simulator exploded")
        self.x += float(action[0])
        return self.x > 1.5

    def privileged(self) -> dict[str, NDArray[np.float64]]:
        return {}

    def close(self) -> None:
        pass


class ToyAgent:
    """More candidates, longer strides."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def plan(self, env: SimEnv) -> Plan:
        stride = self.rng.uniform(0, 0.4, (2, 1)) + 0.2 * (self.candidates > 1)
        return Plan(stride.astype(np.float32), {"chosen": 0, "scores": [1.0]})


def outcomes(workers: int = 1, breaks: bool = False) -> list:
    trials = paired_trials(0, 40, [1, 4])
    worker = Worker(functools.partial(ToyEnv, breaks), ToyAgent)
    found = list(run_trials(worker, trials, workers))
    return sorted(found, key=lambda outcome: outcome.episode_id)


def test_trials_are_paired_and_seeds_independent() -> None:
    trials = paired_trials(0, 50, [1, 16])
    seeds = {n: [t.seed for t in trials if t.candidates == n] for n in (1, 16)}
    assert seeds[1] == seeds[16] and len(set(seeds[1])) == 50
    assert not set(seeds[1]) & {episode_seed(1, index) for index in range(50)}


@pytest.mark.parametrize("candidates", [[], [0], [1, 1]])
def test_senseless_candidates_are_refused(candidates: list[int]) -> None:
    with pytest.raises(DeasError, match="candidates"):
        paired_trials(0, 1, candidates)


def test_success_counts_at_the_step_it_happens() -> None:
    episode = rollout(ToyEnv(), ToyAgent(4), 1)
    assert episode.success and episode.steps <= SPEC.horizon
    assert episode.actions[: episode.steps - 1].sum() <= 1.5 < episode.actions.sum()


@pytest.mark.slow
def test_worker_count_changes_nothing() -> None:
    assert outcomes(workers=1) == outcomes(workers=2)


def test_broken_episodes_are_counted_apart() -> None:
    found = outcomes(breaks=True)
    broken = [o for o in found if o.seed % 5 == 0]
    assert broken and all(o.outcome == ERROR for o in broken)
    row = next(r for r in results.success_rows(found, 0.0) if r["task"] == "all")
    assert row["errors"] + row["episodes"] == 40 and row["errors"] == len(broken) // 2


def test_rows_table_and_files(tmp_path: Path) -> None:
    found = outcomes()
    rows = results.success_rows(found, 0.0)
    assert [(r["task"], r["candidates"]) for r in rows] == [
        ("Toy", 1), ("Toy", 4), ("all", 1), ("all", 4)]  # fmt: skip
    base, best = rows[2:]
    assert base["diff_to_base"] is None
    assert best["diff_to_base"] == pytest.approx(best["success_rate"] - base["success_rate"])
    assert best["diff_ci95"][0] <= best["diff_to_base"] <= best["diff_ci95"][1]
    assert "points" in results.text_table(rows)
    results.write_figure(rows, tmp_path / "f.png")
    results.write_report("A <title>", rows, tmp_path / "f.png", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "A &lt;title&gt;" in page and page.count("<tr>") == 5 and "base64" in page
    results.write_json(tmp_path / "x.json", {"rows": rows})
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == rows
    assert not list(tmp_path.glob(".*"))
