"""PEFT's adapters in a network: added, chosen, and which weights are in use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deas_vla.errors import DeasError

# PEFT's names for what lay there before it wrapped a module.
_WRAPPED = ("base_layer", "original_module")


def target_pattern(parts: Mapping[str, str], chosen: Sequence[str]) -> str:
    """The pattern of all layers in the ``chosen`` parts of a family's network.

    Raises:
        DeasError: A part that the family does not have, or none.
    """
    for name in chosen:
        if name not in parts:
            raise DeasError(
                f"policy.lora_parts has '{name}', which is unknown: use some of {sorted(parts)}"
            )
    if not chosen:
        raise DeasError(f"policy.lora_parts is empty: use some of {sorted(parts)}")
    return "|".join(f"(?:{parts[name]})" for name in dict.fromkeys(chosen))


def load_adapter(model: Any, directory: Path, name: str = "default") -> Any:
    """Load PEFT's files from ``directory`` beside any adapters already there, and use them.

    Args:
        model: A network, wrapped by PEFT or not.
        directory: What PEFT's ``save_pretrained`` wrote.
        name: Of the adapter in ``model``.

    Returns:
        The wrapped network.

    Raises:
        DeasError: Files of another network.
    """
    from peft import PeftModel

    try:
        if unwrapped(model) is model:
            model = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
        else:
            model.load_adapter(str(directory), adapter_name=name)
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DeasError(
            f"adapter {directory} does not fit this base checkpoint ({said}): give the base that "
            "it was trained on"
        ) from error
    use_adapter(model, name)
    return model.eval()


def use_adapter(model: Any, name: str | None) -> None:
    """Compute with this adapter alone from now on, or with none: the base as it is."""
    if unwrapped(model) is model:
        return
    if name is None:
        model.base_model.disable_adapter_layers()
        return
    if _disabled(model):
        model.base_model.enable_adapter_layers()
    model.set_adapter(name, inference_mode=True)


def unwrapped(model: Any) -> Any:
    """The network itself, below PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def active_weights(model: Any, part: Any) -> dict[str, Tensor]:
    """Weights of ``part`` that the network ``model`` computes with, by the same names at all times.

    Names do not depend on what else PEFT has wrapped in ``model``, on other adapters beside the
    active one, or on its name: an adapter has the same weights alone and among several.

    Args:
        model: Wrapped by PEFT, or not.
        part: A module inside ``model``.

    Raises:
        DeasError: The adapter is merged into the base, so that neither is as it was.
    """
    adapters = set() if unwrapped(model) is model else set(model.peft_config)
    active = set() if not adapters or _disabled(model) else set(model.active_adapters)
    check_unmerged(model)
    weights = {}
    for name, tensor in part.state_dict().items():
        pieces = name.split(".")
        if not (adapters - active) & set(pieces):
            kept = [p for p in pieces if p not in active and p not in _WRAPPED]
            weights[".".join(kept)] = tensor
    return weights


def check_unmerged(model: Any) -> None:
    """DeasError where an adapter is merged into the base, so that neither is as it was."""
    if any(layer.merged for layer in _layers(model).values()):
        raise DeasError("the adapter is merged into its base: undo that first (Merge.undo)")


def merged_layers(model: Any) -> dict[str, Tensor]:
    """Base weights, by name, of the layers that merging the active adapter changes."""
    return {
        f"{name}.{own}": tensor
        for name, layer in _layers(model).items()
        for own, tensor in layer.get_base_layer().named_parameters(prefix="base_layer")
    }


def _layers(model: Any) -> dict[str, Any]:
    """PEFT's layers by name; none in a network that it has not wrapped."""
    if unwrapped(model) is model:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, BaseTunerLayer)}


def _disabled(model: Any) -> bool:
    return any(layer.disable_adapters for layer in _layers(model).values())
