"""What an evaluation leaves behind: rows, ``results.json``, table, figures and report."""

import base64
import html
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deas_vla.provenance import provenance
from deas_vla.sim.evaluation import ERROR, Outcome
from deas_vla.sim.statistics import mcnemar, paired_difference, wilson

_PAIRED = {  # (success of best-of-N, success of the base policy) to how a pair is drawn
    (True, True): ("both succeed", "#4c956c"),
    (True, False): ("only best-of-N", "#90be6d"),
    (False, True): ("only the base policy", "#f3722c"),
    (False, False): ("both fail", "#adb5bd"),
}


def success_rows(outcomes: Sequence[Outcome], temperature: float) -> list[dict[str, Any]]:
    """One row per task and number of candidates, and the pool under task ``all``.

    Episodes in which the simulator failed count as errors, not as failures; a pair with an error
    on either side is left out of the difference.
    """
    rows = []
    for task, group in _groups(outcomes):
        for candidates in sorted({o.candidates for o in group}):
            rows.append(_row(task, candidates, group, temperature))
    return rows


def _groups(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    tasks = sorted({outcome.task for outcome in outcomes})
    groups = [(task, [o for o in outcomes if o.task == task]) for task in tasks]
    return [*groups, ("all", list(outcomes))]


def _pairs(group: Sequence[Outcome], candidates: int) -> list[tuple[bool, bool]]:
    """(success with N, success with 1) of the episodes that the simulator ran with both."""
    ran = {(o.task, o.seed, o.candidates): o.success for o in group if o.outcome != ERROR}
    keys = sorted({(o.task, o.seed) for o in group})
    both = [key for key in keys if (*key, candidates) in ran and (*key, 1) in ran]
    return [(ran[*key, candidates], ran[*key, 1]) for key in both]


def _row(
    task: str, candidates: int, group: Sequence[Outcome], temperature: float
) -> dict[str, Any]:
    mine = [o for o in group if o.candidates == candidates]
    ran = [o for o in mine if o.outcome != ERROR]
    successes = sum(o.success for o in ran)
    pairs = _pairs(group, candidates)
    paired = bool(pairs) and candidates != 1
    guided, base = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    difference, interval = paired_difference(guided, base)
    return {
        "task": task,
        "candidates": candidates,
        "temperature": temperature,
        "episodes": len(ran),
        "successes": successes,
        "errors": len(mine) - len(ran),
        "success_rate": successes / len(ran) if ran else None,
        "ci95": list(wilson(successes, len(ran))),
        "diff_to_base": difference if paired else None,
        "diff_ci95": list(interval) if paired else None,
        "mcnemar_p": mcnemar(guided, base) if paired else None,
    }


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, in percent and percentage points."""
    lines = [
        "| task | N | episodes | errors | success | 95 % interval | difference to N = 1 "
        "| 95 % interval | McNemar p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "-" if row["success_rate"] is None else f"{100 * row['success_rate']:.0f} %"
        low, high = (100 * bound for bound in row["ci95"])
        cells = [row["task"], row["candidates"], row["episodes"], row["errors"], rate]
        cells += [f"{low:.0f} to {high:.0f} %"]
        if row["diff_to_base"] is None:
            cells += ["-", "-", "-"]
        else:
            low, high = (100 * bound for bound in row["diff_ci95"])
            cells += [f"{100 * row['diff_to_base']:+.0f} points", f"{low:+.0f} to {high:+.0f}"]
            cells += [f"{row['mcnemar_p']:.2g}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def write_figures(outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]], to: Path) -> None:
    """``success.png`` and, where more than one number of candidates ran, ``paired.png``."""
    tasks = _shown_tasks(rows)
    with _figure(to / "success.png", 1.2 + 0.5 * len(tasks)) as axes:
        _draw_success(axes, rows, tasks)
    numbers = sorted({row["candidates"] for row in rows if row["diff_to_base"] is not None})
    if numbers:
        with _figure(to / "paired.png", 1.2 + 0.4 * len(tasks) * len(numbers)) as axes:
            _draw_pairs(axes, outcomes, tasks, numbers)


def _shown_tasks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Top to bottom; the pool of one task is that task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return tasks if len(tasks) > 2 else tasks[:1]


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, max(2.2, height)), layout="constrained")
    yield axes
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_success(axes: Any, rows: Sequence[dict[str, Any]], tasks: list[str]) -> None:
    """A dot and its Wilson interval per task and number of candidates."""
    numbers = sorted({row["candidates"] for row in rows})
    for k, candidates in enumerate(numbers):
        line = [
            (tasks.index(row["task"]), row)
            for row in rows
            if row["task"] in tasks
            and row["candidates"] == candidates
            and row["success_rate"] is not None
        ]
        shift = 0.16 * (k - (len(numbers) - 1) / 2)
        rate = [100 * row["success_rate"] for _, row in line]
        spread = [
            [100 * (row["success_rate"] - row["ci95"][0]) for _, row in line],
            [100 * (row["ci95"][1] - row["success_rate"]) for _, row in line],
        ]
        place = [y + shift for y, _ in line]
        axes.errorbar(rate, place, xerr=spread, fmt="o", capsize=3, label=f"N = {candidates}")
    axes.set(xlabel="success rate (%), 95 % Wilson interval", xlim=(0, 100))
    axes.set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_pairs(
    axes: Any, outcomes: Sequence[Outcome], tasks: list[str], numbers: list[int]
) -> None:
    """Which episodes each of both policies solves, as one bar per task and N."""
    labels: list[str] = []
    groups = dict(_groups(outcomes))
    for task in tasks:
        for candidates in numbers:
            pairs = _pairs(groups[task], candidates)
            left = 0
            for kind, (label, colour) in _PAIRED.items():
                count = pairs.count(kind)
                name = label if not labels else None
                axes.barh(len(labels), count, left=left, color=colour, label=name)
                if count:
                    middle = left + count / 2
                    axes.text(middle, len(labels), str(count), ha="center", va="center", size=8)
                left += count
            labels.append(f"{task}, N = {candidates}" if len(numbers) > 1 else task)
    axes.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axes.set(xlabel="paired episodes")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def write_all(
    title: str,
    config: Any,
    identity: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    films: Sequence[tuple[Path, Outcome, bool]],
    output: Path,
    started: float,
) -> dict[str, Any]:
    """``results.json``, figures and ``report.html``.

    Args:
        title: Of the report.
        config: The script's dataclass.
        identity: What the episodes were run with, as in ``run.json``.
        outcomes: Of all processes.
        films: As `video.film` returns them.
        output: The directory.
        started: Of the run, seconds since the epoch.

    Returns:
        What stands in ``results.json``.
    """
    rows = success_rows(outcomes, identity["temperature"])
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        **json.loads(json.dumps(identity, default=str)),
        **provenance(),
        "wall_seconds": time.time() - started,
        "rows": rows,
        "errors": [[o.episode_id, o.error] for o in outcomes if o.outcome == ERROR],
        "videos": [
            {
                "file": str(file.relative_to(output)),
                "episode_id": o.episode_id,
                "same_outcome": same,
            }
            for file, o, same in films
        ],
    }
    write_figures(outcomes, rows, output)
    write_report(title, record, [(file, _caption(o, same)) for file, o, same in films], output)
    write_json(output / "results.json", record)
    return record


def _caption(outcome: Outcome, same: bool) -> str:
    end = f"{outcome.outcome} after {outcome.steps} steps, N = {outcome.candidates}"
    text = f"{outcome.episode_id}: {outcome.instruction}: {end}"
    return text if same else text + " (run anew for the film, it went another way)"


def write_report(
    title: str, record: Mapping[str, Any], videos: Sequence[tuple[Path, str]], output: Path
) -> None:
    """``report.html``, which opens alone: table, figures, films and configuration inside.

    Args:
        title: Its heading.
        record: What ``results.json`` holds.
        videos: mp4 files and their captions.
        output: The directory with the figures.
    """
    header, _, *body = [
        line.strip("| ").split(" | ") for line in text_table(record["rows"]).splitlines()
    ]
    page = html_table(header, body)
    page += html_picture(output / "success.png", "success rate by task and number of candidates")
    if (output / "paired.png").exists():
        page += "<h2>The same episodes, with and without the critic</h2>"
        page += html_picture(output / "paired.png", "episodes solved by both, one or none")
    if record.get("errors"):
        page += "<h2>Simulator errors</h2><p>Counted apart, neither success nor failure.</p>"
        page += html_table(["episode", "error"], record["errors"])
    if videos:
        page += "<h2>Episodes</h2>" + "".join(html_video(*video) for video in videos)
    facts = {**record["config"], **{k: v for k, v in record.items() if isinstance(v, str | float)}}
    facts |= record.get("versions", {})
    page += "<h2>Configuration</h2>"
    page += html_table(["", ""], [[str(name), str(value)] for name, value in facts.items()])
    write_page(title, page, output / "report.html")


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text cells."""
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def html_picture(figure: Path, alt: str) -> str:
    """A PNG, inside the page itself."""
    picture = base64.b64encode(figure.read_bytes()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}"></p>'


def html_video(film: Path, caption: str) -> str:
    """An mp4, inside the page itself."""
    content = base64.b64encode(film.read_bytes()).decode()
    return (
        f"<figure><video controls muted preload=metadata "
        f'src="data:video/mp4;base64,{content}"></video>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def write_page(title: str, body: str, path: Path) -> None:
    """An HTML page around ``body``, which must not point at any other file."""
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font-family:sans-serif;max-width:52rem;margin:2rem auto;line-height:1.4}}
td,th{{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #ddd}}
img,video{{max-width:100%;max-height:26rem}}figure{{margin:1rem 0}}</style>
<h1>{html.escape(title)}</h1>{body}"""
    write_text(path, page)


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a good file is never replaced by half of one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))
