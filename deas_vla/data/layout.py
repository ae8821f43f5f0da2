"""Where the files of a LeRobotDataset v3 lie and what its metadata says.

Reads JSON and parquet directly: opening a dataset through `lerobot` costs about ten seconds of
imports and a second copy of every column in the `datasets` cache, and decodes video on access.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
from numpy.typing import NDArray

from deas_vla.digests import file_probe
from deas_vla.errors import DeasError

ORIGIN = Path("meta/origin.json")  # whose models the scenes are of; other tools pass over it


@dataclass(frozen=True)
class DatasetLayout:
    """Metadata of one LeRobotDataset v3 on disk.

    Attributes:
        repo_id: `user/name`, used in messages and provenance.
        root: directory that holds `meta/`, `data/` and `videos/`.
        info: `meta/info.json`.
        tasks: instruction strings, position = `task_index`.
        episodes: one row per episode (index `episode_index`), without statistics: length, video
            file indices and `from_timestamp` of each camera.
    """

    repo_id: str
    root: Path
    info: dict[str, Any]
    tasks: tuple[str, ...]
    episodes: pd.DataFrame

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.info["fps"])

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Cameras, in the order of `info.json`, as videos or as images."""
        features = self.info["features"]
        return tuple(k for k, v in features.items() if v["dtype"] in ("video", "image"))

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera's pictures, pixels."""
        return {key: picture_size(self.info["features"][key]) for key in self.image_keys}

    @property
    def assets(self) -> str:
        """Whose models the scenes are of (`lite`, `robocasa`, `mixed`); empty where not said."""
        origin = self.root / ORIGIN
        return str(json.loads(origin.read_text())["assets"]) if origin.is_file() else ""

    def is_video(self, image_key: str) -> bool:
        """Whether a camera is stored as video (else its frames are images in the parquet files)."""
        return bool(self.info["features"][image_key]["dtype"] == "video")

    def video_path(self, image_key: str, episode: int) -> Path:
        """File that holds an episode's frames of one camera, among those of other episodes."""
        row = self.episodes.loc[episode]
        return self.root / self.info["video_path"].format(
            video_key=image_key,
            chunk_index=int(row[f"videos/{image_key}/chunk_index"]),
            file_index=int(row[f"videos/{image_key}/file_index"]),
        )

    def read_columns(self, columns: Sequence[str], episodes: Sequence[int] | None) -> pa.Table:
        """Reads parquet columns of all or some episodes, in frame order.

        Args:
            columns: names; those that the dataset lacks are left out.
            episodes: values of `episode_index`, or None for all.
        """
        files = sorted(str(path) for path in (self.root / "data").glob("*/*.parquet"))
        dataset = pads.dataset(files, format="parquet")
        present = [name for name in columns if name in dataset.schema.names]
        chosen = None if episodes is None else pads.field("episode_index").isin(list(episodes))
        return dataset.to_table(columns=present, filter=chosen)

    def fingerprint(self) -> str:
        """sha256 over the dataset's content, as hexadecimal.

        `info.json`, the tasks and every data file count in full; a video counts by its size and
        its first and last 64 KiB, which keeps the cost far below decoding it.
        """
        digest = hashlib.sha256()
        files = [self.root / "meta/info.json", self.root / "meta/tasks.parquet"]
        files += sorted((self.root / "data").glob("*/*.parquet"))
        for path in files:
            _update(digest, path.relative_to(self.root), path.read_bytes())
        for path in sorted((self.root / "videos").glob("*/*/*.mp4")):
            _update(digest, path.relative_to(self.root), file_probe(path))
        return digest.hexdigest()


