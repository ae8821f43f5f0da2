"""What an evaluation leaves behind: ``results.json``, table, figures and report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deas_vla.evaluation.engine.trials import ERROR, Outcome
from deas_vla.evaluation.results.figures import write_figures
from deas_vla.evaluation.results.pages import html_picture, html_table, html_video, write_page
from deas_vla.evaluation.results.tables import success_rows, text_table
from deas_vla.files import write_json
from deas_vla.provenance import run_record


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
    rows = success_rows(outcomes, identity["selection"]["temperature"])
    if (assets := identity.get("env.assets")) is not None:  # kitchens that are never pooled
        rows = [{**row, "assets": assets} for row in rows]
    record = {
        **json.loads(json.dumps(identity, default=str)),
        **run_record(config, started),
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
    text = f"{outcome.episode_id}: {outcome.instruction.rstrip('.')}: {end}"
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
