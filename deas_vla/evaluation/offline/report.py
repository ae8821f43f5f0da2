"""What an offline evaluation says: rows of ``results.json`` and a page.

A metric has a function that makes its rows and one that makes its section of the page, here; what
computes it is in a file of its own. `HEADLINES` are the rows that stand first and on the terminal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deas_vla.evaluation.offline.intervals import Estimate, Floats
from deas_vla.evaluation.offline.metrics import Calibration
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page

HEADLINES = {
    "calibration.error": "Expected calibration error, in units of return",
    "calibration.rank_correlation": "Spearman rank correlation of Q and return",
    "overestimation.mean": "Q minus return, mean, in units of return",
    "separation.auc_at_0.5": "AUC of V, success against failure, at half the episode",
    "ranking.another_episode": "Dataset chunk above one of another episode",
    "ranking.policy_samples": "Dataset chunk above the policy's samples",
    "ranking.twins": "Solved episodes' chunks above those of their failed twins",
    "ranking.another_episode.successes": "The same as the first, within successes",
    "choice.distance": "Chosen of the policy's samples: distance from what succeeded, less any's",
    "tails.policy": "Error where the task is being solved, policy's tails",
    "tails.hold": "The same, last action held",
}

Row = dict[str, Any]  # `Estimate.row`


def calibration_rows(found: Mapping[str, Calibration]) -> list[Row]:
    """Of `calibration_by_outcome`."""
    rows = []
    for suffix, each in found.items():
        rows += [
            each.error.row(f"calibration.error{suffix}"),
            each.rank_correlation.row(f"calibration.rank_correlation{suffix}"),
            each.overestimation.row(f"overestimation.mean{suffix}"),
        ]
    bins = found[""].bins
    for number, part in enumerate(bins, 1):
        rows.append(part.overestimation.row(f"overestimation.bin_{number}_of_{len(bins)}"))
    return rows


def separation_rows(fractions: Floats, found: Sequence[Estimate]) -> list[Row]:
    """Of `separation` at ``fractions`` of the episode."""
    return [
        estimate.row(f"separation.auc_at_{fraction:.1f}")
        for fraction, estimate in zip(fractions, found, strict=True)
    ]


def ranking_rows(found: Mapping[str, Mapping[str, Estimate]]) -> list[Row]:
    """Of `win_rates`: rivals by name, each over groups of chunks."""
    return [
        estimate.row(f"ranking.{name.replace(' ', '_')}{'' if group == 'all' else f'.{group}'}")
        for name, groups in found.items()
        for group, estimate in groups.items()
    ]


def choice_rows(found: Mapping[str, Mapping[int, Estimate]]) -> list[Row]:
    """Of `choice_distances`: ``choice.distance`` of all samples, ``choice.distance_of_4`` ...

    Of fewer than all samples for all instructions together alone.
    """
    return [
        estimate.row(
            f"choice.distance{'' if n == max(counts) else f'_of_{n}'}"
            f"{group.removeprefix('successes').replace(': ', '.', 1)}"
        )
        for group, counts in found.items()
        for n, estimate in counts.items()
        if group == "successes" or n == max(counts)
    ]


def tail_rows(found: Mapping[str, Estimate]) -> list[Row]:
    """Of `tail_errors`: ``tails.<kind>``, a share of the support."""
    return [estimate.row(f"tails.{kind}") for kind, estimate in found.items()]


def text(row: Row) -> str:
    """A row's value and interval; rates in percent."""
    if row["value"] is None:
        return "not defined on these episodes"
    metric = row["metric"]
    scale, unit = (100, " %") if metric.startswith(("ranking", "tails")) else (1, "")
    digits = 1 if metric.startswith("tails") else 0 if unit else 2
    value, low, high = (scale * x for x in (row["value"], *row["ci95"]))
    return f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def headline_lines(rows: Sequence[Row]) -> str:
    """The `HEADLINES` for a terminal."""
    return "\n".join(f"{r['metric']:36s} {text(r)}" for r in rows if r["metric"] in HEADLINES)


def write_report(
    record: Mapping[str, Any],
    found: Calibration,
    pictured: Mapping[str, str],
    output: Path,
) -> None:
    """``report.html``, which opens alone.

    Args:
        record: What ``results.json`` holds.
        found: On all chunks.
        pictured: Outcome to what its ``values_<outcome>.png`` shows.
        output: The directory with the figures.
    """
    rows = {row["metric"]: text(row) for row in record["rows"]}
    body = (
        _headline(record, rows)
        + _calibration(rows, found, output)
        + _separation(record, output)
        + _ranking(rows, output)
        + _choices(rows)
        + _tails(rows)
        + _episodes(pictured, output)
    )
    write_page(f"Critic of {record['config']['bundle']}", body, output / "report.html")


