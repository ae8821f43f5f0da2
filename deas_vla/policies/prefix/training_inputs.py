"""LeRobot's preprocessing of pictures and words in worker processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deas_vla.policies.on_cpu import on_cpu
from deas_vla.policies.prefix.processors import unit_pictures

_KEPT = ("observation.images.", "observation.language.")


class PrefixTrainingInputs:
    """`TrainingInputs` of a LeRobot policy: a copy of its preprocessor that stays on the CPU.

    Args:
        preprocessor: Of the policy.
        state_dim: S; the copy is handed states of zeros, which no input of the backbone shows.
    """

    def __init__(self, preprocessor: Any, state_dim: int) -> None:
        self._preprocessor = on_cpu(preprocessor)
        self._state_dim = state_dim

    def augment(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(pictures)

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        state = torch.zeros(len(observation["task"]), self._state_dim)
        inputs = self._preprocessor(unit_pictures({**observation, "observation.state": state}))
        return {key: value for key, value in inputs.items() if key.startswith(_KEPT)}
