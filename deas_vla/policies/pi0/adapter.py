"""pi0 and pi0.5 through LeRobot's own classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from deas_vla.policies.pi0.network import Pi0Network, Pi05Network
from deas_vla.policies.pi0.sizes import build, read_size
from deas_vla.policies.prefix.adapter import PrefixVLA
from deas_vla.policies.prefix.network import PrefixNetwork
from deas_vla.policies.prefix.parts import PROJECTORS, expert_parts
from deas_vla.policies.prefix.processors import state_statistics


class Pi0VLA(PrefixVLA):
    """LeRobot's ``PI0Policy`` behind the ``VLA`` protocol."""

    family: ClassVar[str] = "pi0"
    example: ClassVar[str] = "lerobot/pi0_base"
    network_class: ClassVar[type[PrefixNetwork]] = Pi0Network
    lora_parts: Mapping[str, str] = expert_parts(
        r"model\.paligemma_with_expert\.gemma_expert\.model\.layers"
    )
    projectors: tuple[str, ...] = PROJECTORS

    @classmethod
    def set_steps(cls, config: Any, steps: int) -> None:
        config.num_inference_steps = steps

    @classmethod
    def build(cls, config: Any, root: Path, dtype: torch.dtype) -> Any:
        """The policy; in bfloat16 its norms and projections stay float32, as LeRobot has it."""
        from lerobot.policies.pi0.modeling_pi0 import PI0Policy, PI0Pytorch

        config.dtype = str(dtype).removeprefix("torch.")
        return build(PI0Policy, PI0Pytorch, config, read_size(root))


class Pi05VLA(Pi0VLA):
    """LeRobot's ``PI05Policy`` behind the ``VLA`` protocol."""

    family: ClassVar[str] = "pi05"
    example: ClassVar[str] = "lerobot/pi05_base"
    network_class: ClassVar[type[PrefixNetwork]] = Pi05Network
    state_in_words: ClassVar[bool] = True
    projectors: tuple[str, ...] = (
        "action_in_proj",
        "action_out_proj",
        "time_mlp_in",
        "time_mlp_out",
    )

    @classmethod
    def build(cls, config: Any, root: Path, dtype: torch.dtype) -> Any:
        from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch

        config.dtype = str(dtype).removeprefix("torch.")
        return build(PI05Policy, PI05Pytorch, config, read_size(root))

    def prompt_settings(self) -> dict[str, Any]:
        """The normalised state stands in the prompt."""
        return super().prompt_settings() | {"state": state_statistics(self.preprocessor)}
