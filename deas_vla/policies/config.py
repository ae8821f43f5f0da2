"""What it takes to load a VLA again, and the one place that knows the families."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deas_vla.errors import DeasError
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.lora import load_adapter
from deas_vla.policies.vla import VLA

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class VLAConfig:
    """A VLA checkpoint and the embodiment it is used on.

    Attributes:
        path: Local directory or Hub id of the base checkpoint.
        family: Which adapter loads it; ``groot`` for GR00T N1.7.
        embodiment: Embodiment tag in the checkpoint, or ``new_embodiment``.
        image_keys: ``observation.images.*`` keys of dataset and environment.
        state_dim: Proprioceptive dimensions S.
        action_dim: Action dimensions A.
        dtype: Of the weights: float32, bfloat16 or float16.
        denoising_steps: Flow steps per chunk; the checkpoint's own when left out.
    """

    path: str
    family: str = "groot"
    embodiment: str = "new_embodiment"
    image_keys: list[str] = field(default_factory=list)
    state_dim: int = 0
    action_dim: int = 0
    dtype: str = "float32"
    denoising_steps: int | None = None


def load_vla(
    config: VLAConfig,
    *,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
    adapter: Path | None = None,
    device: str = "cpu",
) -> VLA:
    """Load the base checkpoint and, where given, a PEFT adapter over it.

    Raises:
        DeasError: An unknown family or dtype, a checkpoint that cannot be loaded or does not fit.
    """
    if config.family != "groot":
        raise DeasError(f"policy.family '{config.family}' is unknown: use groot")
    if config.dtype not in _DTYPES:
        raise DeasError(f"policy.dtype '{config.dtype}' is unknown: use one of {sorted(_DTYPES)}")
    vla = GrootVLA.from_pretrained(
        config.path,
        embodiment=config.embodiment,
        image_keys=tuple(config.image_keys),
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        dataset_stats=dataset_stats,
        device=device,
        dtype=_DTYPES[config.dtype],
        denoising_steps=config.denoising_steps,
    )
    if adapter is not None:
        vla.model = load_adapter(vla.model, adapter)
    return vla
