"""Whether a dataset's files are what its `meta/` says, before anything is trained on them.

    python -m deas_vla.data.check --root DIR

Reads counters, states and actions in parts and each video's head; no picture is decoded. One home
for the recipe, evaluation, merging and conversion.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deas_vla.cli import run
from deas_vla.data.checks.finding import Damaged, Finding
from deas_vla.data.checks.plan import Plan, read_plan
from deas_vla.data.checks.rows import check_rows
from deas_vla.data.checks.videos import check_video
from deas_vla.errors import DeasError

_THREADS = 8  # files are looked at side by side: opening them is waiting


@dataclass
class CheckConfig:
    """What to check.

    Attributes:
        root: Directory of a LeRobot dataset, of format 2.0, 2.1 or 3.0.
    """

    root: Path


def check_dataset(root: str | Path, *, videos: bool = True) -> list[Finding]:
    """Everything that is wrong with a dataset, file by file.

    Args:
        root: Its directory; format 2.0, 2.1 or 3.0.
        videos: Whether to look at videos too.

    Returns:
        Nothing for a sound dataset. Where metadata are damaged, only that.
    """
    root = Path(root)
    try:
        plan, findings = read_plan(root)
    except Damaged as damaged:
        return [damaged.finding]
    if findings:  # what files should hold is not known then
        return findings
    return [*findings, *_check_files(plan, videos)]


def require_sound(root: str | Path, *, videos: bool = True) -> None:
    """Refuse a damaged dataset.

    Raises:
        DeasError: Something is wrong; names the first file, what is in it and the remedy, and how
            many more findings there are.
    """
    findings = check_dataset(root, videos=videos)
    if findings:
        more = f" (and {len(findings) - 1} more findings)" if len(findings) > 1 else ""
        raise DeasError(f"{findings[0]}{more}")


def _check_files(plan: Plan, videos: bool) -> Iterator[Finding]:
    known = {file.path for file in plan.data}
    for path in sorted((plan.root / "data").glob("*/*.parquet")):
        if path not in known:
            yield Finding(path, "is of no episode that meta/ lists", "remove it or restore meta/")
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from _joined(pool.map(lambda file: list(check_rows(plan, file)), plan.data))
        if videos:
            yield from _joined(pool.map(lambda file: list(check_video(plan, file)), plan.videos))


def _joined(parts: Iterable[list[Finding]]) -> Iterator[Finding]:
    for part in parts:
        yield from part


def main(config: CheckConfig) -> None:
    """Command line of `check_dataset`: one line for each finding."""
    findings = check_dataset(config.root)
    for finding in findings:
        print(finding)
    if findings:
        raise DeasError(f"dataset {config.root} has {len(findings)} findings: mend or drop them")
    print(f"dataset {config.root} is what its meta/ says")


if __name__ == "__main__":
    run(main, CheckConfig)
