"""A raw GR00T N1.7 checkpoint: where it is, what it says of itself, and what fits it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deas_vla.errors import DeasError

NO_REMOTE_CODE = {"trust_remote_code": False}


def read_config(root: Path, path: str | Path) -> dict[str, Any]:
    """``config.json`` of a raw N1.7 checkpoint; DeasError for any other kind."""
    from lerobot.policies.groot.configuration_groot import is_raw_groot_n1_7_checkpoint

    if not is_raw_groot_n1_7_checkpoint(root):
        raise DeasError(
            f"policy checkpoint '{path}' is not a raw GR00T N1.7 checkpoint: its config.json must "
            "say model_type Gr00tN1d7 (such as nvidia/GR00T-N1.7-3B)"
        )
    return json.loads((root / "config.json").read_text())


def tensor_names(root: Path) -> set[str]:
    """Names of all weights that lie in a checkpoint's safetensors files."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in root.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names.update(weights.keys())
    return names


def _modalities(root: Path, embodiment: str) -> dict[str, Any]:
    file = root / "processor_config.json"
    kwargs = json.loads(file.read_text())["processor_kwargs"] if file.exists() else {}
    return kwargs.get("modality_configs", {}).get(embodiment, {})


def statistics(root: Path, embodiment: str) -> dict[str, Any]:
    """The checkpoint's ``{modality: {group: {"min": [...], ...}}}``; empty where it has none."""
    file = root / "statistics.json"
    return json.loads(file.read_text()).get(embodiment, {}) if file.exists() else {}


def named_groups(root: Path, embodiment: str, modality: str) -> tuple[tuple[str, int], ...]:
    """Names and widths of a state's or an action's parts, in the vector's order; () without any."""
    known = statistics(root, embodiment).get(modality, {})
    names = _modalities(root, embodiment).get(modality, {}).get("modality_keys") or list(known)
    if not all(name in known for name in names):
        return ()
    return tuple((name, len(known[name]["min"])) for name in names)


def camera_order(root: Path, embodiment: str, image_keys: tuple[str, ...]) -> tuple[str, ...]:
    """The checkpoint's camera order, or alphabetical where it has none (LeRobot's processor)."""
    names = _modalities(root, embodiment).get("video", {}).get("modality_keys", [])
    ordered = tuple(f"observation.images.{name}" for name in names)
    return ordered or tuple(sorted(image_keys))


def valid_horizon(root: Path, embodiment: str, model_horizon: int) -> int:
    """Steps H that the embodiment has, of the ``model_horizon`` that the head predicts."""
    indices = _modalities(root, embodiment).get("action", {}).get("delta_indices", [])
    return min(len(indices) or model_horizon, model_horizon)


def check_fit(
    root: Path,
    config: Mapping[str, Any],
    embodiment: str,
    image_keys: tuple[str, ...],
    state_dim: int,
    action_dim: int,
) -> None:
    """DeasError for dimensions or cameras that the checkpoint was not made for.

    Also for one that looks at several pictures of a camera: an observation has one.
    """
    history = _modalities(root, embodiment).get("video", {}).get("delta_indices", [0])
    if len(history) > 1:
        raise DeasError(
            f"embodiment '{embodiment}' of the checkpoint looks at {len(history)} pictures of each "
            f"camera (delta_indices {history}), an observation holds one: use an embodiment with "
            "one picture, or finetune under --policy.embodiment=new_embodiment"
        )
    for name, dim in (("state", state_dim), ("action", action_dim)):
        most = config.get(f"max_{name}_dim", 132)
        if dim > most:
            raise DeasError(
                f"{name} has {dim} dimensions but the checkpoint takes at most {most}: "
                f"use a dataset with fewer or another checkpoint"
            )
        groups = statistics(root, embodiment).get(name, {})
        known = sum(len(group["min"]) for group in groups.values())
        if known and known != dim:
            raise DeasError(
                f"{name} has {dim} dimensions but the checkpoint's embodiment '{embodiment}' has "
                f"{known}: use its layout, or --policy.embodiment=new_embodiment"
            )
    wanted = camera_order(root, embodiment, image_keys)
    missing = sorted(set(wanted) - set(image_keys))
    if missing:
        raise DeasError(
            f"camera '{missing[0]}' of embodiment '{embodiment}' is not in {sorted(image_keys)}: "
            "rename the dataset's cameras, or --policy.embodiment=new_embodiment"
        )
