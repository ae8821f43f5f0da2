"""Timings that hold on a shared machine: arms in turn, round after round, ratios within one."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from deas_vla.errors import DeasError
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.files import write_json
from deas_vla.provenance import run_record


@dataclass(frozen=True)
class Arm:
    """Something to time.

    Attributes:
        call: Takes the number of the round, so that all arms can work on the same data.
        units: What one call counts as (updates, frames): times are per unit.
    """

    call: Callable[[int], object]
    units: Callable[[int], int] = lambda _: 1


def interleave(
    arms: Mapping[str, Arm], rounds: int, *, warm_up: int = 1, label: str = "rounds"
) -> dict[str, NDArray[np.float64]]:
    """Seconds per unit, (rounds,), of each arm; every round runs all arms, in alternating order.

    Noise of a shared machine lasts longer than an arm does, so that it hits all arms of a round.
    Where there is a CUDA device, a call ends when the device is done.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(warm_up + rounds), label):
        for name in names if turn % 2 == 0 else reversed(names):
            _synchronize()
            began = time.perf_counter()
            arms[name].call(turn)
            _synchronize()
            taken = (time.perf_counter() - began) / arms[name].units(turn)
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: np.asarray(values) for name, values in seconds.items()}


def check_counts(config: object, *names: str) -> None:
    """DeasError for the first of these attributes that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise DeasError(f"{name} {getattr(config, name)}: use 1 or more")


def timing_row(
    what: str,
    size: int,
    seconds: NDArray[np.float64],
    ratio_to: str | None = None,
    base: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """A row of ``results.json``: times in milliseconds, and how many times faster than ``base``.

    ``ratio`` is the median over the rounds of the base's time by this arm's in the same round.
    """
    return {
        "what": what,
        "size": size,
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.quantile(seconds, 0.95)),
        "ratio_to": ratio_to,
        "ratio": None if base is None else float(np.median(base / seconds)),
    }


def timing_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and text cells of a table of `timing_row`."""
    header = ["what", "size", "median ms", "p95 ms", "per second", "times faster", "than"]
    cells = [
        [
            row["what"],
            f"{row['size']:,}",
            f"{row['median_ms']:.3g}",
            f"{row['p95_ms']:.3g}",
            f"{1e3 / row['median_ms']:,.0f}" if row["median_ms"] < 200 else "",
            "" if row["ratio"] is None else f"{row['ratio']:.3g}",
            row["ratio_to"] or "",
        ]
        for row in rows
    ]
    return header, cells


def text_lines(rows: Sequence[dict[str, Any]]) -> str:
    """The same table for a terminal."""
    header, cells = timing_cells(rows)
    table = [header, *cells]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def write_timings(
    title: str,
    config: Any,
    rows: Sequence[dict[str, Any]],
    output: Path,
    started: float,
    *,
    device: torch.device,
    note: str,
    body: str = "",
    **facts: Any,
) -> None:
    """``results.json`` and ``report.html`` in ``output``, and the same table on the terminal.

    Args:
        title: Of the report.
        config: The script's dataclass.
        rows: Of `timing_row`.
        output: The directory.
        started: Of the run, seconds since the epoch.
        device: Where it ran.
        note: A sentence or two of HTML above the table.
        body: HTML below it.
        facts: What else ``results.json`` holds.
    """
    where = {"device": str(device), "threads": torch.get_num_threads()}
    record = {**run_record(config, started), **where, "rows": list(rows), **facts}
    write_json(output / "results.json", record)
    page = f"<p>{note} On {device}, {where['threads']} threads.</p>"
    write_page(title, page + html_table(*timing_cells(rows)) + body, output / "report.html")
    print(text_lines(rows))
    print(f"results in {output}")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
