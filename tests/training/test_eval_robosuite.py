"""eval/robosuite.py on a real bundle in the real simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_cases import ROOT, load_script, recipe

from deas_vla.cli import parse
from deas_vla.errors import DeasError


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
    for name in ("success.png", "report.html", "episode.mp4"):
        assert (tmp_path / "one" / name).stat().st_size > 1000
    # Two processes give the same episodes as one.
    evaluate_as_script(*flags, "--workers=2", "--video=false", f"--output_dir={tmp_path / 'two'}")
    assert (tmp_path / "two/episodes.jsonl").read_text() == "\n".join(lines) + "\n"


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="is no bundle"):
        evaluate(f"--bundle={tmp_path}")


def test_candidates_without_a_critic_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    base = recipe(tiny_dataset, tmp_path / "base", "--stages=[features]", "--policy.steps=0")
    with pytest.raises(DeasError, match="has no critic but --candidates asks for 16"):
        evaluate(f"--bundle={base}", "--episodes=1")
