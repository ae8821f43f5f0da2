"""What simulators and the policy say to each other: looks in, chunks out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import Observation
from deas_vla.envs.rollout import Plan


@dataclass(frozen=True)
class Look:
    """One observation that waits for a decision.

    Attributes:
        observation: With pictures.
        seed: Of the episode; fixes the candidates' noise.
        plan: How many decisions the episode has had.
        candidates: N.
        keep: Whether the plan brings all candidates and what the critic saw with it, as arrays in
            ``info``: ``candidates`` (N, H, A), ``feature`` (F,), ``state`` (S,).
        rest: float32 (T, A), the ``rest`` of the episode's last plan, that new candidates may go
            on from.
    """

    observation: Observation
    seed: int
    plan: int
    candidates: int
    keep: bool = False
    rest: NDArray[np.float32] | None = None


class Planner(Protocol):
    """Decides for several episodes at once."""

    batch_size: int
    """Most looks in one call."""

    def plan(self, looks: Sequence[Look]) -> list[Plan]:
        """One plan per look; all looks ask for the same number of candidates.

        A plan depends on its own look alone, never on the company it is in.
        """
