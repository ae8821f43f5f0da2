"""Jerk between chunks."""

import numpy as np
import pytest

from deas_vla.evaluation.engine.smoothness import jerk


def test_jerk_at_the_seam_and_elsewhere() -> None:
    # One dimension still, one that jumps from 0 to 3 where the second chunk begins.
    actions = np.zeros((8, 2), dtype=np.float32)
    actions[4:, 1] = 3
    # Windows (2, 3, 4) and (3, 4, 5) hold the seam: differences 3 and -3; mean square 9 / 2.
    seam, within = jerk(actions, [0, 4])
    assert seam == pytest.approx(np.sqrt(4.5), abs=1e-4) and within == 0
    # The same jump inside a chunk: windows (0, 1, 2) .. (5, 6, 7), two of six with 4.5.
    assert jerk(actions, [0]) == (None, pytest.approx(np.sqrt(4.5 * 2 / 6), abs=1e-4))


def test_an_episode_too_short_for_a_window() -> None:
    assert jerk(np.ones((2, 3), dtype=np.float32), [0, 1]) == (None, None)
