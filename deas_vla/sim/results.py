"""What an evaluation leaves behind: rows, ``results.json``, table, figure and report."""

import base64
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deas_vla.sim.evaluation import ERROR, Outcome
from deas_vla.sim.statistics import paired_difference, wilson


def success_rows(outcomes: Sequence[Outcome], temperature: float) -> list[dict[str, Any]]:
    """One row per task and number of candidates, and the pool under task ``all``.

    Episodes in which the simulator failed count as errors, not as failures; a pair with an error
    on either side is left out of the difference.
    """
    tasks = sorted({outcome.task for outcome in outcomes})
    groups = [(task, [o for o in outcomes if o.task == task]) for task in tasks]
    rows = []
    for task, group in [*groups, ("all", list(outcomes))]:
        for candidates in sorted({o.candidates for o in group}):
            rows.append(_row(task, candidates, group, temperature))
    return rows


def _row(task: str, candidates: int, group: list[Outcome], temperature: float) -> dict[str, Any]:
    runs = {(o.task, o.seed): o for o in group if o.candidates == candidates and o.outcome != ERROR}
    base = {(o.task, o.seed): o for o in group if o.candidates == 1 and o.outcome != ERROR}
    errors = sum(o.outcome == ERROR for o in group if o.candidates == candidates)
    successes = sum(o.success for o in runs.values())
    pairs = sorted(runs.keys() & base.keys())
    difference, interval = paired_difference(
        [runs[key].success for key in pairs], [base[key].success for key in pairs]
    )
    paired = bool(pairs) and candidates != 1
    return {
        "task": task,
        "candidates": candidates,
        "temperature": temperature,
        "episodes": len(runs),
        "successes": successes,
        "errors": errors,
        "success_rate": successes / len(runs) if runs else None,
        "ci95": list(wilson(successes, len(runs))),
        "diff_to_base": difference if paired else None,
        "diff_ci95": list(interval) if paired else None,
    }


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, in percent and percentage points."""
    lines = [
        "| task | N | episodes | success | 95 % interval | difference to N = 1 | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "-" if row["success_rate"] is None else f"{100 * row['success_rate']:.0f} %"
        low, high = (100 * bound for bound in row["ci95"])
        cells = [
            row["task"],
            row["candidates"],
            row["episodes"],
            rate,
            f"{low:.0f} to {high:.0f} %",
        ]
        if row["diff_to_base"] is None:
            cells += ["-", "-"]
        else:
            low, high = (100 * bound for bound in row["diff_ci95"])
            cells += [f"{100 * row['diff_to_base']:+.0f} points", f"{low:+.0f} to {high:+.0f}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def write_figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Success rate over the number of candidates with Wilson intervals, one line per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.8, 3.2), layout="constrained")
    tasks = sorted({row["task"] for row in rows})
    shown = [task for task in tasks if task != "all"] if len(tasks) <= 2 else tasks
    for task in shown:
        line = [row for row in rows if row["task"] == task and row["success_rate"] is not None]
        position = [str(row["candidates"]) for row in line]
        rate = [100 * row["success_rate"] for row in line]
        spread = [
            [r - 100 * row["ci95"][0] for r, row in zip(rate, line, strict=True)],
            [100 * row["ci95"][1] - r for r, row in zip(rate, line, strict=True)],
        ]
        axes.errorbar(position, rate, yerr=spread, marker="o", capsize=4, label=task)
    axes.set(xlabel="candidates per decision (N)", ylabel="success rate (%)", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_report(title: str, rows: Sequence[dict[str, Any]], figure: Path, path: Path) -> None:
    """One HTML file that opens alone: table and figure inside."""
    header, _, *body = [line.strip("| ").split(" | ") for line in text_table(rows).splitlines()]
    picture = html_picture(figure, "success rate by number of candidates")
    write_page(title, html_table(header, body) + picture, path)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text cells."""
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def html_picture(figure: Path, alt: str) -> str:
    """A PNG, inside the page itself."""
    picture = base64.b64encode(figure.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}"></p>'


def write_page(title: str, body: str, path: Path) -> None:
    """An HTML page around ``body``, which must not point at any other file."""
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font-family:sans-serif;max-width:52rem;margin:2rem auto;line-height:1.4}}
td,th{{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #ddd}}
img{{max-width:100%;max-height:26rem}}</style>
<h1>{html.escape(title)}</h1>{body}"""
    write_text(path, page)


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a good file is never replaced by half of one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))
