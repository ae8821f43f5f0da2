"""The alarms "stuck" and "out of data" on recorded episodes, against numbers worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from recipe_cases import load_script

from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.alarms import (
    detect_outside,
    detect_stuck,
    outside_for,
    stall_for,
)
from deas_vla.evaluation.offline.watching import Watched, disturbances


def watched(values: list[list[float]], solved_at: list[int]) -> Watched:
    series = [np.array(each, dtype=np.float64) for each in values]
    return Watched(series, series, series, np.array(solved_at))


# Decisions without a new highest V, at each decision:
EPISODES = watched(
    [
        [-9, -8, -7, -6],  # 0 0 0 0, solved at 3
        [-9, -8, -8, -5, -9, -9],  # 0 0 1 0, solved at 3: what follows does not count
        [-9, -9, -9, -8, -8],  # 0 1 2 0 1, fails
        [-9, -7, -8, -8, -8],  # 0 0 1 2 3, fails
    ],
    [3, 3, -1, -1],
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_stuck_by_hand() -> None:
    found = detect_stuck(EPISODES, 2, rng(), 20)
    assert found.found.value == 1 and found.false.value == 0
    assert found.delay.value == 2.5 and found.left.value == pytest.approx((2 / 5 + 1 / 5) / 2)
    # At decisions 1 to 3: {1, 0} against {0, 0}, {2, 1} against {0, 1}, {0, 2} against {0, 0}.
    assert found.auc.value == pytest.approx((3 + 3.5 + 3) / 12)
    once = detect_stuck(EPISODES, 1, rng(), 20)
    assert once.false.value == 0.5 and once.delay.value == 1.5


def test_decisions_until_stuck_allow_a_share_of_the_successes() -> None:
    assert stall_for(EPISODES, false=0.0) == 2
    assert stall_for(EPISODES, false=0.5) == 1
    with pytest.raises(DeasError, match="no success"):
        stall_for(EPISODES.part(np.array([2, 3])))


def test_out_of_data_by_hand() -> None:
    inside = [np.array([0.1, 0.3, 0.1]), np.array([0.2, 0.2, 0.1])]
    outside = [np.array([0.5, 0.1, 0.6, 0.6]), np.array([0.1, 0.9, 0.1])]
    threshold = outside_for(inside, false=0.0)
    assert threshold == pytest.approx(0.2) and threshold > 0.2
    assert outside_for(inside, false=0.5) == pytest.approx(0.1)
    found = detect_outside(inside, outside, threshold, rng(), 20)
    assert found.found.value == 0.5 and found.false.value == 0
    assert found.delay.value == 3 and found.left.value == 0
    high, low = np.concatenate(outside), np.concatenate(inside)
    wins = sum((p > n) + 0.5 * (p == n) for p in high for n in low)
    assert found.auc.value == pytest.approx(wins / (len(high) * len(low)))
    assert detect_outside(inside, inside, 0.2, rng(), 20).false.value == 0.5


def test_disturbances_change_what_they_say() -> None:
    pictures = {
        "left": np.full((2, 4, 8, 3), 100, np.uint8),
        "right": np.zeros((2, 4, 8, 3), np.uint8),
    }
    pictures["left"][:, :, 0, 0] = 200
    made = {name: change(pictures) for name, change in disturbances(0).items()}
    assert all(each.keys() == pictures.keys() for each in made.values())
    assert all(images.dtype == np.uint8 for each in made.values() for images in each.values())
    assert made["undisturbed"] is pictures
    assert made["dark"]["left"][0, 0].tolist() == [[60, 30, 30]] + [[30] * 3] * 7
    assert made["colours"]["left"][0, 0, 0].tolist() == [100, 100, 200]
    assert made["moved camera"]["left"][0, 0, 2, 0] == 200
    assert not made["first camera covered"]["left"].any()
    assert made["cameras exchanged"]["right"] is pictures["left"]
    assert 30 < made["noise"]["left"].astype(float).std() < 60


def test_the_command_measures_all_three(bundle: Path, tmp_path: Path) -> None:
    """On rollouts whose outcome shows in the pictures; the policy decides every eighth frame."""
    import json

    from recipe_cases import record

    from deas_vla.cli import parse

    script = load_script("eval/detectors.py")
    rollouts = record(tmp_path / "rollouts", episodes=8, seed=1)
    flags = [f"--bundle={bundle}", f"--dataset.root={rollouts}", f"--other={rollouts}"]
    flags += ["--candidates=2", "--resamples=5", "--patience=1", f"--output_dir={tmp_path}"]
    script.main(parse(script.DetectorsConfig, flags))
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["data"]["successes"] == 4 and found["data"]["decisions"] >= 16
    rows = {row["metric"].removeprefix("detection."): row["value"] for row in found["rows"]}
    kinds = {name.rsplit(".", 1)[0] for name in rows}
    assert kinds == {"done", "stuck"} | {
        f"out_of_data.{signal}.{name.replace(' ', '_')}"
        for signal in ("distance", "disagreement")
        for name in ["another dataset", *disturbances(0)]
        if name != "undisturbed"
    }
    assert found["thresholds"]["stuck_after"] >= 1 and found["thresholds"]["far"] > 0
    assert (tmp_path / "report.html").is_file()
    with pytest.raises(DeasError, match="most_episodes 3"):
        script.main(parse(script.DetectorsConfig, [*flags, "--most_episodes=3"]))
