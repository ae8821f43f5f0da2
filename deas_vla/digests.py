"""SHA-256 of files and of weights: by which a bundle, a cache and a checkpoint are recognised."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

    from torch import Tensor

# Enough of a file's ends to tell two apart without reading gigabytes.
_PROBE_BYTES = 64 * 1024


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_probe(path: Path) -> bytes:
    """A file's size and its first and last 64 KiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_PROBE_BYTES)
        file.seek(max(0, size - _PROBE_BYTES))
        return size.to_bytes(8, "big") + head + file.read()


def checkpoint_digest(directory: Path) -> str:
    """What tells a model's checkpoint from another, wherever it lies, without reading all of it.

    Over names and probes of its weights and of ``config.json``, hexadecimal.
    """
    digest = hashlib.sha256()
    for path in sorted([*directory.rglob("*.safetensors"), *directory.rglob("config.json")]):
        digest.update(path.relative_to(directory).as_posix().encode())
        digest.update(file_probe(path))
    return digest.hexdigest()


def update_with_weights(digest: "_Hash", weights: Mapping[str, "Tensor"]) -> None:
    """Feed a state dict into ``digest``: names and bytes, in the order of the names."""
    import torch

    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
