"""A critic on disk: ``config.json``, ``model.safetensors``, ``normalization.safetensors``.

``config.json`` also holds the SHA-256 of the other two, so that a half-written directory, or one
put together from two critics, is refused. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import Statistics
from deas_vla.critic.registry import make_critic
from deas_vla.digests import file_digest
from deas_vla.errors import DeasError

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
NORMALIZATION_FILE = "normalization.safetensors"
_NORMALIZER_PREFIX = "normalizer."


def save_critic(critic: Critic, directory: str | Path) -> Path:
    """Write the critic, its targets and its statistics; returns the directory.

    Written beside ``directory`` and renamed into its place: an earlier critic there stays whole
    until the new one is. Raises DeasError where the place can't be written.
    """
    directory = Path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=directory.parent, prefix=f".{directory.name}."
        ) as beside:
            new = Path(beside) / "new"
            new.mkdir()
            _write(critic, new)
            if directory.exists():
                os.replace(directory, Path(beside) / "old")
            os.replace(new, directory)
    except OSError as error:
        raise DeasError(
            f"critic directory {directory}: cannot be written ({error.strerror or error}); "
            "choose another place"
        ) from error
    return directory


def load_critic(directory: str | Path, device: torch.device | str = "cpu") -> Critic:
    """Read what `save_critic` wrote, on ``device``, in evaluation mode.

    Raises DeasError, naming the file, for a directory that is missing, half-written, altered or
    of another format version.
    """
    directory = Path(directory)
    header = _read_header(directory / CONFIG_FILE)
    for name, digest in header["sha256"].items():
        _check_digest(directory / name, digest)
    statistics = _read_statistics(directory / NORMALIZATION_FILE)
    critic = make_critic(_read_config(header, directory / CONFIG_FILE), statistics)
    _load_weights(critic, directory / MODEL_FILE)
    return critic.to(device).eval()


def _write(critic: Critic, directory: Path) -> None:
    state = {name: t.detach().cpu().contiguous() for name, t in critic.state_dict().items()}
    statistics = {
        name.removeprefix(_NORMALIZER_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(_NORMALIZER_PREFIX)
    }
    weights = {k: t for k, t in state.items() if not k.startswith(_NORMALIZER_PREFIX)}
    save_file(weights, directory / MODEL_FILE)
    save_file(statistics, directory / NORMALIZATION_FILE)
    header = {
        "format_version": FORMAT_VERSION,
        "config": replace(critic.config, inference=critic.inference).to_dict(),
        "sha256": {
            name: file_digest(directory / name) for name in (MODEL_FILE, NORMALIZATION_FILE)
        },
    }
    (directory / CONFIG_FILE).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeasError(f"{path}: no critic there ({error.strerror or error})") from error
    except ValueError as error:
        raise DeasError(f"{path}: not JSON ({error}); save the critic again") from error
    version = header.get("format_version") if isinstance(header, dict) else None
    if version != FORMAT_VERSION:
        raise DeasError(
            f"{path}: format_version = {version!r}, this version reads {FORMAT_VERSION}"
        )
    if set(header.get("sha256", {})) != {MODEL_FILE, NORMALIZATION_FILE}:
        raise DeasError(f"{path}: sha256 doesn't name the two files; save the critic again")
    return dict(header)


def _read_config(header: dict[str, Any], path: Path) -> CriticConfig:
    try:
        return CriticConfig.from_dict(header["config"])
    except (KeyError, TypeError, DeasError) as error:
        raise DeasError(f"{path}: {error}; save the critic again with this version") from error


def _read_statistics(path: Path) -> Statistics:
    tensors = _read_tensors(path)
    expected = {f.name for f in fields(Statistics)}
    if set(tensors) != expected:
        raise DeasError(f"{path}: holds {sorted(tensors)}, not {sorted(expected)}")
    return Statistics(**tensors)


def _load_weights(critic: Critic, path: Path) -> None:
    weights = _read_tensors(path)
    expected = {
        k: t for k, t in critic.state_dict().items() if not k.startswith(_NORMALIZER_PREFIX)
    }
    for name in sorted(expected.keys() ^ weights.keys()):
        what = "is missing" if name in expected else "belongs to no network of this critic"
        raise DeasError(f"{path}: {name} {what}; the file and {CONFIG_FILE} are of two critics")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise DeasError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, {CONFIG_FILE} makes it "
                f"{tuple(tensor.shape)}; the two are of two critics"
            )
    critic.load_state_dict(weights, strict=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise DeasError(f"{path}: not readable ({error}); save the critic again") from error


def _check_digest(path: Path, digest: str) -> None:
    if not path.is_file():
        raise DeasError(f"{path}: missing; the critic is half-written, save it again")
    if file_digest(path) != digest:
        raise DeasError(f"{path}: not the file that {CONFIG_FILE} was saved with; save it again")
