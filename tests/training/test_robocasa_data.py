"""The layout of RoboCasa's public datasets: converted, checked and trained on, in miniature."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from recipe_cases import recipe
from robocasa_miniature import CAMERAS, pictures, robocasa_miniature

from deas_vla.bundle import read_manifest
from deas_vla.data.check import check_dataset
from deas_vla.data.convert import convert_v2
from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.envs.robocasa.kitchen import ACTION_PARTS, ROBOT_TYPE, STATE_PARTS
from deas_vla.envs.robocasa.overlay import mounted, package_tree
from deas_vla.envs.robocasa.tasks import extra_assets
from deas_vla.errors import DeasError


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return robocasa_miniature(tmp_path_factory.mktemp("robocasa") / "old")


@pytest.fixture(scope="module")
def new(old: Path) -> Path:
    return convert_v2(old, old.parent / "new")


def test_what_the_critic_learns_from_survives(old: Path, new: Path) -> None:
    assert check_dataset(old) == check_dataset(new) == []
    table = load_episodes("robocasa/miniature", new)
    assert table.episode_lengths.tolist() == [18, 22, 20] and table.fps == 20
    assert table.state.shape == (60, 16) and table.action.shape == (60, 12)
    # Demonstrations go on after the success; the first solved step is where an episode ends.
    solved = [*range(14, 18), *range(56, 60)]
    np.testing.assert_array_equal(np.flatnonzero(table.success), solved)
    assert table.episode_success.tolist() == [True, False, True]
    assert [table.task(row) for row in range(2)] == ["Open the drawer.", "Close the left drawer."]
    assert (new / "meta/modality.json").read_text() == (old / "meta/modality.json").read_text()


def test_dimensions_have_the_names_of_our_own_rollouts(new: Path) -> None:
    """So that both join to one dataset."""
    table = load_episodes("robocasa/miniature", new)
    state = [f"{part}.{axis}" for part, (_, axes) in STATE_PARTS.items() for axis in axes]
    action = [f"{part}.{axis}".rstrip(".") for part, axes in ACTION_PARTS.items() for axis in axes]
    assert table.state_names == tuple(state) and table.action_names == tuple(action)
    assert table.robot_type == ROBOT_TYPE


def test_pictures_belong_to_their_frames(new: Path) -> None:
    table = load_episodes("robocasa/miniature", new)
    for row, frames in iter_episode_frames(new, table, CAMERAS):
        for k, camera in enumerate(CAMERAS):
            want = pictures(row, k, int(table.episode_lengths[row]), 64).astype(float)
            error = np.abs(frames[camera] - want).mean(axis=(1, 2, 3))
            shifted = np.abs(frames[camera][1:] - want[:-1]).mean(axis=(1, 2, 3))
            assert error.max() < shifted.min(), (row, camera)


@pytest.fixture(scope="module")
def trained(new: Path, untrained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe(
        new,
        tmp_path_factory.mktemp("robocasa") / "run",
        f"--policy.path={untrained_nano}",
        "--policy.embodiment=new_embodiment",
        "--policy.train_projectors=true",
        "--features.pooling.kind=camera_mean",
        "--dataset.holdout=0",
        "--critic.horizon=4",
    )


def test_it_is_trained_on(trained: Path) -> None:
    manifest = read_manifest(trained)
    assert manifest["data"]["successful_episodes"] == 2
    assert set(manifest["data"]["image_sizes"]) == set(CAMERAS)


@pytest.mark.usefixtures("kitchen_assets")
def test_the_bundle_runs_in_lerobots_own_kitchens(trained: Path) -> None:
    """LeRobot's RoboCasa environment and its evaluation loop, two steps of best-of-3."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import RoboCasaEnv
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    import deas_vla.plugin.lerobot_policy_deas_vla  # noqa: F401

    env_config = RoboCasaEnv(
        task="CloseElectricKettleLid",
        split="pretrain",
        episode_length=2,
        observation_height=64,
        observation_width=64,
        obj_registries=["objaverse", "lightwheel"],
    )
    config = PreTrainedConfig.from_pretrained(trained, cli_overrides=["--candidates=3"])
    config.pretrained_path = trained
    policy = make_policy(config, env_cfg=env_config)
    extra = extra_assets()
    with nullcontext() if extra is None else mounted(package_tree(extra)):
        env = make_env(env_config)["CloseElectricKettleLid"][0]
        found = rollout(
            env,
            policy,
            *make_env_pre_post_processors(env_config, config),
            *make_pre_post_processors(config, str(trained)),
            seeds=[0],
        )
        env.close()
    assert found["action"].shape == (1, 2, 12) and bool(found["action"].isfinite().all())
    decision = policy.last_decision
    assert decision is not None and decision.candidates.shape[:2] == (1, 3)
    assert decision.scores is not None and decision.scores.std() > 0


def test_late_timestamps_and_missing_statistics_are_mended(old: Path, tmp_path: Path) -> None:
    """Exporters start time one frame late, or leave statistics out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    late = Path(shutil.copytree(old, tmp_path / "late"))
    (late / "meta/episodes_stats.jsonl").unlink()
    for path in late.rglob("*.parquet"):
        table = pq.read_table(path)
        time = (table["timestamp"].to_numpy() + 1 / 20).astype(np.float32)
        at = table.schema.get_field_index("timestamp")
        pq.write_table(table.set_column(at, "timestamp", pa.array(time)), path)
    new = convert_v2(late, tmp_path / "new")
    assert check_dataset(new) == []
    stats = json.loads((new / "meta/stats.json").read_text())
    assert len(stats["action"]["mean"]) == 12 and len(stats[CAMERAS[0]]["mean"]) == 3


def test_lost_rows_of_an_old_dataset_are_refused_by_their_own_file(
    old: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    lost = Path(shutil.copytree(old, tmp_path / "lost"))
    path = lost / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 15), path)
    with pytest.raises(DeasError, match=rf"{path} holds 15 frames, meta/ says 22 \(episode 1 has"):
        convert_v2(lost, tmp_path / "new")
    assert not (tmp_path / "new").exists()