def open_dataset(repo_id: str, root: str | Path | None = None) -> DatasetLayout:
    """Finds a LeRobotDataset v3 and reads its metadata.

    Args:
        repo_id: `user/name`.
        root: the dataset's directory. None looks in LeRobot's own home and asks the Hub if it is
            not there.

    Raises:
        DeasError: the directory is missing, is no LeRobot dataset, is of version 2.x, or is empty.
    """
    path = resolve_root(repo_id, root)
    info = _read_info(path)
    tasks = path / "meta/tasks.parquet"
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    has_data = any((path / "data").glob("*/*.parquet"))
    if info.get("total_episodes", 0) == 0 or not (files and has_data and tasks.is_file()):
        raise DeasError(f"dataset {path} is empty: record or copy at least one episode into it")
    return DatasetLayout(
        repo_id=repo_id,
        root=path,
        info=info,
        tasks=_read_tasks(tasks),
        episodes=_read_episodes(files),
    )


def common_assets(layouts: Sequence[DatasetLayout]) -> str:
    """Whose models all scenes are of, `mixed` where they differ; empty where one does not say."""
    whose = {layout.assets for layout in layouts}
    if "" in whose:
        return ""
    return whose.pop() if len(whose) == 1 else "mixed"


def picture_size(feature: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of a camera by its entry in `info.json`: (3, H, W) or (H, W, 3)."""
    names = feature.get("names") or [""]
    first = 1 if "channel" in names[0] else 0
    height, width = feature["shape"][first : first + 2]
    return int(height), int(width)


def vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """A parquet column of equally long lists as (T, D), or of scalars as (T,)."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(array), -1)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def resolve_root(repo_id: str, root: str | Path | None) -> Path:
    """Directory of a dataset: `root`, or where LeRobot keeps `repo_id`, fetched if need be.

    Raises:
        DeasError: it is not there.
    """
    if root is not None:
        path = Path(root)
        if not path.is_dir():
            raise DeasError(
                f"dataset root {path} does not exist: give the directory of a LeRobot dataset, "
                f"or leave it out to fetch {repo_id} from the Hub"
            )
        return path
    from lerobot.utils.constants import HF_LEROBOT_HOME

    path = Path(HF_LEROBOT_HOME) / repo_id
    return path if (path / "meta/info.json").is_file() else _download(repo_id)


def _download(repo_id: str) -> Path:
    from lerobot.datasets import LeRobotDataset

    try:
        return Path(LeRobotDataset(repo_id).root)
    except Exception as error:  # whatever the Hub client raises becomes one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeasError(
            f"dataset {repo_id} is neither local nor on the Hub ({reason}): "
            "give --dataset.root, or log in with `hf auth login`"
        ) from error


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.is_file():
        raise DeasError(
            f"{root} is not a LeRobot dataset (no meta/info.json): "
            "give the directory that holds meta/, data/ and videos/"
        )
    try:
        info: dict[str, Any] = json.loads(path.read_text())
        version = str(info["codebase_version"])
    except (json.JSONDecodeError, KeyError) as error:
        raise DeasError(f"{path} is damaged ({error}): restore it from the dataset") from error
    if version.startswith("v2"):
        raise DeasError(
            f"dataset {root} is in LeRobot format {version}, v3.0 is needed: convert a copy with "
            f"`python -m deas_vla.data.convert --root {root} --output_root {root}_v30` "
            "(it runs lerobot.scripts.convert_dataset_v21_to_v30)"
        )
    if not version.startswith("v3"):
        raise DeasError(
            f"dataset {root} is in LeRobot format {version}, v3.0 is needed: update deas_vla"
        )
    return info


def _read_tasks(path: Path) -> tuple[str, ...]:
    table = pd.read_parquet(path).sort_values("task_index")
    return tuple(str(task) for task in table.index)


def _read_episodes(files: Sequence[Path]) -> pd.DataFrame:
    dataset = pads.dataset([str(path) for path in files], format="parquet")
    names = [name for name in dataset.schema.names if not name.startswith("stats/")]
    return dataset.to_table(columns=names).to_pandas().set_index("episode_index").sort_index()


def _update(digest: "hashlib._Hash", name: Path, content: bytes) -> None:
    digest.update(name.as_posix().encode())
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)
