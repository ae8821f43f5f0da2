"""What to do about memory that is too small, said where a stage runs out of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deas_vla.errors import DeasError

BYTES_PER_TRAINED = 16  # float32 weight and gradient, two float32 moments of AdamW


@contextmanager
def told_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error inside into one line.

    Args:
        what: What did not fit, with its size.
        remedy: The flag with the next smaller size. Splitting changes no result, so the run goes
            on.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeasError(
            f"{what} does not fit the GPU's memory: {remedy}, and give the command again; it goes "
            "on from its last checkpoint"
        ) from error


@contextmanager
def told_workers(flag: str, workers: int) -> Iterator[None]:
    """Turn the death of a DataLoader's worker process inside into one line.

    Args:
        flag: Which said how many there are.
        workers: How many.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", str(error))
        if found is None:
            raise
        said = re.search(r"killed by signal: ([^.]+)", str(error))
        raise DeasError(
            f"worker process {found[1]} of {flag}={workers} was killed by the system "
            f"({said[1] if said else 'it ended without a word'}): most often memory, or /dev/shm, "
            f"is full; use --{flag}={workers // 2} or a smaller batch, and give the command again; "
            "what is finished is kept"
        ) from error


def saved_bytes(module: nn.Module, batch: dict[str, Tensor]) -> int:
    """What autograd keeps of a forward pass besides parameters: each storage once.

    Args:
        module: Whose output of ``batch`` is a loss.
        batch: On any device; on torch's meta device nothing is computed and it is counted all the
            same.
    """
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(batch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total
