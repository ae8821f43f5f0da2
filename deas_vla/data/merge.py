"""One dataset out of several: demonstrations and rollouts, as the paper trains on them.

python -m deas_vla.data.merge --demos='[DEMOS]' --rollouts='[ROLLOUTS]' --output=MERGED

The critic learns from everything in it; `recipes/finetune_groot.py --policy.episodes=successful`
clones the demonstrations and the rollouts that succeeded (filtered behaviour cloning).
LeRobot's own `aggregate_datasets` does the merging; here are the columns made equal first.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.cli import run
from deas_vla.data.check import require_sound
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.data.layout import DatasetLayout, common_assets, open_dataset
from deas_vla.data.recording import quiet_lerobot, staging_directory, write_assets
from deas_vla.errors import DeasError

# Appending to a video rewrites it, so many small datasets are joined in groups first.
_GROUP = 25
_SCALAR: dict[str, Any] = {"shape": (1,), "names": None}


@dataclass
class MergeConfig:
    """What to merge.

    Attributes:
        demos: Directories of demonstrations. One without `next.success` and `next.reward` counts
            as solved at the last step of each episode.
        rollouts: Directories of rollouts; they must say which succeeded.
        output: Directory of the new dataset.
        repo_id: Its `user/name`.
    """

    output: Path
    demos: list[Path] = field(default_factory=list)
    rollouts: list[Path] = field(default_factory=list)
    repo_id: str = "local/merged"


def main(config: MergeConfig) -> None:
    sources = [*config.demos, *config.rollouts]
    if not sources:
        raise DeasError("nothing to merge: name datasets with --demos and --rollouts")
    merge(sources, config.output, config.repo_id, solved=config.demos)
    table = load_episodes(config.repo_id, config.output)
    print(
        f"{table.num_episodes} episodes, {int(table.episode_success.sum())} successful, "
        f"{table.num_frames} frames in {config.output}"
    )


def merge(
    sources: Sequence[Path], output: Path, repo_id: str, *, solved: Sequence[Path] = ()
) -> Path:
    """Write a new dataset of all episodes of `sources`, in their order.

    Outcomes, seeds and revisions that a source lacks are filled in; any other column that not all
    sources have is left out. Whose kitchens they are of stays said, `mixed` where they differ.

    Args:
        sources: LeRobotDatasets v3 of one robot, with the same cameras, states and actions.
        output: Directory of the new dataset; must not exist.
        repo_id: Its `user/name`.
        solved: Sources whose episodes all succeed, where they do not say so themselves.

    Raises:
        DeasError: A damaged source, sources that do not fit together, by field; `output` exists.
    """
    for source in sources:
        require_sound(source)
    layouts = [open_dataset(repo_id, source) for source in sources]
    shared = _shared_features(layouts)
    staging = staging_directory(output)
    try:
        with quiet_lerobot():
            fitting = [
                _fit(layout, shared, staging / f"fit{k}", layout.root in map(Path, solved))
                for k, layout in enumerate(layouts)
            ]
            joined = _join(fitting, staging, repo_id)
        if joined.parent != staging:  # a single source that needed nothing
            shutil.copytree(joined, staging / "copy")
            joined = staging / "copy"
        write_assets(joined, common_assets(layouts))
        joined.replace(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def _join(roots: Sequence[Path], staging: Path, repo_id: str, level: int = 0) -> Path:
    from lerobot.datasets.aggregate import aggregate_datasets

    if len(roots) == 1:
        return roots[0]
    joined = []
    for k in range(0, len(roots), _GROUP):
        group = list(roots[k : k + _GROUP])
        target = staging / f"join{level}_{k}"
        aggregate_datasets([repo_id] * len(group), repo_id, group, target)
        joined.append(target)
        for root in group:
            if root.parent == staging:  # disk is needed for one level at a time
                shutil.rmtree(root)
    return _join(joined, staging, repo_id, level + 1)


def _shared_features(layouts: Sequence[DatasetLayout]) -> dict[str, Any]:
    """Features that the merged dataset has, ours included.

    Raises:
        DeasError: Sources of different robots, rates, cameras or dimensions.
    """
    first = layouts[0]
    for layout in layouts[1:]:
        facts: list[tuple[str, Any, Any]] = [
            ("fps", first.fps, layout.fps),
            ("robot_type", first.info.get("robot_type"), layout.info.get("robot_type")),
            ("cameras", sorted(first.image_keys), sorted(layout.image_keys)),
        ]
        for key in ("observation.state", "action", *first.image_keys):
            ours, theirs = (_facts(each.info["features"].get(key, {})) for each in (first, layout))
            facts.append((key, ours, theirs))
        for name, here, there in facts:
            if here != there:
                raise DeasError(
                    f"datasets {first.root} and {layout.root} differ in {name} ({here} and "
                    f"{there}): merge datasets of one robot, one rate and the same cameras"
                )
    every = [set(layout.info["features"]) for layout in layouts]
    names = set.intersection(*every) | _OURS.keys()
    return {name: feature for name, feature in _features(layouts).items() if name in names}


def _features(layouts: Sequence[DatasetLayout]) -> dict[str, Any]:
    merged = dict(_OURS)
    for layout in layouts:
        merged |= {k: v for k, v in layout.info["features"].items() if k not in merged}
    return merged


def _facts(feature: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must agree of a feature: kind, shape and the names of a vector's dimensions."""
    names = feature.get("names") if feature.get("dtype") not in ("video", "image") else None
    return feature.get("dtype"), tuple(feature.get("shape", ())), names


