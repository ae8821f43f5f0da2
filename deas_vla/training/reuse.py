"""What a run takes over from earlier ones in its output directory, and what it must not."""

from dataclasses import replace
from pathlib import Path

from deas_vla.bundle import MANIFEST, read_manifest
from deas_vla.critic.base import Critic
from deas_vla.critic.serialization import load_critic
from deas_vla.errors import DeasError
from deas_vla.guidance.checks import check_base
from deas_vla.policies.config import VLAConfig
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FinetuneConfig

_LOADED = ("family", "embodiment", "denoising_steps")  # how a base is loaded, beside its weights


def earlier_adapter(output: Path, config: FinetuneConfig) -> Path | None:
    """The adapter that a run without a policy stage is made over; None where there is none.

    Raises:
        DeasError: There is one, and the run guides the checkpoint as it is; or the run trains a
            backbone under a critic that it does not train.
    """
    finetunes = "policy" in config.stages and config.policy.steps > 0
    if finetunes:
        if config.trains_backbone and "critic" not in config.stages and _critic(output).is_dir():
            raise DeasError(
                f"{_critic(output)} is of the backbone before this training: train it as well "
                "(--stages=[features,policy,critic]), or remove it"
            )
        return None
    adapter = output / "policy"
    if not (adapter / "adapter_config.json").is_file():
        return None
    if "policy" in config.stages:
        raise DeasError(
            f"{adapter} holds an adapter, and policy.steps=0 guides the checkpoint as it is: use "
            "another --output_dir, or --stages=[features,critic] for a critic over the adapter"
        )
    return adapter


def check_adapter_base(output: Path, now: VLAConfig, vla: VLA) -> None:
    """DeasError where the adapter in ``output`` was trained over another base than ``vla``.

    Args:
        output: The run's directory; one without a manifest cannot tell.
        now: How the base is loaded.
        vla: It, under the adapter.
    """
    if not (output / MANIFEST).is_file():
        return
    manifest = read_manifest(output)
    made = manifest["config"]["policy"]
    for name in _LOADED:
        if name in made and made[name] != getattr(now, name):
            raise DeasError(
                f"{output / 'policy'} was trained with policy.{name}={made[name]}, this run has "
                f"{getattr(now, name)}: give the same, or another --output_dir"
            )
    made_over = replace(now, dtype=made.get("dtype", now.dtype))
    check_base(str(output), manifest, made_over, now, vla)


def earlier_critic(output: Path, feature_dim: int, device: str) -> Critic | None:
    """The critic that a run without a critic stage bundles again; None where there is none.

    Args:
        output: The run's directory.
        feature_dim: Of this run's pooled features.
        device: Where it is loaded.

    Raises:
        DeasError: It takes other features.
    """
    if not _critic(output).is_dir():
        return None
    critic = load_critic(_critic(output), device)
    if critic.config.feature_dim != feature_dim:
        raise DeasError(
            f"{_critic(output)} takes features of {critic.config.feature_dim} numbers, "
            f"features.pooling makes {feature_dim}: train it as well, or remove it"
        )
    return critic


def _critic(output: Path) -> Path:
    return output / "critic"
