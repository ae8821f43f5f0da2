"""The scripted expert that sweeps hinged parts shut, and the demonstrations made with it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deas_vla.envs.robocasa.experts import (
    SweepExpert,
    SweepExpertConfig,
    check_expert,
    rotate,
    signed_angle,
)
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.rollout import rollout
from deas_vla.errors import DeasError


def expert(sloppiness: float) -> SweepExpert:
    return SweepExpert(SweepExpertConfig(sloppiness=sloppiness))


def test_a_turned_vector_lies_at_the_angle_it_was_turned_by() -> None:
    axis = np.array([0.0, 0.6, 0.8])
    start = np.cross(axis, [1.0, 0.0, 0.0])
    for angle in (-2.0, -0.1, 0.7, 3.0):
        turned = rotate(start, axis, angle)
        assert np.isclose(signed_angle(start, turned, axis), angle)
        assert np.isclose(np.linalg.norm(turned), np.linalg.norm(start))
        assert np.isclose(turned @ axis, 0)


def test_a_task_without_expert_is_refused() -> None:
    with pytest.raises(DeasError, match=r"'TurnOffStove' has no scripted expert: use .*KettleLid"):
        check_expert("TurnOffStove")


@pytest.mark.slow
@pytest.mark.usefixtures("kitchen_assets")
@pytest.mark.parametrize("task", ["CloseElectricKettleLid", "CloseStandMixerHead"])
def test_careful_expert_succeeds_and_sloppy_one_fails(task: str) -> None:
    env = KitchenEnv(KitchenConfig(task=task, split="pretrain", horizon=130))
    careful = rollout(env, expert(0.0), 0)
    assert careful.success and careful.steps < 110
    sloppy = rollout(env, expert(1.0), 0)
    assert not sloppy.success and sloppy.truncated and sloppy.steps == 130
    env.close()


@pytest.mark.slow
@pytest.mark.usefixtures("kitchen_assets")
def test_demonstrations_are_a_dataset_with_robocasas_keys(tmp_path: Path, repo_root: Path) -> None:
    from deas_vla.data.episodes import load_episodes
    from deas_vla.data.layout import open_dataset

    root = tmp_path / "demos"
    flags = ["--tasks=[CloseElectricKettleLid]", "--horizons=[5]", "--episodes=1", "--workers=1"]
    kitchen = ["--kitchen.split=target", "--kitchen.layouts=[2]", "--kitchen.image_size=48"]
    script = str(repo_root / "recipes/robocasa/make_demos.py")
    subprocess.run(
        [sys.executable, script, *flags, *kitchen, f"--output={root}"],
        env={**os.environ, "PYTHONPATH": str(repo_root)},
        check=True,
    )
    layout = open_dataset("test/demos", root)
    assert layout.image_keys == (
        "observation.images.robot0_agentview_left",
        "observation.images.robot0_eye_in_hand",
        "observation.images.robot0_agentview_right",
    )
    assert layout.assets == "robocasa"
    assert layout.tasks == ("Close the lid of the electric kettle.",)
    table = load_episodes("test/demos", root)
    assert table.state.shape == (5, 16) and table.action.shape == (5, 12)
    assert table.num_episodes == 1 and table.truncated[-1] and not table.episode_success[0]
