"""How smoothly a robot goes over from one chunk to the next."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def jerk(
    actions: NDArray[np.float32], decisions: Sequence[int]
) -> tuple[float | None, float | None]:
    """RMS second difference of an episode's actions, at its seams and elsewhere.

    Where actions are velocities, as those of an end effector's controller are, the second
    difference is the jerk, in units of the action per control step squared.

    Args:
        actions: (T, A).
        decisions: Steps at which a chunk begins.

    Returns:
        Over the three-step windows that hold the last step of a chunk and the first of the next,
        and over all others; None where there is no such window.
    """
    bends = np.diff(actions.astype(np.float64), n=2, axis=0)  # (T - 2, A); row t holds t .. t + 2
    squares = np.square(bends).mean(axis=1)
    first = np.asarray([step for step in decisions if step > 0], dtype=np.int64)
    seam = np.isin(np.arange(len(squares)), np.concatenate([first - 2, first - 1]))
    return _root_mean(squares[seam]), _root_mean(squares[~seam])


def _root_mean(squares: NDArray[np.float64]) -> float | None:
    return round(float(np.sqrt(squares.mean())), 4) if len(squares) else None
