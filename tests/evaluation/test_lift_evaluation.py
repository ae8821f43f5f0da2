"""eval/robosuite.py on a real bundle in the real simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recipe_cases import CAMERAS, ROOT, load_script, recipe

from deas_vla.bundle import open_bundle
from deas_vla.cli import parse
from deas_vla.data.episodes import load_episodes
from deas_vla.envs.env import Observation
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.agents import PolicyPlanner, observation_batch
from deas_vla.evaluation.engine.planning import Look


def evaluate(*flags: str) -> None:
    """In this process; with several workers it must run as a script of its own."""
    script = load_script("eval/robosuite.py")
    script.main(parse(script.EvalConfig, list(flags)))


def evaluate_as_script(*flags: str) -> str:
    """Returns what it printed."""
    run = subprocess.run(
        [sys.executable, ROOT / "eval/robosuite.py", *flags],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return run.stdout


@pytest.mark.slow
def test_evaluation_leaves_everything_behind(bundle: Path, tmp_path: Path) -> None:
    flags = [f"--bundle={bundle}", "--candidates=[1,2]", "--episodes=2", "--seed=3"]
    flags += ["--batch_size=2"]
    printed = evaluate_as_script(*flags, "--workers=1", f"--output_dir={tmp_path / 'one'}")
    assert "| Lift | 2 | 2 |" in printed
    record = json.loads((tmp_path / "one/results.json").read_text())
    assert record["config"]["episodes"] == 2 and record["versions"] and record["machine"]
    assert record["wall_seconds"] > 0
    rows = {(row["task"], row["candidates"]): row for row in record["rows"]}
    assert rows["all", 2]["episodes"] == 2 and rows["all", 1]["diff_to_base"] is None
    lines = (tmp_path / "one/episodes.jsonl").read_text().splitlines()
    episodes = [json.loads(line) for line in lines]
    assert [e["candidates"] for e in episodes] == [1, 2, 1, 2]
    assert episodes[0]["seed"] == episodes[1]["seed"] != episodes[2]["seed"]
    for name in ("success.png", "paired.png", "report.html"):
        assert (tmp_path / "one" / name).stat().st_size > 1000
    # What was filmed anew is what was evaluated.
    assert record["videos"] and all(video["same_outcome"] for video in record["videos"])
    assert all((tmp_path / "one" / v["file"]).stat().st_size > 1000 for v in record["videos"])
    # Two simulators whose looks are decided together give the same episodes as one.
    evaluate_as_script(*flags, "--workers=2", "--video=false", f"--output_dir={tmp_path / 'two'}")
    assert (tmp_path / "two/episodes.jsonl").read_text() == "\n".join(lines) + "\n"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_plan_does_not_depend_on_its_company(bundle: Path, batch_size: int) -> None:
    planner = PolicyPlanner(open_bundle(bundle), batch_size)
    rng = np.random.default_rng(0)
    looks = [
        Look(
            Observation(
                {key: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for key in CAMERAS},
                rng.normal(size=9).astype(np.float32),
                "lift the red cube",
            ),
            seed=k,
            plan=k % 2,
            candidates=4,
        )
        for k in range(batch_size)
    ]
    together = planner.plan(looks)
    for look, plan in zip(looks, together, strict=True):
        (alone,) = planner.plan([look])
        assert np.array_equal(alone.actions, plan.actions) and alone.info == plan.info


def test_the_planner_decides_as_the_policy_does(bundle: Path) -> None:
    policy = open_bundle(bundle)
    policy.config.candidates = 4
    images = {key: np.full((64, 64, 3), 80, np.uint8) for key in CAMERAS}
    look = Observation(images, np.zeros(9, np.float32), "lift the red cube")
    policy.reset([7])
    planner = PolicyPlanner(policy, 1)
    for plan in range(2):
        chunk = policy.predict_action_chunk(observation_batch([look]))
        (planned,) = planner.plan([Look(look, seed=7, plan=plan, candidates=4)])
        assert np.array_equal(planned.actions, chunk[0].numpy())
        assert planned.info["chosen"] == int(policy.last_decision.chosen)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="is no bundle"):
        evaluate(f"--bundle={tmp_path}")


def test_candidates_without_a_critic_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    base = recipe(tiny_dataset, tmp_path / "base", "--stages=[features]", "--policy.steps=0")
    with pytest.raises(DeasError, match="candidates 16 without a critic"):
        evaluate(f"--bundle={base}", "--episodes=1")


@pytest.mark.slow
def test_candidates_are_branched_and_asked_about_again(bundle: Path, tmp_path: Path) -> None:
    script = load_script("eval/candidates.py")

    def main(*flags: str) -> dict:
        output = tmp_path / flags[0].rpartition("=")[2]
        more = [f"--bundle={bundle}", f"--output_dir={output}", "--resamples=20", *flags[1:]]
        script.main(parse(script.CandidatesConfig, more))
        return json.loads((output / "results.json").read_text())

    few = ["--candidates=2", "--episodes=1", "--repeats=1", "--stride=6", "--points=2"]
    first = main("name=run", *few, "--workers=1")
    decisions = first["data"]["decisions"]
    assert first["data"] | {"decisions": 2} == {
        "episodes": 1,
        "decisions": 2,
        "candidates": 2,
        "repeats": 1,
    }
    assert 1 <= decisions <= 2
    kept = next((tmp_path / "run" / "decisions").glob("*.npz")).stat().st_mtime_ns
    metrics = {row["metric"] for row in first["rows"]}
    assert {"within_state.concordance", "gain.best.2", "regret.uniform.2"} <= metrics
    assert {"success.oracle.2", "proposed.success.bin_1_of_8"} <= metrics
    for name in ("gains.png", "proposed.png", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    assert main("name=run", *few, "--workers=1")["rows"] == first["rows"]
    again = main("name=again", f"--decisions={tmp_path / 'run'}")
    assert again["rows"] == first["rows"]
    assert next((tmp_path / "run" / "decisions").glob("*.npz")).stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--candidates=1", r"candidates 1: use 2 or more"),
        ("--budget=100", r"above the budget of 100: use"),
        ("--repeats=0", r"repeats 0"),
    ],
)
def test_branching_that_makes_no_sense_is_refused(flag: str, message: str) -> None:
    script = load_script("eval/candidates.py")
    with pytest.raises(DeasError, match=message):
        script.main(parse(script.CandidatesConfig, [flag]))


@pytest.mark.slow
def test_rollouts_on_lift_are_collected(bundle: Path, tmp_path: Path) -> None:
    script = load_script("recipes/collect_rollouts.py")
    flags = [f"--bundle={bundle}", "--tasks=[Lift]", "--episodes=1", "--candidates=[1,2]"]
    flags += ["--workers=1", "--guidance.warm_every=2", f"--output_dir={tmp_path / 'rollouts'}"]
    script.main(parse(script.CollectConfig, flags))
    identity = json.loads((tmp_path / "rollouts" / "run.json").read_text())
    assert identity["guidance.warm_every"] == 2
    table = load_episodes("local/rollouts", tmp_path / "rollouts" / "dataset")
    assert table.num_episodes == 2 and table.action.shape[1] == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"Lift wants --bundle=DIR"),
        (["--bundle=somewhere", "--horizon=90"], r"--horizon is for RoboCasa's kitchens"),
        (["--bundle=somewhere", "--split=target"], r"--split is for RoboCasa's kitchens"),
        (["--bundle=somewhere", "--policy.path=moved"], r"--policy is for RoboCasa's kitchens"),
    ],
)
def test_what_collecting_on_lift_would_leave_unread_is_refused(
    more: list[str], message: str
) -> None:
    script = load_script("recipes/collect_rollouts.py")
    with pytest.raises(DeasError, match=message):
        script.main(parse(script.CollectConfig, ["--tasks=[Lift]", *more]))
