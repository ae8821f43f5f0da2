"""Success rates as rows of ``results.json`` and as a table."""

from collections.abc import Sequence
from typing import Any

from deas_vla.evaluation.engine.trials import ERROR, Outcome
from deas_vla.evaluation.results.statistics import mcnemar, paired_difference, wilson


def success_rows(outcomes: Sequence[Outcome], temperature: float) -> list[dict[str, Any]]:
    """One row per task and number of candidates, and the pool under task ``all``.

    Episodes in which the simulator failed count as errors, not as failures; a pair with an error
    on either side is left out of the difference.
    """
    rows = []
    for task, group in groups(outcomes):
        for candidates in sorted({o.candidates for o in group}):
            rows.append(_row(task, candidates, group, temperature))
    return rows


def groups(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Outcomes by task, and all of them under ``all``."""
    tasks = sorted({outcome.task for outcome in outcomes})
    groups = [(task, [o for o in outcomes if o.task == task]) for task in tasks]
    return [*groups, ("all", list(outcomes))]


def pairs_of(group: Sequence[Outcome], candidates: int) -> list[tuple[bool, bool]]:
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
    pairs = pairs_of(group, candidates)
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
        "steps_of_successes": _mean([o.steps for o in ran if o.success]),
        "jerk_at_seams": _mean([o.jerk_at_seams for o in ran]),
        "jerk_within": _mean([o.jerk_within for o in ran]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
