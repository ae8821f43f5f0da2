"""What the oracle says, as rows of ``results.json``, figures and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deas_vla.evaluation.offline.intervals import Estimate
from deas_vla.evaluation.oracle.analysis import ProposedBin
from deas_vla.evaluation.results.figures import figure
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page

Gains = Mapping[tuple[str, int], Mapping[str, Estimate]]


@dataclass(frozen=True)
class Phase:
    """A part of the episodes: its decisions' first and last step, and what choices are worth."""

    first: int
    last: int
    decisions: int
    agreement: Mapping[str, Estimate]
    gains: Gains

    def rows(self, name: str) -> list[dict[str, Any]]:
        about = {"first_step": self.first, "last_step": self.last, "decisions": self.decisions}
        rows = [e.row(f"{name}.within_state.{kind}") for kind, e in self.agreement.items()]
        for (rule, count), kinds in self.gains.items():
            rows += [e.row(f"{name}.{kind}.{rule}.{count}") for kind, e in kinds.items()]
        return [row | about for row in rows]


def oracle_rows(
    agreement: Mapping[str, Estimate],
    gains: Gains,
    bins: Sequence[ProposedBin],
    phases: Sequence[Phase],
) -> list[dict[str, Any]]:
    """All metrics.

    ``within_state.*``, ``<success|gain|regret>.<rule>.<N>``, ``proposed.*``, and the first two as
    ``phase_<k>_of_<n>.*``.
    """
    rows = [estimate.row(f"within_state.{name}") for name, estimate in agreement.items()]
    for (rule, count), kinds in gains.items():
        rows += [estimate.row(f"{kind}.{rule}.{count}") for kind, estimate in kinds.items()]
    for number, each in enumerate(bins, 1):
        row = each.success.row(f"proposed.success.bin_{number}_of_{len(bins)}")
        rows.append(row | {"q": each.q, "chunks": each.chunks})
    for number, phase in enumerate(phases, 1):
        rows += phase.rows(f"phase_{number}_of_{len(phases)}")
    return rows


def draw_gains(gains: Gains, path: Path) -> None:
    """Success of one guided decision over N, a line for each rule."""
    rules = list(dict.fromkeys(rule for rule, _ in gains))
    with figure(path, 4.2) as axes:
        for rule in rules:
            counts = [count for name, count in gains if name == rule]
            line = [gains[rule, count]["success"] for count in counts]
            style = {"color": "black", "linestyle": "--"} if rule == "oracle" else {}
            axes.plot(counts, [100 * e.value for e in line], marker="o", label=rule, **style)
            if rule in ("best", "oracle"):
                low, high = ([100 * getattr(e, end) for e in line] for end in ("low", "high"))
                axes.fill_between(counts, low, high, alpha=0.12, color=style.get("color"))
        axes.set_xscale("log", base=2)
        axes.set(xticks=counts, xticklabels=counts, xlabel="candidates N")
        axes.set(ylabel="success after one decision, % (base policy afterwards)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_proposed(bins: Sequence[ProposedBin], path: Path) -> None:
    """How often chunks that the policy proposed succeeded, over their Q."""
    with figure(path, 3.6) as axes:
        q = [each.q for each in bins]
        rate = [100 * each.success.value for each in bins]
        spread = [
            [100 * (each.success.value - each.success.low) for each in bins],
            [100 * (each.success.high - each.success.value) for each in bins],
        ]
        axes.errorbar(q, rate, yerr=spread, fmt="o-", capsize=3)
        axes.set(xlabel="Q of proposed chunks, mean of each eighth", ylim=(0, 100))
        axes.set(ylabel="then solved, % (95 % interval)")
        axes.grid(alpha=0.3)


def text_table(gains: Gains) -> str:
    """Gains over candidate 0 by rule and N, in percentage points, as Markdown."""
    counts = sorted({count for _, count in gains})
    lines = ["| rule | " + " | ".join(f"N={count}" for count in counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    for rule in dict.fromkeys(rule for rule, _ in gains):
        cells = [_points(gains[rule, count]["gain"]) for count in counts]
        lines.append("| " + " | ".join([rule, *cells]) + " |")
    return "\n".join(lines)


def phase_table(phases: Sequence[Phase]) -> str:
    """Where in an episode a better choice would help, and what of it is reached, as Markdown."""
    lines = ["| steps | decisions | concordance | candidate 0 solves | best gains | an oracle |"]
    lines.append("|---" * 6 + "|")
    for phase in phases:
        count = max(count for _, count in phase.gains)
        best, oracle = phase.gains["best", count], phase.gains["oracle", count]
        base = best["success"].value - best["gain"].value
        cells = [f"{phase.first} to {phase.last}", str(phase.decisions)]
        cells += [_share(phase.agreement["concordance"]), f"{100 * base:.0f} %"]
        cells += [_points(best["gain"]), _points(oracle["gain"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(table: str) -> list[list[str]]:
    """Head and rows of a Markdown table."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [head, *rows]


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.0f} ({low:+.0f} to {high:+.0f})"


def write_report(
    record: Mapping[str, Any],
    agreement: Mapping[str, Estimate],
    gains: Gains,
    phases: Sequence[Phase],
    output: Path,
) -> None:
    """``report.html``, which opens alone."""
    rules, parts = _cells(text_table(gains)), _cells(phase_table(phases))
    facts = record["data"]
    page = f"""
<p>{facts["decisions"]} decisions of {facts["episodes"]} episodes of the base policy,
{facts["candidates"]} candidates each, run to the end {facts["repeats"]} times from the same state.
Intervals: 95 %, bootstrap over episodes.</p>
<h2>One decision by each rule, then the base policy</h2>
<p>Points of success above candidate 0. The oracle knows what becomes of every candidate: no rule
can do better at this N.</p>
{html_table(rules[0], rules[1:])}
{html_picture(output / "gains.png", "success over N by rule")}
<h2>Early, in the middle and late in the episodes</h2>
<p>Points of success with all candidates, above candidate 0.</p>
{html_table(parts[0], parts[1:])}
<h2>Within one state</h2>
<p>Pairs of candidates whose outcomes differ, ordered alike by Q: {_share(agreement["concordance"])}
(chance is 50 %). Rank correlation: {_plain(agreement["rank_correlation"])}.</p>
<h2>Q of what the policy proposes</h2>
{html_picture(output / "proposed.png", "success over Q of proposed chunks")}"""
    write_page(f"Candidates of {record['config']['bundle']}", page, output / "report.html")


def _share(estimate: Estimate) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
