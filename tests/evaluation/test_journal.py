"""What a killed evaluation leaves, what it goes on with, and how processes share one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sim_cases import ToyMaker, ToyPlanner

from deas_vla.critic.config import InferenceConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.journal import (
    Journal,
    claim,
    finished,
    identity,
    merge,
    run_missing,
    running_rates,
)
from deas_vla.evaluation.engine.trials import ERROR, Outcome, paired_trials
from deas_vla.evaluation.engine.workers import SimulatorPool
from deas_vla.guidance.configuration_guided import ValueGuidedConfig
from deas_vla.policies.config import VLAConfig

SCRIPT = Path(__file__).with_name("toy_evaluation.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
}


@dataclass
class ToyConfig:
    task: str = "Toy"
    horizon: int = 9


def outcome(seed: int, candidates: int = 1, **fields: object) -> Outcome:
    known = {"success": True, "steps": 3, "outcome": "success", "plans": 2, "q_chosen": []}
    return Outcome(f"Toy-{seed}-{candidates}", "Toy", seed, candidates, **{**known, **fields})


def run_toy(directory: Path, episodes: int) -> list[int]:
    """Sizes of the planner's calls."""
    trials = paired_trials(["Toy"], [0], episodes, [1, 4])
    planner = ToyPlanner()
    with SimulatorPool(1, ToyMaker(directory), planner) as pool:
        run_missing(pool, trials, directory)
    merge(directory, trials)
    return planner.calls


def test_what_makes_episodes_comparable() -> None:
    """Each of these changes what the policy does, and so the run that would go on."""
    vla = VLAConfig(path="base", embodiment="robosuite_panda", denoising_steps=4)

    def known(vla: VLAConfig = vla, **inference: float) -> dict[str, object]:
        policy: Any = SimpleNamespace(
            revision=lambda: "digest",
            config=ValueGuidedConfig(vla=vla),
            critic=SimpleNamespace(inference=InferenceConfig(**inference)),
        )
        return identity(policy, ToyConfig())

    assert known() == known()
    changed = {
        "policy.denoising_steps": known(replace(vla, denoising_steps=8)),
        "policy.embodiment": known(replace(vla, embodiment="panda_omron")),
        "critic.inference.eta": known(eta=0.5),
    }
    for name, other in changed.items():
        assert {key for key in known() if known()[key] != other[key]} == {name}


def test_a_second_run_does_only_what_is_missing(tmp_path: Path) -> None:
    assert run_toy(tmp_path, 3)
    whole = (tmp_path / "episodes.jsonl").read_text()
    assert run_toy(tmp_path, 3) == [] and (tmp_path / "episodes.jsonl").read_text() == whole
    lines = whole.splitlines(keepends=True)
    (tmp_path / "episodes.jsonl").write_text("".join(lines[:2] + lines[3:5]) + lines[5][:20])
    calls = run_toy(tmp_path, 3)
    assert len(calls) == sum(json.loads(line)["plans"] for line in (lines[2], lines[5]))
    assert (tmp_path / "episodes.jsonl").read_text() == whole


def test_a_torn_line_is_passed_over_and_replaced(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(outcome(1))
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"episode_id": "Toy-2-1", "ta')
    assert set(finished(tmp_path)) == {"Toy-1-1"}
    with Journal(tmp_path) as journal:
        journal.append(outcome(3))
    assert set(finished(tmp_path)) == {"Toy-1-1", "Toy-3-1"}
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 2


def test_another_configuration_is_refused_by_field(tmp_path: Path) -> None:
    identity = {"temperature": 0.0, "policy_revision": "a", "env.split": "target"}
    claim(tmp_path, identity)
    claim(tmp_path, identity)
    with pytest.raises(DeasError) as error:
        claim(tmp_path, identity | {"temperature": 1.0, "env.split": "all"})
    message = str(error.value)
    assert "temperature was 0.0 and is 1.0" in message and "env.split was 'target'" in message
    assert "policy_revision" not in message and "another --output_dir" in message


def test_episodes_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text("{}\n")
    with pytest.raises(DeasError, match=r"no run\.json"):
        claim(tmp_path, {})


def test_processes_join_their_files(tmp_path: Path) -> None:
    trials = paired_trials(["Toy"], [0], 2, [1])
    for rank, trial in enumerate(trials):
        with Journal(tmp_path, rank) as journal:
            journal.append(outcome(trial.seed))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episodes.1.jsonl", "episodes.jsonl"]
    assert [o.seed for o in merge(tmp_path, trials)] == [trial.seed for trial in trials]
    assert [p.name for p in tmp_path.iterdir()] == ["episodes.jsonl"]
    with pytest.raises(DeasError, match="1 episodes are missing"):
        merge(tmp_path, paired_trials(["Toy"], [0], 3, [1]))


def test_the_bar_shows_rates_and_errors() -> None:
    found = [outcome(1), outcome(2, success=False), outcome(1, 16), outcome(2, 16, outcome=ERROR)]
    assert running_rates(found) == "N=1 1/2 (50 %), N=16 1/1 (100 %), 1 errors"


def lines(directory: Path) -> set[str]:
    return set((directory / "episodes.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_kill_9_loses_no_finished_episode_and_leaves_no_worker(tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        return [sys.executable, str(SCRIPT), str(output), "Slow", "6", "2"]

    subprocess.run(command(tmp_path / "whole"), env=ENVIRONMENT, check=True)
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(cut), env=ENVIRONMENT)
    children: list[int] = []
    while len(finished(cut)) < 3:
        assert process.poll() is None
        children = children_of(process.pid) or children
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = lines(cut)
    assert len(before) >= 3 and children
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(child) for child in children)
    subprocess.run(command(cut), env=ENVIRONMENT, check=True)
    assert before <= lines(cut) == lines(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_one_evaluation(tmp_path: Path) -> None:
    # accelerate's launcher starts one process on a CPU, whatever it is asked for.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    both, one = tmp_path / "both", tmp_path / "one"
    command = [*launch, str(SCRIPT), str(both), "Toy", "5", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    assert "joining episodes.1.jsonl episodes.jsonl" in done.stdout
    subprocess.run([sys.executable, SCRIPT, one, "Toy", "5", "1"], env=ENVIRONMENT, check=True)
    assert (both / "episodes.jsonl").read_text() == (one / "episodes.jsonl").read_text()
    assert len(lines(both)) == 10 and not list(both.glob("episodes.*.jsonl"))


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)  # signal 0: asks only
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
