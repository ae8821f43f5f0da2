"""PEFT's adapters in a network: which weights are in use."""

from typing import Any

from torch import Tensor

# PEFT's names for what lay there before it wrapped a module.
_WRAPPED = ("base_layer", "original_module")


def active_weights(model: Any, part: Any) -> dict[str, Tensor]:
    """Weights of ``part`` that the network ``model`` computes with, by the same names at all times.

    Names do not depend on what else PEFT has wrapped in ``model``, on other adapters beside the
    active one, or on its name: an adapter has the same weights alone and among several.

    Args:
        model: Wrapped by PEFT, or not.
        part: A module inside ``model``.
    """
    adapters = set(getattr(model, "peft_config", {}))
    active = set(model.active_adapters) if adapters else set()
    weights = {}
    for name, tensor in part.state_dict().items():
        pieces = name.split(".")
        if not (adapters - active) & set(pieces):
            kept = [p for p in pieces if p not in active and p not in _WRAPPED]
            weights[".".join(kept)] = tensor
    return weights
