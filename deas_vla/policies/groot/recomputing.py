"""Gradient checkpointing of transformer blocks that have no switch for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from deas_vla.policies.lora import trains


@contextmanager
def recomputed(groot: Any) -> Iterator[None]:
    """Within it the head's blocks keep no activations, nor do those of a backbone that trains.

    LeRobot's head carries a flag of that meaning, but its forward pass does not look at it; the
    backbone's own works in training mode alone, and a frozen part of it is never in that.

    Args:
        groot: LeRobot's ``GR00TN17``.
    """
    blocks = list(groot.action_head.model.transformer_blocks)
    if trains(groot.backbone):
        blocks += [*groot.backbone.visual.blocks, *groot.backbone.language_model.layers]
    language = groot.backbone.language_model.config
    caches = language.use_cache
    language.use_cache = False  # a layer that runs twice would find its own keys in the cache
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        language.use_cache = caches
        for block in blocks:
            del block.forward  # the class' own again
