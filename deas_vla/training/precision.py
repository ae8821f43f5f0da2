"""In which precision a policy is trained: updates are too small for half of one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


def to_float32(module: nn.Module) -> Callable[[], None]:
    """Make all that is trained float32, over frozen weights of any type.

    PEFT does so for adapters, not for modules that are trained whole: an update at a learning rate
    of 1e-4 is lost in bfloat16's three digits.

    Args:
        module: Before an optimizer holds its parameters.

    Returns:
        What gives the parameters their types back, for a network that is used afterwards.
    """
    narrow = [(p, p.dtype) for p in module.parameters() if p.requires_grad and p.dtype in HALF]
    for parameter, _ in narrow:
        parameter.data = parameter.data.float()

    def restore() -> None:
        for parameter, dtype in narrow:
            parameter.data = parameter.data.to(dtype)

    return restore


def mixed(device: torch.device, frozen: torch.dtype) -> AbstractContextManager[None]:
    """Autocast for float32 trained weights among half ``frozen`` ones, whatever the launcher says;
    as the launcher says where those are float32 too."""
    if frozen in HALF and torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, dtype=frozen)
    return nullcontext()
