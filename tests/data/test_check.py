"""Every kind of damage to a dataset is one line that names file, value and remedy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import IMAGE_KEYS, LENGTHS

from deas_vla.data.check import check_dataset, require_sound
from deas_vla.errors import DeasError

FRAMES = sum(LENGTHS)


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "dataset"))


def data_file(root: Path) -> Path:
    return next((root / "data").glob("*/*.parquet"))


def episodes_file(root: Path) -> Path:
    return next((root / "meta/episodes").glob("*/*.parquet"))


def video(root: Path, at: int = 0) -> Path:
    return sorted((root / "videos" / IMAGE_KEYS[0]).glob("*/*.mp4"))[at]


def edit_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def said(name: str, value: Any) -> Callable[[Path], None]:
    """`info.json` with another value."""
    return lambda root: edit_info(root, lambda info: info.update({name: value}))


def feature(name: str, shape: list[int]) -> Callable[[Path], None]:
    """`info.json` with another shape of a feature."""
    return lambda root: edit_info(root, lambda info: info["features"][name].update(shape=shape))


def cut(find: Callable[[Path], Path], share: float = 0.5) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = find(root)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def rows(order: Callable[[np.ndarray], Any], find: Any = data_file) -> Callable[[Path], None]:
    """Takes other rows of a parquet file: all of them, in order, are given."""

    def damage(root: Path) -> None:
        table = pq.read_table(find(root))
        pq.write_table(table.take(pa.array(order(np.arange(table.num_rows)))), find(root))

    return damage


def column(
    name: str, change: Callable[[list[Any]], pa.Array | None], find: Any = data_file
) -> Callable[[Path], None]:
    """Replaces a column, or drops it."""

    def damage(root: Path) -> None:
        table = pq.read_table(find(root))
        at, values = table.schema.get_field_index(name), change(table[name].to_pylist())
        table = table.remove_column(at)
        if values is not None:
            table = table.add_column(at, name, values)
        pq.write_table(table, find(root))

    return damage


def at(row: int, value: Any) -> Callable[[list[Any]], pa.Array]:
    """A column with another value in one row."""
    return lambda values: pa.array([*values[:row], value, *values[row + 1 :]])


def ragged(values: list[list[float]]) -> pa.Array:
    """As many numbers in all, but not in each row."""
    values[3], values[4] = values[3][:1], values[4] + values[3][1:]
    return pa.array(values, pa.list_(pa.float32()))


def without(path: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda root: path(root).unlink()


def another_rate(root: Path) -> None:
    import av

    with av.open(str(video(root)), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        for _ in range(FRAMES):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8)))
            )
        container.mux(stream.encode())


INFO, DATA, META = "meta/info.json", "data/chunk-000/file-000.parquet", "meta/episodes"
VIDEO = f"videos/{IMAGE_KEYS[0]}/chunk-000/file-00"
swapped = [*range(12, 19), *range(12), *range(19, FRAMES)]  # episodes 0 and 1
DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no info": (without(lambda r: r / INFO), "", "is not a LeRobot dataset"),
    "info cut": (cut(lambda r: r / INFO), INFO, "cannot be read"),
    "info without features": (
        lambda r: edit_info(r, lambda info: info.pop("features")),
        INFO,
        "has no features",
    ),
    "number of frames": (said("total_frames", 60), INFO, "says 60 frames, .* adds up to 63"),
    "number of episodes": (said("total_episodes", 6), INFO, "says 6 episodes, .* lists 5"),
    "no rate": (said("fps", 0), INFO, "says fps=0"),
    "no tasks": (without(lambda r: r / "meta/tasks.parquet"), "meta/tasks.parquet", "is missing"),
    "episodes' metadata cut": (cut(episodes_file), META, "cannot be read"),
    "no episodes' metadata": (without(episodes_file), META, "holds no parquet file"),
    "an episode's metadata lost": (
        rows(lambda row: np.delete(row, 2), episodes_file),
        META,
        "lists episode 3 where episode 2 should stand",
    ),
    "an episode elsewhere": (
        column("dataset_from_index", at(1, 11), episodes_file),
        META,
        r"puts episode 1 at frames 11\.\.19, not 12\.\.19",
    ),
    "an episode over another in a video": (
        column(f"videos/{IMAGE_KEYS[0]}/from_timestamp", at(1, 0.1), episodes_file),
        VIDEO,
        "should hold episode 1 from 0.100 s on, before episode 0 ends at 0.600 s",
    ),
    "no data": (without(data_file), DATA, r"is missing \(episodes 0 to 4"),
    "data cut": (cut(data_file), DATA, "is cut or damaged"),
    "data cut to nothing": (cut(data_file, 0), DATA, "is cut or damaged"),
    "rows lost": (
        rows(lambda row: np.delete(row, range(20, 24))),
        DATA,
        r"holds 59 frames, meta/ says 63 \(episode 2 has 11 of 15\)",
    ),
    "rows doubled": (
        rows(lambda row: [*row, *row[-9:]]),
        DATA,
        r"holds 72 frames, meta/ says 63 \(episode 4 has 29 of 20\)",
    ),
    "rows shuffled": (
        rows(lambda row: np.random.default_rng(0).permutation(row)),
        DATA,
        r"has episode_index=\d in row 0, 0 belongs there \(\d+ rows are shuffled",
    ),
    "episodes swapped": (
        rows(lambda row: swapped),
        DATA,
        r"has episode_index=1 in row 0, 0 belongs there \(\d+ rows",
    ),
    "frames of an episode swapped": (
        rows(lambda row: [1, 0, *row[2:]]),
        DATA,
        r"has frame_index=1 in row 0, 0 belongs there \(2 rows",
    ),
    "text for numbers": (
        column("next.reward", lambda values: pa.array([str(v) for v in values])),
        DATA,
        "holds string in column next.reward, meta/info.json declares float32",
    ),
    "text for vectors": (
        column("action", lambda values: pa.array([[str(x) for x in v] for v in values])),
        DATA,
        "holds string in column action",
    ),
    "action width": (feature("action", [7]), DATA, "holds 2 values a frame in column action, .* 7"),
    "action width, lists": (
        lambda r: [
            column("action", lambda values: pa.array(values, pa.list_(pa.float32())))(r),
            feature("action", [7])(r),
        ],
        DATA,
        "holds 2 values a frame in column action, .* 7",
    ),
    "state width": (feature("observation.state", [9]), DATA, "holds 3 values a frame in column ob"),
    "state width that changes": (
        column("observation.state", ragged),
        DATA,
        "holds 1 values in row 3 of column observation.state",
    ),
    "not a number": (
        column("observation.state", at(5, [0.0, np.nan, 0.0])),
        DATA,
        "holds nan in row 5 of column observation.state",
    ),
    "infinite": (column("action", at(6, [np.inf, 0.0])), DATA, "holds inf in row 6 of column ac"),
    "empty cells": (
        column("next.success", at(7, None)),
        DATA,
        "has 1 empty cells in column next.success",
    ),
    "column lost": (column("action", lambda values: None), DATA, "has no column action, meta/"),
    "unknown task": (
        column("task_index", at(9, 7)),
        DATA,
        "has task_index=7 in row 9, meta/ lists 2 tasks",
    ),
    "time of another frame": (
        column("timestamp", at(8, 0.35)),
        DATA,
        "has timestamp=0.35 in row 8, frame 8 at 20.0 fps: write 0.400",
    ),
    "data of no episode": (
        lambda r: shutil.copy(data_file(r), r / "data/chunk-000/file-001.parquet"),
        "data/chunk-000/file-001.parquet",
        "is of no episode",
    ),
    "no video": (without(video), VIDEO, "is missing"),
    "video cut": (cut(video, 0.9), VIDEO, r"is cut: \d+ bytes of \d+"),
    "video cut to its head": (cut(video, 0.01), VIDEO, "cannot be read|is cut"),
    "no video at all": (lambda r: video(r).write_bytes(b"x" * 99), VIDEO, "cannot be read"),
    "picture size": (
        feature(IMAGE_KEYS[0], [48, 64, 3]),
        VIDEO,
        "holds pictures of 32 x 32, meta/info.json declares 48 x 64",
    ),
    "another video": (
        lambda r: shutil.copy(video(r, -1), video(r, 0)),
        VIDEO,
        r"holds \d+ frames, episode \d needs \d+",
    ),
    "video's rate": (another_rate, VIDEO, "has 30 frames a second, meta/info.json says 20"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(copy: Path, name: str) -> None:
    damage, file, message = DAMAGES[name]
    damage(copy)
    findings = [str(finding) for finding in check_dataset(copy)]
    assert findings, "taken for sound"
    assert findings[0].startswith(str(copy / file)), findings
    with pytest.raises(DeasError, match=message) as error:
        require_sound(copy)
    text = str(error.value)
    assert "\n" not in text and text.startswith(findings[0]) and ": " in text
    # One cause is not told many times: a wrong shape is told once a file at most.
    assert len(findings) <= 1 + len(list((copy / "videos" / IMAGE_KEYS[0]).glob("*/*.mp4")))


def test_sound_datasets_are_sound(recorded: Path, repo_root: Path) -> None:
    assert check_dataset(recorded) == []
    assert check_dataset(repo_root / "deas_vla/assets/lift_demos") == []


def test_a_real_dataset_of_format_2_is_sound(shared_dir: Path) -> None:
    assert check_dataset(shared_dir / "data/robot_sim.PickNPlace") == []


def test_the_checker_needs_no_framework(recorded: Path) -> None:
    """Checking takes seconds, importing a framework would take longer."""
    code = (
        "import sys; from deas_vla.data.check import require_sound; require_sound(sys.argv[1]);"
        "assert not {'torch', 'lerobot', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(recorded)], check=True)
