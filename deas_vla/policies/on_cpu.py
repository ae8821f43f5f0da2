"""A policy's preprocessing for processes that may not touch the device."""

import copy
from typing import Any

import torch


def on_cpu(preprocessor: Any) -> Any:
    """A copy of LeRobot's pipeline whose steps, whatever theirs were, all work on the CPU."""
    from lerobot.processor import DeviceProcessorStep

    own = copy.deepcopy(preprocessor)
    for at, step in enumerate(own.steps):
        if isinstance(step, DeviceProcessorStep):
            own.steps[at] = DeviceProcessorStep(device="cpu", float_dtype=step.float_dtype)
        elif hasattr(step, "device"):
            step.device = "cpu"
            if hasattr(step, "tensor_device"):
                step.tensor_device = torch.device("cpu")
    return own
