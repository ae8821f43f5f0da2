"""Branched episodes on disk: one file each, there whole or not at all, so that a run goes on."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from deas_vla.evaluation.oracle.branching import DecisionPoint
from deas_vla.files import written_beside

EPISODES = "decisions"


@dataclass(frozen=True)
class Branched:
    """The decision points of one episode.

    Attributes:
        episode_id: ``<task>-<seed>-<candidates>``.
        points: In their order; none where the episode ended at once.
    """

    episode_id: str
    points: list[DecisionPoint]


def write_branched(directory: Path, branched: Branched) -> None:
    """Keep an episode under ``directory``/decisions."""
    place = directory / EPISODES / f"{branched.episode_id}.npz"
    place.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        f.name: np.stack([getattr(point, f.name) for point in branched.points])
        for f in fields(DecisionPoint)
        if branched.points
    }
    with written_beside(place) as beside:
        np.savez_compressed(beside, allow_pickle=False, **columns)


def read_branched(directory: Path) -> list[Branched]:
    """All episodes under ``directory``, by their names."""
    found = []
    for file in sorted((directory / EPISODES).glob("[!.]*.npz")):
        with np.load(file, allow_pickle=False) as columns:
            rows = len(columns["plan"]) if "plan" in columns else 0
            table = {name: columns[name] for name in columns}
        points = [DecisionPoint(**{n: c[row] for n, c in table.items()}) for row in range(rows)]
        found.append(Branched(file.stem, points))
    return found
