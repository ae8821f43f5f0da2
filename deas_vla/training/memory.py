"""What to do about a GPU that is too small, said where a stage runs out of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deas_vla.errors import DeasError


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
