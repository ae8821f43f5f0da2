"""What it takes to load a VLA again, and the one place that knows the families."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from deas_vla.errors import DeasError
from deas_vla.policies.lora import load_adapter
from deas_vla.policies.vla import VLA

# Of each its module and class; imported when one is loaded.
FAMILIES = {
    "groot": ("deas_vla.policies.groot", "GrootVLA"),
    "smolvla": ("deas_vla.policies.smolvla", "SmolVLA"),
    "pi0": ("deas_vla.policies.pi0", "Pi0VLA"),
    "pi05": ("deas_vla.policies.pi0", "Pi05VLA"),
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ServerConfig:
    """A GR00T policy server.

    Attributes:
        host: Of the server.
        port: Of the server.
        generation: ``n1.7`` (also N1.6) or ``n1.5``.
        token_variable: Environment variable that holds its token, where it asks for one; the token
            itself would be written into the bundle.
        timeout_s: Seconds to wait for a reply.
        modality: The robot's modality.json, where the checkpoint's names are not the server's.
    """

    host: str = "127.0.0.1"
    port: int = 5555
    generation: str = "n1.7"
    token_variable: str | None = None
    timeout_s: float = 15.0
    modality: str | None = None


@dataclass
class VLAConfig:
    """A VLA checkpoint and the embodiment it is used on.

    Attributes:
        path: Local directory or Hub id of the base checkpoint.
        family: Which adapter loads it; ``groot`` for GR00T N1.7, ``smolvla``, ``pi0`` and ``pi05``
            for LeRobot's policies of these types, ``remote`` for a policy server beside which the
            checkpoint is the critic's backbone.
        embodiment: Embodiment tag in the checkpoint, or ``new_embodiment``; of LeRobot's policies
            ``checkpoint`` is the one that they have.
        image_keys: ``observation.images.*`` keys of dataset and environment.
        state_dim: Proprioceptive dimensions S.
        action_dim: Action dimensions A.
        dtype: Of the weights: float32, bfloat16 or float16; ``auto`` by the device.
        denoising_steps: Flow steps per chunk; the checkpoint's own when left out.
        server: Of family ``remote``.
    """

    path: str
    family: str = "groot"
    embodiment: str = "new_embodiment"
    image_keys: list[str] = field(default_factory=list)
    state_dim: int = 0
    action_dim: int = 0
    dtype: str = "float32"
    denoising_steps: int | None = None
    server: ServerConfig = field(default_factory=ServerConfig)


def dtype_on(dtype: str, device: str) -> str:
    """The type that ``auto`` stands for on a device; any other one is itself."""
    if dtype != "auto":
        return dtype
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


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
    if config.family == "remote":
        return _remote(config, dataset_stats, adapter, device)
    if config.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise DeasError(f"policy.family '{config.family}' is unknown: use {known} or remote")
    dtype = dtype_on(config.dtype, device)
    if dtype not in _DTYPES:
        raise DeasError(f"policy.dtype '{dtype}' is unknown: use auto or one of {sorted(_DTYPES)}")
    module, name = FAMILIES[config.family]
    vla: VLA = getattr(import_module(module), name).from_pretrained(
        config.path,
        embodiment=config.embodiment,
        image_keys=tuple(config.image_keys),
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        dataset_stats=dataset_stats,
        device=device,
        dtype=_DTYPES[dtype],
        denoising_steps=config.denoising_steps,
    )
    if adapter is not None:
        vla.model = load_adapter(vla.model, adapter)
    return vla


def _remote(
    config: VLAConfig,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    adapter: Path | None,
    device: str,
) -> VLA:
    """A server's chunks beside the backbone of ``config.path``."""
    from deas_vla.policies.remote.adapter import RemoteVLA
    from deas_vla.policies.remote.client import PolicyClient

    if adapter is not None:
        raise DeasError("policy.family remote with an adapter: the server's policy has its own")
    backbone = load_vla(replace(config, family="groot"), dataset_stats=dataset_stats, device=device)
    server = config.server
    client = PolicyClient(
        server.host,
        server.port,
        timeout_s=server.timeout_s,
        token=_token(server.token_variable),
        generation=server.generation,
    )
    modality = None if server.modality is None else Path(server.modality)
    return RemoteVLA(backbone, client, action_dim=config.action_dim, modality_file=modality)


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    if variable not in os.environ:
        raise DeasError(f"policy.server.token_variable {variable} is not set: export the token")
    return os.environ[variable]
