"""PEFT's adapters in a network: added, chosen, and which weights are in use."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deas_vla.errors import DeasError

PROJECTORS = "projectors"  # the part that is an embodiment's own: `VLA.projectors`
BACKBONE_PARTS = ("llm_top", "vision")  # parts that an observation's tokens depend on

# PEFT's names for what lay there before it wrapped a module.
_WRAPPED = ("base_layer", "original_module")


def trains_backbone(parts: Sequence[str]) -> bool:
    """Whether one of these parts, of any family, is something that tokens depend on."""
    return any(part.split(":")[0] in BACKBONE_PARTS for part in parts)


def training_targets(
    model: Any, parts: Mapping[str, str], chosen: Sequence[str], whole: Sequence[str]
) -> tuple[str | None, list[str]]:
    """What of a network gets LoRA, and what is trained as a whole copy.

    A part that has no linear layer is trained whole in any case.

    Args:
        model: The network, not yet wrapped.
        parts: Patterns of a family's layers, by part.
        chosen: The parts to train.
        whole: Those of them whose layers are trained themselves, not by LoRA.

    Returns:
        The pattern of all layers that get LoRA, None where there is none, and the names of all
        modules that are trained whole.

    Raises:
        DeasError: A part that the family does not have, or that its network lacks; ``whole`` names
            one that is not chosen, or layers that another part gives LoRA to.
    """
    for name in chosen:
        if name not in parts:
            raise DeasError(
                f"policy.train has '{name}', which is unknown: use some of {_listed(parts)}"
            )
    for name in whole:
        if name not in chosen:
            raise DeasError(
                f"policy.train_whole has '{name}', which policy.train does not have: add it there"
            )
    modules = dict(model.named_modules())
    lora: list[str] = []
    copied: dict[str, str] = {}  # module to its part
    for part in dict.fromkeys(chosen):
        found = [name for name in modules if re.fullmatch(parts[part], name)]
        found = [name for name in found if any(True for _ in modules[name].parameters())]
        if not found:
            raise DeasError(
                f"policy.train has '{part}', which this checkpoint does not have: leave it out"
            )
        if part not in whole and all(isinstance(modules[name], nn.Linear) for name in found):
            lora.append(parts[part])
        else:
            copied |= dict.fromkeys(found, part)
    pattern = "|".join(f"(?:{each})" for each in lora) or None
    if pattern is not None:
        for name, part in copied.items():
            if re.fullmatch(pattern, name):
                raise DeasError(
                    f"policy.train_whole has '{part}', whose layer {name} gets LoRA by another "
                    "part of policy.train: leave one of them out"
                )
    return pattern, list(copied)


def _listed(parts: Mapping[str, str]) -> list[str]:
    """Names of parts, numbered ones as a range, and the projectors."""
    most: dict[str, int] = {}
    for stem, _, count in (name.partition(":") for name in parts):
        most[stem] = max(most.get(stem, 0), int(count or 0))
    return sorted([f"{stem}:1..{n}" if n else stem for stem, n in most.items()] + [PROJECTORS])


def trains(module: Any) -> bool:
    """Whether any weight of a module, or of PEFT's layers in it, is being trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


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