def _headline(record: Mapping[str, Any], rows: Mapping[str, str]) -> str:
    data = record["data"]
    cells = [[what, rows[name]] for name, what in HEADLINES.items() if name in rows]
    return f"""
<p>Algorithm <b>{record["algorithm"]}</b>, {len(data["episodes"])} episodes that it was not trained
on ({data["successes"]} successful), {data["chunks"]} chunks. Intervals: 95 %, bootstrap over
episodes.</p>
{html_table(["metric", "value (95 % interval)"], cells)}"""


def _calibration(rows: Mapping[str, str], found: Calibration, output: Path) -> str:
    bins = [
        [
            str(each.chunks),
            *(text(e.row("bin")) for e in (each.q, each.returns, each.overestimation)),
        ]
        for each in found.bins
    ]
    return f"""
<h2>Calibration</h2>
<p>Q of the dataset's own chunks against what the episode paid from there on, in the critic's reward
and discounts. Where a time limit ended the episode, the rest is the critic's own V of the last
frame; successful episodes alone, observed to the end: calibration error
{rows.get("calibration.error.successes", "-")}, rank correlation
{rows.get("calibration.rank_correlation.successes", "-")}, Q minus return
{rows.get("overestimation.mean.successes", "-")}.</p>
{html_picture(output / "calibration.png", "return over Q")}
{html_table(["chunks", "mean Q", "mean return", "Q minus return"], bins)}
<h2>Overestimation</h2>{html_picture(output / "overestimation.png", "Q minus return over Q")}"""


def _separation(record: Mapping[str, Any], output: Path) -> str:
    successes, episodes = record["data"]["successes"], len(record["data"]["episodes"])
    undefined = (
        f" Not defined here: {successes} of {episodes} episodes succeeded, and it takes both kinds."
        if successes in (0, episodes)
        else ""
    )
    return f"""
<h2>Success against failure</h2>
<p>The probability that V of a successful episode is above V of a failed one, at the same fraction
of each.{undefined}</p>
{html_picture(output / "separation.png", "AUC by fraction of the episode elapsed")}"""


def _ranking(rows: Mapping[str, str], output: Path) -> str:
    groups = ("", ".successes", ".failures")
    cells = [
        [name.removeprefix("ranking.").replace("_", " "), *(rows[name + group] for group in groups)]
        for name in rows
        if name.startswith("ranking.") and ".successes: " not in name
        if not name.endswith(groups[1:])
    ]
    by_instruction = [
        [*name.removeprefix("ranking.").replace("_", " ").split(".successes: "), value]
        for name, value in rows.items()
        if name.startswith("ranking.") and ".successes: " in name
    ]
    told = html_table(["rival", "instruction", "of successes"], by_instruction)
    return f"""
<h2>Ranking</h2>
<p>How often the dataset's chunk scores above a rival at the same observation. In failed episodes
the dataset's chunk is no model to follow: a good critic need not prefer it there.</p>
{html_picture(output / "ranking.png", "share of rivals beaten")}
{html_table(["rival", "all chunks", "of successes", "of failures"], cells)}
{told if by_instruction else ""}"""


def _choices(rows: Mapping[str, str]) -> str:
    cells = [
        [name.removeprefix("choice."), rows[name]] for name in rows if name.startswith("choice.")
    ]
    if not cells:
        return ""
    return f"""
<h2>What is chosen</h2>
<p>Distance of what is chosen of N of the policy's samples from the dataset's chunk in successes,
less that of any sample, in standard deviations of the actions. Below 0 the choice is nearer to
what succeeded; where it rises with N, more candidates may hurt.</p>
{html_table(["choice", "distance (95 % interval)"], cells)}"""


def _tails(rows: Mapping[str, str]) -> str:
    cells = [[name.removeprefix("tails."), rows[name]] for name in rows if name.startswith("tails")]
    if not cells:
        return ""
    return f"""
<h2>Where the task is being solved</h2>
<p>Mean |Q - return|, a share of the support, of chunks with success inside, by what stands behind
the terminal step: the last action held, steps of other chunks, one other chunk, what the policy
proposes there; zero is a constant that no policy proposes.</p>
{html_table(["tail", "error (95 % interval)"], cells)}"""


def _episodes(pictured: Mapping[str, str], output: Path) -> str:
    head = """
<h2>Along an episode</h2>
<p>The success and the failure whose V at half time is the median of theirs.</p>"""
    return head + "".join(
        html_picture(output / f"values_{outcome}.png", what) for outcome, what in pictured.items()
    )
