"""How a bundle's policy is run, as LeRobot's configuration class, and where it is read from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.policies import PreTrainedConfig

from deas_vla.data.pooling import PoolingConfig
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.speed import SpeedConfig
from deas_vla.policies.config import VLAConfig
from deas_vla.policies.vla import VLASpec


@PreTrainedConfig.register_subclass("deas_guided")
@dataclass
class ValueGuidedConfig(PreTrainedConfig):
    """How a bundle's policy is run.

    Attributes:
        vla: Base checkpoint and embodiment.
        pooling: How backbone tokens become the critic's feature.
        candidates: N, chunks sampled per decision; 1 is the base policy.
        selection: How one of them is chosen.
        speed: Compilation, latency budget and warm starts.
        n_action_steps: Steps of the chosen chunk executed before the next decision.
        adapter: Whether ``policy/`` holds a PEFT adapter.
        seed: Of the candidate noise, unless :meth:`ValueGuidedPolicy.reset` is given others.
        input_features: LeRobot's, filled in by `describe`.
        output_features: Likewise.
    """

    vla: VLAConfig = field(default_factory=lambda: VLAConfig(path=""))
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    candidates: int = 16
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    n_action_steps: int = 8
    adapter: bool = True
    seed: int = 0
    input_features: dict[str, PolicyFeature] | None = field(default_factory=dict)
    output_features: dict[str, PolicyFeature] | None = field(default_factory=dict)

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise DeasError(
            "a value-guided policy is not trained itself: use recipes/finetune_groot.py"
        )

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        return None

    def describe(self, spec: VLASpec, image_size: tuple[int, int]) -> None:
        """Fill in LeRobot's features where nobody has: cameras, state and action of ``spec``."""
        if not self.input_features:
            shape = (3, *image_size)
            pictures = {key: PolicyFeature(FeatureType.VISUAL, shape) for key in spec.image_keys}
            state = PolicyFeature(FeatureType.STATE, (spec.state_dim,))
            self.input_features = pictures | {"observation.state": state}
        if not self.output_features:
            self.output_features = {"action": PolicyFeature(FeatureType.ACTION, (spec.action_dim,))}


def local_directory(
    name: str | Path, revision: str | None = None, **download: str | bool | Path | None
) -> Path:
    """A bundle's directory: ``name`` itself, or where the Hub's files of that id are.

    Args:
        name: A directory, or a Hub id such as ``user/name``.
        revision: Branch, tag or commit on the Hub.
        download: Of huggingface_hub: ``token``, ``cache_dir``, ``local_files_only``,
            ``force_download``.

    Raises:
        DeasError: Neither a directory nor to be had from the Hub.
    """
    if Path(name).is_dir() or Path(name).is_absolute() or str(name).count("/") != 1:
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, **download))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = "" if revision is None else f" at revision {revision}"
        raise DeasError(
            f"bundle {name}{at} is no directory here and cannot be had from the Hub "
            f"({type(error).__name__}): check the name, or download it first"
        ) from error


def read_config(directory: Path) -> ValueGuidedConfig:
    """A bundle's ``config.json``, also of one written before selection had settings of its own.

    Raises:
        DeasError: It is missing, or holds what this version does not know.
    """
    file = directory / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values.pop("type", None)
        temperature = values.pop("temperature", None)
        if temperature is not None:
            rule = "softmax" if temperature > 0 else "best"
            values["selection"] = {"rule": rule, "temperature": temperature}
        if values.get("selection", {}).get("reluctance") == 0:  # an earlier version's, unused
            del values["selection"]["reluctance"]
        config: ValueGuidedConfig = draccus.decode(ValueGuidedConfig, values)
    except (OSError, ValueError, draccus.utils.DecodingError) as error:
        raise DeasError(
            f"{file}: {' '.join(str(error).split())}; write the bundle again"
        ) from error
    return config
