"""Success rates and paired episodes as pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deas_vla.evaluation.engine.trials import Outcome
from deas_vla.evaluation.results.tables import groups, pairs_of

_PAIRED = {  # (success of best-of-N, success of the base policy) to how a pair is drawn
    (True, True): ("both succeed", "#4c956c"),
    (True, False): ("only best-of-N", "#90be6d"),
    (False, True): ("only the base policy", "#f3722c"),
    (False, False): ("both fail", "#adb5bd"),
}


def write_figures(outcomes: Sequence[Outcome], rows: Sequence[dict[str, Any]], to: Path) -> None:
    """``success.png`` and, where more than one number of candidates ran, ``paired.png``."""
    tasks = _shown_tasks(rows)
    with figure(to / "success.png", 1.2 + 0.5 * len(tasks)) as axes:
        _draw_success(axes, rows, tasks)
    numbers = sorted({row["candidates"] for row in rows if row["diff_to_base"] is not None})
    if numbers:
        with figure(to / "paired.png", 1.2 + 0.4 * len(tasks) * len(numbers)) as axes:
            _draw_pairs(axes, outcomes, tasks, numbers)


def _shown_tasks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Top to bottom; the pool of one task is that task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return tasks if len(tasks) > 2 else tasks[:1]


@contextmanager
def figure(path: Path, height: float) -> Iterator[Any]:
    """Axes of a PNG of ``height`` inches, written to ``path`` at the end."""
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
        axes.errorbar(
            rate, place, xerr=spread, fmt="o", capsize=3, clip_on=False, label=f"N = {candidates}"
        )
    axes.set(xlabel="success rate (%), 95 % Wilson interval", xlim=(0, 100))
    axes.set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_pairs(
    axes: Any, outcomes: Sequence[Outcome], tasks: list[str], numbers: list[int]
) -> None:
    """Which episodes each of both policies solves, as one bar per task and N."""
    labels: list[str] = []
    by_task = dict(groups(outcomes))
    for task in tasks:
        for candidates in numbers:
            pairs = pairs_of(by_task[task], candidates)
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
