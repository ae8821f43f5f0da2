"""SHA-256 of files and of weights: by which a bundle, a cache and a checkpoint are recognised."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hashlib import _Hash


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def update_with_weights(digest: "_Hash", weights: Mapping[str, Tensor]) -> None:
    """Feed a state dict into ``digest``: names and bytes, in the order of the names."""
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
