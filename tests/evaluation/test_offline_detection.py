"""The alarm "done" on recorded episodes, against numbers worked by hand."""

import numpy as np
import pytest

from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.detection import Recorded, detect_done, threshold_for

RECORDED = Recorded(
    values=[
        np.array([-9.0, -8, -4, -1, -1, -1]),  # solved at 4: alarms at 4, 5
        np.array([-9.0, -1, -1, -9, -9, -1, -1]),  # solved at 6: early alarm at 2, right one at 6
        np.array([-9.0, -8, -7, -6]),  # solved at 3: none
        np.array([-9.0, -1, -9, -1, -9]),  # fails: single peaks are no alarm
        np.array([-9.0, -3, -2, -2.5]),  # fails
    ],
    solved_at=np.array([4, 6, 3, -1, -1]),
)


def measure(threshold: float = -1.5) -> dict[str, float]:
    found = detect_done(RECORDED, threshold, np.random.default_rng(0), 20, margin=1)
    return {str(row["metric"]).split(".")[-1]: row["value"] for row in found.rows()}


def test_alarms_and_delays_by_hand() -> None:
    found = measure()
    assert found["found"] == pytest.approx(2 / 3) and found["early"] == pytest.approx(1 / 3)
    assert found["false"] == 0 and found["delay"] == 0
    assert measure(-2.75)["false"] == 0.5  # the last failure has -2 and -2.5 in a row


def test_auc_by_hand() -> None:
    """Positives: -1 -1 -1, then -1 -1, then -7 -6; the others of five episodes."""
    positive = [-1, -1, -1, -1, -1, -7, -6]
    negative = [-9, -8, -4, -9, -1, -1, -9, -9, -9, -8, -9, -1, -9, -1, -9, -9, -3, -2, -2.5]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert measure()["auc"] == pytest.approx(wins / (len(positive) * len(negative)))


def test_a_threshold_allows_a_share_of_the_failures() -> None:
    """Pairs peak at -9 and at -2.5 in the two failures."""
    assert threshold_for(RECORDED, false=0.0) == pytest.approx(-2.5)
    assert threshold_for(RECORDED, false=0.0) > -2.5
    assert threshold_for(RECORDED, false=0.5) == pytest.approx(-9.0)
    with pytest.raises(DeasError, match="no failed episode"):
        threshold_for(Recorded([np.zeros(3)], np.array([1])))
