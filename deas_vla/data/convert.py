"""Datasets of LeRobot's older formats (2.0 and 2.1) as LeRobotDataset v3.

    python -m deas_vla.data.convert --root DIR --output_root NEW_DIR

LeRobot's own converter does the work from 2.1 to 3.0. It cannot read 2.0, replaces the dataset in
place, and trusts `timestamp` to be video time; this module brings a copy to what it expects.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from deas_vla.cli import run
from deas_vla.data.check import check_dataset, require_sound
from deas_vla.data.layout import vectors
from deas_vla.errors import DeasError

_VERSIONS = ("v2.0", "v2.1")
_MANY = 1000  # episodes from which on a progress bar tells how far it is


@dataclass
class ConvertConfig:
    """Where from and where to.

    Attributes:
        root: directory of a dataset in format 2.0 or 2.1; it is not changed.
        output_root: directory of the new dataset; must not exist.
    """

    root: Path
    output_root: Path


def convert_v2(root: str | Path, output_root: str | Path) -> Path:
    """Converts a dataset of format 2.0 or 2.1 to a LeRobotDataset v3, offline.

    Frames, actions, rewards and tasks stay as they are. `timestamp` becomes `frame_index / fps`
    where it is not (some exporters start it one frame late, which would read every image one frame
    late); statistics per episode are computed where they are missing, and dimensions without names
    get those of GR00T's `modality.json`, which is kept. For 2.0, video features without files are
    dropped.

    Args:
        root: directory of the old dataset; it is not changed.
        output_root: directory of the new one; put into place when it is complete.

    Returns:
        `output_root`.

    Raises:
        DeasError: `root` is no such dataset or its files are not what its metadata say,
            `output_root` exists, or LeRobot's converter fails.
    """
    source, output = Path(root), Path(output_root)
    info = _old_info(source)
    if output.exists():
        raise DeasError(f"output_root {output} exists: choose another directory or remove it")
    require_sound(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as staging:
        copy = Path(staging) / "dataset"
        _copy_without_videos(source, copy)
        _upgrade(copy, info)
        _run_lerobot_converter(source, copy)
        for extra in sorted((source / "meta").glob("*.json")):  # modality.json, embodiment.json
            if not (copy / "meta" / extra.name).exists():
                shutil.copyfile(extra, copy / "meta" / extra.name)
        for finding in check_dataset(copy)[:1]:
            raise DeasError(
                f"{source} would not convert to a sound dataset ({finding.what} in "
                f"{finding.file.relative_to(copy)}): {finding.remedy}"
            )
        os.replace(copy, output)
    return output


def _run_lerobot_converter(source: Path, copy: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    try:
        convert_dataset(repo_id=f"local/{source.name}", root=copy, push_to_hub=False)
    except Exception as error:  # whatever LeRobot raises becomes one line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeasError(
            f"LeRobot could not convert {source} ({reason}): check its meta/ against its files"
        ) from error


def _old_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.is_file():
        raise DeasError(
            f"{root} is not a LeRobot dataset (no meta/info.json): "
            "give the directory that holds meta/, data/ and videos/"
        )
    info: dict[str, Any] = json.loads(path.read_text())
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise DeasError(
            f"dataset {root} is in LeRobot format {version}: only {' and '.join(_VERSIONS)} "
            "need converting"
        )
    return info


def _copy_without_videos(source: Path, copy: Path) -> None:
    """Copies metadata and tables; videos, which nobody changes, are only linked."""
    for folder in ("meta", "data"):
        for path in sorted((source / folder).rglob("*")):
            if path.is_file():
                target = copy / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    if (source / "videos").is_dir():
        (copy / "videos").symlink_to((source / "videos").resolve(), target_is_directory=True)


def _upgrade(root: Path, info: dict[str, Any]) -> None:
    """Brings a copy of format 2.0 or 2.1 to what LeRobot's converter expects, in place."""
    from lerobot.utils.constants import DEFAULT_FEATURES

    fps, old = float(info["fps"]), info["codebase_version"] == "v2.0"
    features = info["features"]
    if old:
        features = {
            name: feature
            for name, feature in features.items()
            if feature["dtype"] != "video" or any((root / "videos").glob(f"*/{name}/*.mp4"))
        }
        features |= {name: dict(feature) for name, feature in DEFAULT_FEATURES.items()}
    features = _named(features, root / "meta/modality.json")
    videos = [name for name, feature in features.items() if feature["dtype"] == "video"]
    stats_file = root / "meta/episodes_stats.jsonl"
    wanted = old or not stats_file.is_file()
    stats: list[dict[str, Any]] = []
    first_index = 0
    paths = sorted((root / "data").glob("*/*.parquet"))
    for episode, path in enumerate(tqdm(paths, "tables", disable=len(paths) < _MANY)):
        rows = pq.read_metadata(path).num_rows
        if old or wanted or not _on_time(path, fps):
            table = _v21_table(pq.read_table(path), features, fps, first_index)
            pq.write_table(table, path)
            if wanted:
                numbers = _episode_stats(root, table, episode, videos)
                stats.append({"episode_index": episode, "stats": numbers})
        first_index += rows
    info = info | {
        "codebase_version": "v2.1",
        "features": features,
        "total_chunks": info.get("total_chunks", 1),
        "total_videos": len(videos) * len(paths),
        "video_path": info.get("video_path") if videos else None,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    if wanted:
        stats_file.write_text("".join(json.dumps(row) + "\n" for row in stats))


def _on_time(path: Path, fps: float) -> bool:
    """Whether a file's `timestamp` is that of its frames."""
    time = vectors(pq.read_table(path, columns=["timestamp"])["timestamp"]).reshape(-1)
    return bool((np.abs(time - np.arange(len(time)) / fps) < 1e-4).all())


def _named(features: dict[str, Any], modality: Path) -> dict[str, Any]:
    """Features whose nameless states and actions are named by their parts of `modality.json`."""
    if not modality.is_file():
        return features
    parts = json.loads(modality.read_text(encoding="utf-8"))
    named = dict(features)
    for name, kind in (("observation.state", "state"), ("action", "action")):
        feature = features.get(name, {})
        size = int(np.prod(feature.get("shape", (0,))))
        names = [""] * size
        for part, span in parts.get(kind, {}).items():
            if span.get("original_key", name) == name:
                width = span["end"] - span["start"]
                names[span["start"] : span["end"]] = [
                    f"{part}.{axis}".rstrip(".") for axis in _axes(part, width)
                ]
        if not feature.get("names") and len(names) == size and all(names):
            named[name] = feature | {"names": names}
    return named


def _axes(part: str, width: int) -> list[str]:
    """Names of a part's dimensions, as RoboCasa means them."""
    if width == 1:
        return [""]
    if part == "base_motion" and width == 4:
        return ["x", "y", "yaw", "torso"]
    if "rotation" in part and width == 4:
        return list("xyzw")
    if ("rotation" in part or "position" in part) and width == 3:
        return list("xyz")
    return [str(axis) for axis in range(width)]


def _v21_table(table: pa.Table, features: dict[str, Any], fps: float, first_index: int) -> pa.Table:
    """An episode's declared columns, with LeRobot's counters as its own recorder writes them."""
    frame = np.arange(table.num_rows, dtype=np.int64)
    counters = {
        "frame_index": frame,
        "timestamp": (frame / fps).astype(np.float32),
        "index": first_index + frame,
    }
    columns = {name: table[name] for name in table.column_names if name in features}
    return pa.table(columns | {name: pa.array(values) for name, values in counters.items()})


def _episode_stats(
    root: Path, table: pa.Table, episode: int, videos: list[str]
) -> dict[str, dict[str, Any]]:
    """Statistics of one episode in LeRobot's own definition, as JSON types."""
    from lerobot.datasets.compute_stats import get_feature_stats

    stats: dict[str, dict[str, NDArray[Any]]] = {}
    for name in table.column_names:
        values = vectors(table[name])
        stats[name] = get_feature_stats(values, axis=0, keepdims=values.ndim == 1)
    for name in videos:
        path = next((root / "videos").glob(f"*/{name}/episode_{episode:06d}.mp4"))
        images = np.stack(list(_sampled_images(path, table.num_rows)))  # (N, 3, h, w)
        image_stats = get_feature_stats(images, axis=(0, 2, 3), keepdims=True)
        stats[name] = {
            key: value if key == "count" else value[0] / 255.0 for key, value in image_stats.items()
        }
    return {
        name: {key: np.asarray(value).tolist() for key, value in feature.items()}
        for name, feature in stats.items()
    }


def _sampled_images(path: Path, length: int) -> Iterator[NDArray[np.uint8]]:
    """The frames that LeRobot samples for statistics, uint8 (3, h, w), decoded in one pass."""
    from lerobot.datasets.compute_stats import auto_downsample_height_width, sample_indices

    wanted = set(sample_indices(length))
    with av.open(str(path)) as container:
        for step, frame in enumerate(container.decode(video=0)):
            if step in wanted:
                image = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
                yield auto_downsample_height_width(image)


def main(config: ConvertConfig) -> None:
    """Command line of `convert_v2`."""
    print(f"converted {config.root} to {convert_v2(config.root, config.output_root)}")


if __name__ == "__main__":
    run(main, ConvertConfig)
