"""What is written of an evaluation's outcomes."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sim_cases import ToyMaker, ToyPlanner

from deas_vla.evaluation.engine.trials import ERROR, Outcome, paired_trials, run_trials
from deas_vla.evaluation.engine.workers import SimulatorPool
from deas_vla.evaluation.results.films import film, worth_seeing
from deas_vla.evaluation.results.report import write_all
from deas_vla.evaluation.results.statistics import mcnemar, paired_difference
from deas_vla.evaluation.results.tables import success_rows, text_table


@dataclass
class Config:
    tasks: str = "two"


def outcomes() -> list[Outcome]:
    """Two tasks of 20 episodes; the guided policy fails once where the base policy does not."""
    found = []
    for task, base, guided in (("A", 8, 13), ("B", 4, 18)):
        for seed in range(20):
            for n, solved in ((1, seed < base), (4, 0 < seed <= guided)):
                end = "success" if solved else "time limit"
                name = f"{task}-{seed}-{n}"
                q = [] if n == 1 else [0.5]
                found.append(Outcome(name, task, seed, n, solved, 5, end, 1, q, 0, "go"))
    return found


def test_rows_have_paired_statistics_by_task_and_pooled() -> None:
    rows = {(r["task"], r["candidates"]): r for r in success_rows(outcomes(), 0.5)}
    assert set(rows) == {(task, n) for task in ("A", "B", "all") for n in (1, 4)}
    assert rows["A", 1]["successes"] == 8 and rows["A", 1]["mcnemar_p"] is None
    base = [seed < 8 for seed in range(20)]
    guided = [0 < seed <= 13 for seed in range(20)]
    assert rows["A", 4]["diff_to_base"] == pytest.approx(5 / 20)
    assert rows["A", 4]["diff_ci95"] == list(paired_difference(guided, base)[1])
    assert rows["A", 4]["mcnemar_p"] == mcnemar(guided, base)
    assert rows["all", 4]["episodes"] == 40 and rows["all", 4]["mcnemar_p"] < 0.01
    assert rows["all", 4]["temperature"] == 0.5


def test_pairs_with_an_error_are_left_out_of_the_difference_alone() -> None:
    found = outcomes()
    found[0] = replace(found[0], outcome=ERROR, success=False)  # seed 0 of A, N = 1: lost by N = 4
    rows = {(r["task"], r["candidates"]): r for r in success_rows(found, 0.0)}
    assert (rows["A", 1]["episodes"], rows["A", 1]["errors"]) == (19, 1)
    assert (rows["A", 4]["episodes"], rows["A", 4]["errors"]) == (20, 0)
    assert rows["A", 4]["diff_to_base"] == pytest.approx((13 - 7) / 19)


def test_everything_is_written_and_the_report_opens_alone(tmp_path: Path) -> None:
    found = [*outcomes(), replace(outcomes()[0], episode_id="A-99-1", seed=99, outcome=ERROR,
                                  success=False, error="it <broke>")]  # fmt: skip
    (tmp_path / "videos").mkdir()
    clip = tmp_path / "videos/A-1-4.mp4"
    clip.write_bytes(b"film")
    record = write_all(
        "A <title>",
        Config(),
        {"selection": {"temperature": 0.0}, "policy_revision": "abc"},
        found,
        [(clip, found[3], True)],
        tmp_path,
        0.0,
    )
    assert json.loads((tmp_path / "results.json").read_text()) == record
    assert record["config"] == {"tasks": "two"} and record["versions"] and record["machine"]
    assert record["errors"] == [["A-99-1", "it <broke>"]]
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page and "it &lt;broke&gt;" in page and "McNemar" in page
    assert page.count("data:image/png;base64") == 2 and page.count("data:video/mp4;base64") == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (tmp_path / "success.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))
    table = text_table(record["rows"])
    assert "| A | 4 | 20 | 0 | 65 % |" in table and len(table.splitlines()) == 2 + len(
        record["rows"]
    )


def test_films_are_the_same_episodes(tmp_path: Path) -> None:
    import av

    trials = paired_trials(["Toy"], [0], 6, [1, 4])
    with SimulatorPool(1, ToyMaker(tmp_path), ToyPlanner()) as pool:
        found = list(run_trials(pool, trials))
        films = film(pool, found, tmp_path / "videos", each=1)
    assert {outcome.success for _, outcome, _ in films} == {True, False}
    assert all(same and outcome in found for _, outcome, same in films)
    for file, outcome, _ in films:
        with av.open(str(file)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == outcome.steps + 10  # the end stands for a second
        assert np.ptp(frames[0][-60:].astype(int)) > 100  # text below the pictures


def test_films_show_what_the_critic_changed() -> None:
    shown = worth_seeing(outcomes(), each=1)
    assert [o.candidates for o in shown] == [4] * 4
    assert [(o.task, o.seed) for o in shown] == [("A", 8), ("A", 0), ("B", 4), ("B", 0)]
    assert worth_seeing(outcomes(), each=0) == []
