"""How a function of a decision is compiled: once per shape, into CUDA graphs on a GPU."""

from collections.abc import Callable

import torch


def compiled[**Inputs, Output](
    function: Callable[Inputs, Output], device: torch.device
) -> Callable[Inputs, Output]:
    """``function``, compiled for ``device`` at its first call with each shape.

    On a GPU its results live in the graph's own memory, and the next call overwrites them: clone
    what is kept.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    result: Callable[Inputs, Output] = torch.compile(function, dynamic=False, mode=mode)
    return result
