"""What to do about memory that is too small, said where a stage runs out of it."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deas_vla.errors import DeasError

BYTES_PER_TRAINED = 16  # float32 weight and gradient, two float32 moments of AdamW
_UNTIL_SIGCHLD = 2.0  # seconds, from a connection's end to the signal: less than one


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
def told_workers(flag: str, workers: int, remedy: str) -> Iterator[None]:
    """Turn the death of a DataLoader's worker process inside into one line.

    This process hears of it twice, in either order: a read from the loader fails, and torch's
    handler of SIGCHLD raises wherever the program is just then, clearing up for instance. So
    everything that reads from the loader belongs inside, with what it clears up.

    Args:
        flag: Which said how many there are.
        workers: How many.
        remedy: The flag with a smaller number. The run goes on where it stood.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        found = re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", _told_by_signal(error))
        if found is None:
            raise
        said = re.search(r"killed by signal: ([^.]+)", found.string)
        raise DeasError(
            f"worker process {found[1]} of {flag}={workers} was killed by the system "
            f"({said[1] if said else 'it ended without a word'}): most often memory, or /dev/shm, "
            f"is full; {remedy}, and give the command again; what is finished is kept"
        ) from error


def _told_by_signal(error: Exception) -> str:
    """What torch says of a worker, if it is still to say it: the connection breaks before."""
    if not isinstance(error, RuntimeError):
        try:
            time.sleep(_UNTIL_SIGCHLD)
        except RuntimeError as later:
            return str(later)
    return str(error)


def saved_bytes(module: nn.Module, batch: dict[str, Tensor]) -> int:
    """What a forward pass leaves for the backward one besides parameters: each storage once.

    Where a part is recomputed it is what the part was handed, which autograd knows nothing of. The
    backward pass has one such part's activations at a time on top.

    Args:
        module: Whose output of ``batch`` is a loss; a part that is recomputed has a ``forward`` of
            its own (`VLA.gradient_checkpointing`).
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

    def handed(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        for tensor in (*args, *kwargs.values()):
            if isinstance(tensor, Tensor):
                keep(tensor)

    recomputed = [part for part in module.modules() if "forward" in vars(part)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), ExitStack() as ends:
        for part in recomputed:
            hook = part.register_forward_pre_hook(handed, with_kwargs=True)
            ends.callback(hook.remove)
        loss = module(batch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    return total