_OURS: dict[str, dict[str, Any]] = {
    "next.reward": {"dtype": "float32", **_SCALAR},
    **{
        name: {"dtype": "bool", **_SCALAR}
        for name in ("next.done", "next.success", "next.terminated", "next.truncated")
    },
    "episode_seed": {"dtype": "int64", **_SCALAR},
    "policy_revision": {"dtype": "string", **_SCALAR},
}


def _fit(layout: DatasetLayout, shared: Mapping[str, Any], target: Path, solved: bool) -> Path:
    """A copy of a source with the shared features alone; the source itself where it has them."""
    have = layout.info["features"]
    missing = [name for name in shared if name not in have]
    surplus = [name for name in have if name not in shared]
    if not missing and not surplus:
        return layout.root
    from lerobot.datasets import LeRobotDataset
    from lerobot.datasets.dataset_tools import modify_features

    outcomes = _outcomes(layout, solved) if missing else {}
    dataset = LeRobotDataset(layout.repo_id, layout.root, video_backend="pyav")
    modify_features(
        dataset,
        add_features={name: (outcomes[name], _OURS[name]) for name in missing} or None,
        remove_features=surplus or None,
        output_dir=target,
        repo_id=layout.repo_id,
    )
    return target


def _outcomes(layout: DatasetLayout, solved: bool) -> dict[str, NDArray[Any]]:
    """Our columns for every frame of a source, (T,) each."""
    if not {"next.success", "next.reward"} & layout.info["features"].keys():
        if not solved:
            raise DeasError(
                f"dataset {layout.root} has neither next.success nor next.reward: list it under "
                "--demos if all its episodes succeed"
            )
        index = layout.read_columns(["episode_index"], None)["episode_index"].to_numpy()
        last = np.append(index[1:] != index[:-1], True)
        flags = {"next.done": last, "next.success": last, "next.terminated": last}
        flags |= {"next.truncated": np.zeros_like(last)}
        return flags | _provenance(len(last)) | {"next.reward": last.astype(np.float32)}
    table: EpisodeTable = load_episodes(layout.repo_id, layout.root)
    reward = table.dataset_reward
    return {
        "next.reward": table.success.astype(np.float32) if reward is None else reward,
        "next.done": table.terminated | table.truncated,
        "next.success": table.success,
        "next.terminated": table.terminated,
        "next.truncated": table.truncated,
    } | _provenance(table.num_frames)


def _provenance(frames: int) -> dict[str, NDArray[Any]]:
    return {
        "episode_seed": np.full(frames, -1, np.int64),
        "policy_revision": np.full(frames, "", dtype=object),
    }


if __name__ == "__main__":
    run(main, MergeConfig)
