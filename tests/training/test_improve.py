"""Rounds of improvement in Lift at toy size, and what they leave."""

import json
from pathlib import Path

import numpy as np
import pytest
from recipe_cases import load_script

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import parse
from deas_vla.errors import DeasError


def improve(bundle: Path, output: Path, *more: str) -> Path:
    script = load_script("recipes/improve.py")
    flags = [
        f"--bundle={bundle}",
        "--rounds=1",
        "--episodes=2",
        "--candidates=2",
        "--validation_episodes=1",
        "--critic_steps=6",
        "--workers=1",
        f"--output_dir={output}",
        *more,
    ]
    script.main(parse(script.ImproveConfig, flags))
    return output


@pytest.mark.slow
def test_a_round_adds_rollouts_and_trains_a_critic_of_all_data(
    bundle: Path, tmp_path: Path
) -> None:
    output = improve(bundle, tmp_path / "improved")
    before, after = read_manifest(bundle), read_manifest(output / "round-1" / "bundle")
    assert after["data"]["episodes"] == before["data"]["episodes"] + 2
    assert after["config"]["critic"]["steps"] == 6
    started, improved = open_bundle(bundle), open_bundle(output / "round-1" / "bundle")
    same = [
        np.array_equal(a, b)
        for a, b in zip(
            started.vla.model.state_dict().values(),
            improved.vla.model.state_dict().values(),
            strict=True,
        )
    ]
    assert all(same)  # the policy stays
    assert started.critic is not None and improved.critic is not None
    assert not np.array_equal(
        started.critic.critics.layers[0].weight.detach(),
        improved.critic.critics.layers[0].weight.detach(),
    )
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [(row["round"], row["rollouts"], row["candidates"]) for row in rows] == [
        (0, 0, 1),
        (0, 0, 2),
        (1, 2, 1),
        (1, 2, 2),
    ]
    assert (output / "rounds.png").stat().st_size > 5000

    # The same command again: everything is there already.
    stamp = (output / "round-1" / "bundle" / "bundle.json").stat().st_mtime_ns
    episodes = (output / "round-1" / "eval" / "episodes.jsonl").read_text()
    improve(bundle, output)
    assert (output / "round-1" / "bundle" / "bundle.json").stat().st_mtime_ns == stamp
    assert (output / "round-1" / "eval" / "episodes.jsonl").read_text() == episodes


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--episodes=3", "use an even number"),
        ("--rounds=0", r"rounds 0: use 1 or more"),
        ("--candidates=1", r"candidates 1: use 2 or more"),
        ("--holdout=1", r"holdout 1"),
    ],
)
def test_senseless_rounds_are_refused(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(DeasError, match=message):
        improve(tmp_path, tmp_path / "out", flag)
