"""A real dataset of format 2.0, read through LeRobot's converter on a copy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deas_vla.data.convert import convert_v2
from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.errors import DeasError

CAMERA = "observation.images.ego_view"


@pytest.fixture(scope="module")
def old(shared_dir: Path) -> Path:
    return shared_dir / "data/robot_sim.PickNPlace"


@pytest.fixture(scope="module")
def small_old(old, tmp_path_factory) -> Path:
    """Two of its episodes, which is enough for everything but time."""
    root = shutil.copytree(old, tmp_path_factory.mktemp("old") / "dataset")
    root.chmod(0o755)
    for path in [*root.rglob("episode_*.parquet"), *root.rglob("episode_*.mp4")]:
        path.parent.chmod(0o755)
        if path.stem not in ("episode_000000", "episode_000001"):
            path.unlink()
    (root / "meta").chmod(0o755)
    for name in ("episodes.jsonl", "info.json"):
        (root / "meta" / name).chmod(0o644)
    lines = (root / "meta/episodes.jsonl").read_text().splitlines(keepends=True)
    (root / "meta/episodes.jsonl").write_text("".join(lines[:2]))
    info = json.loads((root / "meta/info.json").read_text())
    info |= {"total_episodes": 2, "total_frames": 886}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def new(small_old, tmp_path_factory) -> Path:
    return convert_v2(small_old, tmp_path_factory.mktemp("new") / "dataset")


def old_column(root, name, episode):
    table = pq.read_table(root / f"data/chunk-000/episode_{episode:06d}.parquet")
    return np.array(table[name].to_pylist())


@pytest.mark.slow
def test_columns_survive(small_old, new):
    table = load_episodes("test/gr1", new)
    assert table.state.shape == table.action.shape == (886, 44) and table.fps == 20
    np.testing.assert_array_equal(table.episode_lengths, [416, 470])
    for row in range(2):
        for name, values in (("observation.state", table.state), ("action", table.action)):
            expected = old_column(small_old, name, row).astype(np.float32)
            np.testing.assert_array_equal(values[table.frames(row)], expected)
    np.testing.assert_array_equal(np.flatnonzero(table.success), table.episode_end - 1)
    assert table.task(0) == "pick the pear from the counter and place it in the plate"
    assert table.image_keys == (CAMERA,)  # the one without files is gone


@pytest.mark.slow
def test_images_survive_unshifted(small_old, new):
    import av

    table = load_episodes("test/gr1", new)
    row, frames = next(iter_episode_frames(new, table, [CAMERA], [1]))
    path = small_old / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert row == 1 and frames[CAMERA].shape == (470, 256, 256, 3)
    np.testing.assert_array_equal(frames[CAMERA][0], first)


@pytest.mark.slow
def test_lerobot_reads_the_result(new):
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("test/gr1", new, video_backend="pyav", return_uint8=True)
    assert len(dataset) == 886
    for index in (0, 415, 416, 885):
        assert dataset[index][CAMERA].shape == (3, 256, 256)
    stats = dataset.meta.stats
    assert stats["action"]["mean"].shape == (44,) and stats[CAMERA]["mean"].shape == (3, 1, 1)


@pytest.mark.slow
def test_source_is_untouched_and_nothing_is_left_behind(small_old, new):
    info = json.loads((small_old / "meta/info.json").read_text())
    assert info["codebase_version"] == "v2.0"
    assert not (small_old / "meta/episodes_stats.jsonl").exists()
    assert os.listdir(new.parent) == ["dataset"]
    assert not (new / "videos").is_symlink()


def test_the_reader_names_the_command(old):
    with pytest.raises(DeasError, match=r"python -m deas_vla\.data\.convert --root"):
        load_episodes("test/gr1", old)


def test_bad_input(old, tmp_path):
    with pytest.raises(DeasError, match="is not a LeRobot dataset"):
        convert_v2(tmp_path, tmp_path / "new")
    with pytest.raises(DeasError, match=r"output_root .* exists"):
        convert_v2(old, tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"codebase_version": "v3.0"}')
    with pytest.raises(DeasError, match=r"format v3\.0: only v2\.0 and v2\.1 need converting"):
        convert_v2(tmp_path, tmp_path / "new")


@pytest.mark.slow
def test_a_damaged_source_is_refused(small_old, tmp_path):
    broken = shutil.copytree(small_old, tmp_path / "broken")
    (broken / "meta/tasks.jsonl").unlink()
    with pytest.raises(DeasError, match=r"broken/meta/tasks\.jsonl is missing"):
        convert_v2(broken, tmp_path / "new")


@pytest.mark.slow
def test_what_lerobot_cannot_convert_is_one_line(small_old, tmp_path, monkeypatch):
    def fails(**arguments):
        raise ValueError("cannot\nconvert")

    monkeypatch.setattr("lerobot.scripts.convert_dataset_v21_to_v30.convert_dataset", fails)
    with pytest.raises(DeasError, match="LeRobot could not convert") as error:
        convert_v2(small_old, tmp_path / "new")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []
