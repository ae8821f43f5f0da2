"""A checkpoint in LeRobot's own layout: what it says of itself, what fits it, its weights."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deas_vla.errors import DeasError

# Embodiment tags: such a checkpoint is of one robot, whose statistics it has.
OWN, NEW = "checkpoint", "new_embodiment"
_EMPTY = "observation.images.empty_camera_"  # LeRobot's, black and masked
_UNREAD = "lm_head.weight"  # text is never generated


@dataclass(frozen=True)
class Robot:
    """Whose observations and actions.

    Attributes:
        embodiment: ``checkpoint`` for the robot that it was trained on, with its own statistics;
            ``new_embodiment`` for one that is normalised by ``dataset_stats``.
        image_keys: The dataset's or environment's ``observation.images.*`` keys.
        state_dim: Proprioceptive dimensions S.
        action_dim: Action dimensions A.
        dataset_stats: LeRobot's per-key statistics.
    """

    embodiment: str
    image_keys: tuple[str, ...]
    state_dim: int
    action_dim: int
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None


def read_config(root: Path, path: str | Path, family: str, example: str) -> Any:
    """LeRobot's configuration in ``root``; DeasError for another kind of checkpoint.

    Args:
        root: Directory of the checkpoint.
        path: What the user called it.
        family: The type that it must be of.
        example: A checkpoint of that type on the Hub.
    """
    from lerobot.configs.policies import PreTrainedConfig

    try:
        said = json.loads((root / "config.json").read_text(encoding="utf-8"))
        found = said.get("type") or said.get("model_type")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != family:
        raise DeasError(
            f"policy checkpoint '{path}' is {found or 'of no known type'}, not LeRobot's {family}: "
            f"use such as {example}, or another --policy.family"
        )
    try:
        return PreTrainedConfig.from_pretrained(root)
    except Exception as error:  # draccus' errors have no common base
        said = " ".join(str(error).split())[:200]
        raise DeasError(
            f"config.json of policy checkpoint '{path}' cannot be read by this LeRobot ({said}): "
            "use a checkpoint of LeRobot 0.6"
        ) from error


def cameras(config: Any, robot: Robot) -> tuple[str, ...]:
    """The robot's cameras in the network's order: the checkpoint's, else alphabetical."""
    own = tuple(key for key in config.image_features if not key.startswith(_EMPTY))
    if robot.embodiment == OWN or set(own) == set(robot.image_keys):
        return own
    return tuple(sorted(robot.image_keys))


def check_fit(config: Any, robot: Robot, path: str | Path) -> None:
    """DeasError for dimensions, cameras or statistics that do not fit the checkpoint."""
    if robot.embodiment not in (OWN, NEW):
        raise DeasError(
            f"embodiment '{robot.embodiment}' is unknown: a checkpoint of LeRobot's {config.type} "
            f"is of one robot, use {OWN} (its own statistics) or {NEW} (the dataset's)"
        )
    if robot.embodiment == NEW and robot.dataset_stats is None:
        raise DeasError(
            f"checkpoint '{path}' has no statistics for embodiment '{NEW}': use "
            f"--policy.embodiment={OWN}, or a --bundle that was trained on your dataset"
        )
    if robot.embodiment == NEW and getattr(config, "use_relative_actions", False):
        raise DeasError(
            f"checkpoint '{path}' predicts actions relative to the state, whose statistics no "
            f"dataset has: use --policy.embodiment={OWN}"
        )
    if getattr(config, "adapt_to_pi_aloha", False):
        raise DeasError(
            f"checkpoint '{path}' converts Aloha's joints (adapt_to_pi_aloha), which is not "
            "supported: use one without"
        )
    known = {"state": config.robot_state_feature, "action": config.action_feature}
    for name, dim in (("state", robot.state_dim), ("action", robot.action_dim)):
        most = getattr(config, f"max_{name}_dim")
        if dim > most:
            raise DeasError(
                f"{name} has {dim} dimensions but the checkpoint takes at most {most}: use a "
                "dataset with fewer or another checkpoint"
            )
        own = known[name]
        if robot.embodiment == OWN and (own is None or own.shape[0] != dim):
            raise DeasError(
                f"{name} has {dim} dimensions but the checkpoint's robot has "
                f"{0 if own is None else own.shape[0]}: use its layout, or "
                f"--policy.embodiment={NEW}"
            )
    wanted = cameras(config, robot)
    missing = sorted(set(wanted) - set(robot.image_keys))
    if missing or not wanted:
        raise DeasError(
            f"camera '{missing[0] if missing else 'observation.images.*'}' of the checkpoint is "
            f"not in {sorted(robot.image_keys)}: rename the dataset's cameras, or "
            f"--policy.embodiment={NEW}"
        )


def robot_config(config: Any, robot: Robot, device: str) -> Any:
    """A copy of LeRobot's configuration with this robot's features."""
    from lerobot.configs import FeatureType, PolicyFeature

    config = copy.copy(config)
    config.device = device
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, 0, 0)) for key in cameras(config, robot)}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (robot.state_dim,))
    config.input_features = inputs
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (robot.action_dim,))}
    config.validate_features()  # adds the empty cameras
    return config


def load_weights(policy: Any, root: Path, path: str | Path) -> None:
    """Load ``model.safetensors``; DeasError unless every tensor that is read is there and fits.

    LeRobot's own loader goes on with random weights where the file is missing or another one.
    """
    from safetensors.torch import load_file

    file = root / "model.safetensors"
    if not file.is_file():
        raise DeasError(f"policy checkpoint '{path}' has no model.safetensors: download it whole")
    try:
        state = load_file(file)
        if hasattr(policy, "_fix_pytorch_state_dict_keys"):  # of openpi's names
            state = policy._fix_pytorch_state_dict_keys(state, policy.config)
        state = {k if k.startswith("model.") else f"model.{k}": t for k, t in state.items()}
        missing, _ = policy.load_state_dict(state, strict=False)
    except Exception as error:  # safetensors' and torch's have no common base
        said = " ".join(str(error).split())[:200]
        raise DeasError(
            f"weights of policy checkpoint '{path}' do not fit its config.json ({said}): download "
            "it again"
        ) from error
    own = policy.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    lost = [k for k in missing if not k.endswith(_UNREAD) and own[k].data_ptr() not in loaded]
    if lost:
        raise DeasError(
            f"weights of policy checkpoint '{path}' lack {len(lost)} tensors (first: {lost[0]}): "
            "download it again"
        )


def read_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some weights that anything reads."""
    return {name: tensor for name, tensor in weights.items() if not name.endswith(_UNREAD)}
