"""One thing that is wrong with a dataset."""

from dataclasses import dataclass
from pathlib import Path

RESTORE = "restore the file from where the dataset came from, or drop the episodes in it"


@dataclass(frozen=True)
class Finding:
    """What is wrong, in one line.

    Attributes:
        file: Where.
        what: What is there, and what should be.
        remedy: What to do about it.
    """

    file: Path
    what: str
    remedy: str = RESTORE

    def __str__(self) -> str:
        return " ".join(f"{self.file} {self.what}: {self.remedy}".split())


class Damaged(Exception):
    """A file without which nothing else can be checked."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def cause(error: BaseException) -> str:
    """An error of a library in a few words."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
