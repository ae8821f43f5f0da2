"""Rounds of improvement as one table and one figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deas_vla.evaluation.results.figures import figure
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page
from deas_vla.files import write_json


def round_rows(output: Path, rounds: int, episodes: int, candidates: int) -> list[dict[str, Any]]:
    """Rows of success tables with the round and the rollouts that its critic has seen.

    Args:
        output: Holds ``round-<k>/eval/results.json`` for k in 0..rounds.
        rounds: Rounds that were run.
        episodes: Collected in each.
        candidates: N of the guided policy.
    """
    rows = []
    for number in range(rounds + 1):
        file = output / f"round-{number}" / "eval" / "results.json"
        found = json.loads(file.read_text(encoding="utf-8"))["rows"]
        for row in found:
            if row["task"] == "all" and row["candidates"] in (1, candidates):
                rows.append({"round": number, "rollouts": number * episodes, **row})
    return rows


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown, in percent and percentage points."""
    lines = [
        "| round | rollouts | N | episodes | success | 95 % interval | difference to N = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (100 * bound for bound in row["ci95"])
        cells = [row["round"], row["rollouts"], row["candidates"], row["episodes"]]
        cells += [f"{100 * row['success_rate']:.0f} %", f"{low:.0f} to {high:.0f} %"]
        difference = "-"
        if row["diff_to_base"] is not None:
            low, high = (100 * bound for bound in row["diff_ci95"])
            difference = f"{100 * row['diff_to_base']:+.0f} ({low:+.0f} to {high:+.0f})"
        lines.append("| " + " | ".join(map(str, [*cells, difference])) + " |")
    return "\n".join(lines)


def write_rounds(record: Mapping[str, Any], output: Path) -> None:
    """``results.json``, ``rounds.png`` and ``report.html`` of rows from `round_rows`."""
    rows = record["rows"]
    _draw(rows, output / "rounds.png")
    write_json(output / "results.json", record)
    table = [line.strip("| ").split(" | ") for line in text_table(rows).splitlines()]
    body = html_table(table[0], table[2:])
    body += html_picture(output / "rounds.png", "success over rollouts learned from")
    write_page("Rounds of improvement", body, output / "report.html")


def _draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with figure(path, 3.6) as axes:
        for candidates in sorted({row["candidates"] for row in rows}):
            line = [row for row in rows if row["candidates"] == candidates]
            rate = [100 * row["success_rate"] for row in line]
            spread = [
                [100 * (row["success_rate"] - row["ci95"][0]) for row in line],
                [100 * (row["ci95"][1] - row["success_rate"]) for row in line],
            ]
            axes.errorbar(
                [row["rollouts"] for row in line],
                rate,
                yerr=spread,
                fmt="o-",
                capsize=3,
                label=f"N = {candidates}",
            )
        axes.set(xlabel="rollouts learned from", ylabel="success, %", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
