"""Whether a robot is done, stuck or out of its data, from what the critic says as it goes.

Light to import: a terminal beside the robot does it. `evaluation.offline.detection` measures it.
"""

import math
from collections import deque
from dataclasses import dataclass

from deas_vla.errors import DeasError

RUNNING, DONE, STUCK, OUT_OF_DATA = "running", "done", "stuck", "out of data"


@dataclass
class WatchConfig:
    """When which is called. Values are in units of return, one of them for each decision.

    Attributes:
        done: V at or above it is "done"; left out, it is never called.
        stuck_after: Decisions without a new highest V, by ``stuck_gain`` at least, after which it
            is "stuck"; 0 is never.
        stuck_gain: What counts as progress of V.
        far: Distance of the observation from the training data at or above it is "out of data",
            where 1 is an ordinary one; left out, it is never called.
        novel: Disagreement of the critic's members at or above it is "out of data" too.
        patience: Decisions in a row that "done" and "out of data" need.
    """

    done: float | None = None
    stuck_after: int = 12
    stuck_gain: float = 0.0
    far: float | None = None
    novel: float | None = None
    patience: int = 2

    def check(self) -> None:
        """DeasError for a setting without meaning."""
        if self.patience < 1:
            raise DeasError(f"watch.patience {self.patience}: use 1 or more decisions")
        if self.stuck_after < 0:
            raise DeasError(f"watch.stuck_after {self.stuck_after}: use decisions, or 0 for never")


class Watch:
    """One episode: a state after each decision."""

    def __init__(self, config: WatchConfig) -> None:
        config.check()
        self.config = config
        self._recent: deque[tuple[float, bool]] = deque(maxlen=config.patience)
        self._best = -math.inf
        self._since_best = 0

    def update(self, value: float, disagreement: float = 0.0, distance: float = 0.0) -> str:
        """The state after a decision with this V, disagreement about its Q, and distance.

        "Out of data" goes before "done", which is a value's word, and "done" before "stuck".
        """
        config = self.config
        outside = (config.novel is not None and disagreement >= config.novel) or (
            config.far is not None and distance >= config.far
        )
        self._recent.append((value, outside))
        if value > self._best + config.stuck_gain or self._best == -math.inf:
            self._best, self._since_best = value, 0
        else:
            self._since_best += 1
        if len(self._recent) == config.patience:
            if all(outside for _, outside in self._recent):
                return OUT_OF_DATA
            if config.done is not None and min(v for v, _ in self._recent) >= config.done:
                return DONE
        if 0 < config.stuck_after <= self._since_best:
            return STUCK
        return RUNNING
