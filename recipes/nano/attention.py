"""Attention within pictures of one size, all of them in one call.

transformers runs the vision tower's attention picture by picture, because pictures may differ in
size. Ours do not, and hundreds of calls on 64 patches each take a third of an update.
"""

from typing import Any

import torch
from architecture import IMAGE_SIZE, PATCH
from torch import Tensor, nn

PATCHES = (IMAGE_SIZE // PATCH) ** 2  # of a picture
NAME = "pictures_of_one_size"


def attend_within_pictures(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, (1, heads, n * `PATCHES`, d) to (1, n * P, heads, d)."""
    pictures = [
        x[0].unflatten(1, (-1, PATCHES)).transpose(0, 1) for x in (query, key, value)
    ]  # (n, heads, P, d)
    weights = torch.softmax(pictures[0] @ pictures[1].transpose(-1, -2) * scaling, dim=-1)
    return (weights @ pictures[2]).transpose(1, 2).flatten(0, 1).unsqueeze(0), None


def all_pictures_at_once(model: Any) -> None:
    """Make the vision tower of a nano GR00T attend by `attend_within_pictures`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_within_pictures)
    visual = model.backbone.model.model.visual
    visual.config._attn_implementation = NAME
    for block in visual.blocks:
        block.attn.register_forward_pre_hook(_as_one_sequence, with_kwargs=True)


def _as_one_sequence(
    _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """So that transformers does not take pictures apart before the call."""
    ends = named["cu_seqlens"]
    return inputs, named | {"cu_seqlens": ends[[0, -1]]}
