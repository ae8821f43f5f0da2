"""pi0's networks of LeRobot's own classes, in LeRobot's sizes or others.

LeRobot's configuration knows Gemma's two sizes and one of the vision tower. A checkpoint of another
size (of random weights, for tests and timing) says which in ``size.json``.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deas_vla.errors import DeasError

FILE = "size.json"
_PROJECTIONS = (
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
)


@dataclass(frozen=True)
class Size:
    """What differs from LeRobot's configuration of PaliGemma and of the expert.

    Attributes:
        text: Of the language model. Layers, width of a head and vocabulary are the expert's too;
            LeRobot's code has 8 attention heads.
        expert: Of the expert.
        vision: Of the vision tower.
    """

    text: dict[str, int] = field(default_factory=dict)
    expert: dict[str, int] = field(default_factory=dict)
    vision: dict[str, int] = field(default_factory=dict)


def read_size(root: Path) -> Size | None:
    """Of the checkpoint in ``root``; None where it is LeRobot's."""
    file = root / FILE
    if not file.is_file():
        return None
    try:
        return Size(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DeasError(
            f"{file} is no size of pi0 ({error}): write text, expert, vision"
        ) from error


def build(policy_class: Any, network_class: Any, config: Any, size: Size | None) -> Any:
    """LeRobot's policy with weights still to be loaded.

    Args:
        policy_class: ``PI0Policy`` or ``PI05Policy``.
        network_class: ``PI0Pytorch`` or ``PI05Pytorch``.
        config: Its configuration.
        size: Another one than LeRobot's.
    """
    if size is None:
        return policy_class(config)
    from lerobot.policies.pretrained import PreTrainedPolicy

    policy = policy_class.__new__(policy_class)
    PreTrainedPolicy.__init__(policy, config)
    policy.init_rtc_processor()
    with torch.device("meta"):  # its parts in full size, which take no memory
        policy.model = network_class(config, rtc_processor=policy.rtc_processor)
    _resize(policy.model, size)
    policy.reset()
    return policy


def _resize(network: Any, size: Size) -> None:
    """Replace everything that has weights by its like in another size."""
    from lerobot.policies.pi_gemma import (
        PaliGemmaForConditionalGenerationWithPiGemma,
        PiGemmaForCausalLM,
    )

    both = network.paligemma_with_expert
    full = both.gemma_expert.config.hidden_size
    shared = {
        key: value
        for key, value in size.text.items()
        if key in ("num_hidden_layers", "head_dim", "vocab_size")
    }
    seeing = copy.deepcopy(both.paligemma.config)
    _set(seeing.text_config, size.text)
    width = seeing.text_config.hidden_size
    _set(seeing.vision_config, size.vision | {"projection_dim": width})
    seeing.projection_dim = seeing.hidden_size = width
    acting = copy.deepcopy(both.gemma_expert.config)
    _set(acting, shared | size.expert)
    small = acting.hidden_size
    if acting.adarms_cond_dim is not None:
        acting.adarms_cond_dim = small
    both.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(seeing)
    both.gemma_expert = PiGemmaForCausalLM(acting)
    both.gemma_expert.model.embed_tokens = None
    both.to_bfloat16_for_selected_params(network.config.dtype)
    widths = {full: small, 2 * full: 2 * small}
    for name in _PROJECTIONS:
        if isinstance(layer := getattr(network, name, None), nn.Linear):
            reads, writes = layer.in_features, layer.out_features
            new = nn.Linear(widths.get(reads, reads), widths.get(writes, writes))
            setattr(network, name, new)


def _set(config: Any, values: dict[str, int]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
