"""SmolVLA through LeRobot's own classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from deas_vla.errors import DeasError
from deas_vla.policies.places import shipped
from deas_vla.policies.prefix.adapter import PrefixVLA
from deas_vla.policies.prefix.network import PrefixNetwork
from deas_vla.policies.prefix.parts import PROJECTORS, expert_parts
from deas_vla.policies.smolvla.network import SmolNetwork


class SmolVLA(PrefixVLA):
    """LeRobot's ``SmolVLAPolicy`` behind the ``VLA`` protocol."""

    family: ClassVar[str] = "smolvla"
    example: ClassVar[str] = "lerobot/smolvla_base"
    network_class: ClassVar[type[PrefixNetwork]] = SmolNetwork
    lora_parts: Mapping[str, str] = expert_parts(r"model\.vlm_with_expert\.lm_expert")
    projectors: tuple[str, ...] = PROJECTORS

    @classmethod
    def set_steps(cls, config: Any, steps: int) -> None:
        config.num_steps = steps

    @classmethod
    def build(cls, config: Any, root: Path, dtype: torch.dtype) -> Any:
        """The policy; its language model's configuration may lie in a folder of the checkpoint."""
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

        config.load_vlm_weights = False  # the checkpoint has them
        config.vlm_model_name = shipped(root, config.vlm_model_name)
        try:
            policy = SmolVLAPolicy(config)
        except (OSError, ImportError) as error:
            said = " ".join(str(error).split())[:200]
            raise DeasError(
                f"language model '{config.vlm_model_name}' of the checkpoint cannot be built "
                f"({said}): check the network, and that lerobot[smolvla]'s packages are installed"
            ) from error
        policy.model.vlm_with_expert.vlm.to(dtype)  # as LeRobot has it, the expert stays float32
        return policy
