"""What of a policy, a critic and the settings of guidance does not fit together."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from deas_vla.critic.base import Critic
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.policies.config import VLAConfig
from deas_vla.policies.vla import VLA, VLASpec

if TYPE_CHECKING:
    from deas_vla.guidance.configuration_guided import ValueGuidedConfig

_log = logging.getLogger(__name__)


def check_fit(config: "ValueGuidedConfig", vla: VLA, critic: Critic | None) -> None:
    """DeasError unless policy, critic and the way they are run belong together."""
    horizon = vla.spec.action_horizon
    check_candidates(config.candidates, critic, config.selection)
    config.speed.check()
    if not 1 <= config.n_action_steps <= horizon:
        raise DeasError(
            f"n_action_steps {config.n_action_steps} is outside the policy's chunk of {horizon}: "
            f"use 1 to {horizon}"
        )
    if critic is None:
        return
    if critic.config.horizon > horizon:
        raise DeasError(
            f"critic chunk length {critic.config.horizon} exceeds the policy's {horizon}: "
            f"retrain with --critic.horizon={horizon} or less"
        )
    if critic.config.action_dim != vla.spec.action_dim:
        raise DeasError(
            f"critic scores {critic.config.action_dim} action dimensions, the policy has "
            f"{vla.spec.action_dim}: use a critic of this embodiment"
        )


def check_candidates(candidates: int, critic: Critic | None, rule: SelectionConfig) -> None:
    """DeasError for a number of candidates that ``rule`` cannot choose among."""
    rule.check(critic.config.ensemble if critic is not None else None)
    if candidates < 1:
        raise DeasError(f"candidates {candidates}: use 1 (base policy) or more")
    if candidates > 1 and critic is None and rule.asks_critic:
        raise DeasError(
            f"candidates {candidates} without a critic: train one (--stages=critic) or "
            "use --candidates=[1]"
        )


def check_environment(config: "ValueGuidedConfig", spec: VLASpec) -> None:
    """DeasError where LeRobot means to run the policy on another robot than its own.

    LeRobot writes the features of its environment or dataset into ``config`` before it loads.
    """
    for features, name, dim in (
        (config.output_features, "action", spec.action_dim),
        (config.input_features, "observation.state", spec.state_dim),
    ):
        feature = (features or {}).get(name)
        if feature is not None and tuple(feature.shape) != (dim,):
            raise DeasError(
                f"{name} has shape {tuple(feature.shape)} there, the bundle is of embodiment "
                f"'{spec.embodiment}' with {dim} dimensions: use an environment, dataset or robot "
                "of that embodiment"
            )


def check_base(
    name: str, manifest: Mapping[str, Any], made: VLAConfig, now: VLAConfig, vla: VLA
) -> None:
    """DeasError where a bundle is loaded over another network than it was made over.

    Args:
        name: Of the bundle, for the message.
        manifest: Its ``bundle.json``; of before fingerprints were written it has none.
        made: How its base was loaded then.
        now: How it was loaded now. Other weights' dtypes have other fingerprints, and tell nothing.
        vla: Loaded, with the bundle's adapter.
    """
    if made.dtype != now.dtype:
        _log.warning(
            "bundle %s was made over %s weights and runs over %s ones: whether they are of the "
            "same checkpoint is not checked", name, made.dtype, now.dtype,
        )  # fmt: skip
        return
    parts = {"backbone": vla.backbone_fingerprint}
    if made.denoising_steps == now.denoising_steps:
        parts["head"] = vla.head_fingerprint
    for part, fingerprint in parts.items():
        trained = manifest.get(part)
        if trained is not None and fingerprint() != trained:
            what = "backbone" if part == "backbone" else "action head"
            raise DeasError(
                f"bundle {name} was made over another {what} than that of {now.path} "
                f"(fingerprint {trained[:12]}): give the base checkpoint that it was trained on, "
                "in the revision of then"
            )


def check_observation(spec: VLASpec, batch: Mapping[str, Any]) -> None:
    """DeasError for a batch that lacks a camera, or has states or pictures of another shape."""
    for key in (*spec.image_keys, "observation.state"):
        if key not in batch:
            raise DeasError(
                f"observation lacks '{key}', which embodiment '{spec.embodiment}' needs; it has "
                f"{sorted(batch)}: rename keys with --rename_map, or use that robot's cameras"
            )
    state = batch["observation.state"]
    robots = len(state) if state.ndim > 1 else 0
    if state.ndim < 2 or state.numel() != robots * spec.state_dim:
        raise DeasError(
            f"observation.state has shape {tuple(state.shape)}: embodiment '{spec.embodiment}' "
            f"has (B, {spec.state_dim})"
        )
    for key in spec.image_keys:
        pictures = batch[key]
        kind = pictures.dtype == torch.uint8 or pictures.is_floating_point()
        if pictures.ndim != 4 or len(pictures) != robots or pictures.shape[1] != 3 or not kind:
            raise DeasError(
                f"{key} has shape {tuple(pictures.shape)} and dtype {pictures.dtype}: use "
                f"({robots}, 3, height, width), uint8 or float in 0 to 1"
            )
