"""Whether LeRobot's action head is built the way that `fused` computes it."""

from typing import Any

from torch import nn


def active(module: Any) -> Any:
    """What runs when ``module`` is called: PEFT's trained copy, where it keeps one."""
    if not hasattr(module, "modules_to_save") or not hasattr(module, "original_module"):
        return module
    adapters = module.active_adapters
    if module.disable_adapters or not adapters or adapters[0] not in module.modules_to_save:
        return module.original_module
    return module.modules_to_save[adapters[0]]


def reads_text(model: Any, index: int) -> bool | None:
    """Whether cross-attention block ``index`` reads text or pictures; None if all, unmasked."""
    if not hasattr(model, "attend_text_every_n_blocks"):
        return None
    return index % (2 * model.attend_text_every_n_blocks) == 0


def mismatch(head: Any) -> str | None:
    """What about ``head`` is not as `fused` expects, in words; None where it fits."""
    from diffusers.models.attention import Attention, FeedForward
    from diffusers.models.attention_processor import AttnProcessor2_0
    from lerobot.policies.groot import groot_n1_7 as groot
    from lerobot.policies.groot.action_head import cross_attention_dit as dit

    if head.training:
        return "it is in training mode"
    parts = {
        "action head": (head, groot.GR00TN17ActionHead),
        "action encoder": (active(head.action_encoder), groot.MultiEmbodimentActionEncoder),
        "action decoder": (active(head.action_decoder), groot.CategorySpecificMLP),
        "timestep encoder": (head.model.timestep_encoder, dit.TimestepEncoder),
    }
    alternates = type(head.model) is dit.AlternateVLDiT
    if not alternates:
        parts["transformer"] = (head.model, dit.DiT)
    if alternates and not head.model.config.interleave_self_attention:
        return "its blocks do not alternate between cross- and self-attention"
    for index, block in enumerate(head.model.transformer_blocks):
        parts |= {
            f"block {index}": (block, dit.BasicTransformerBlock),
            f"norm1 of block {index}": (block.norm1, dit.AdaLayerNorm),
            f"norm3 of block {index}": (block.norm3, nn.LayerNorm),
            f"attention of block {index}": (block.attn1, Attention),
            f"attention processor of block {index}": (block.attn1.processor, AttnProcessor2_0),
            f"feed-forward of block {index}": (block.ff, FeedForward),
        }
    for name, (part, expected) in parts.items():
        if type(part) is not expected:
            return f"its {name} is {type(part).__name__}, not {expected.__name__}"
        if isinstance(part, nn.Module) and _intercepted(part):
            return f"its {name} has hooks or a forward of its own"
    for index, block in enumerate(head.model.transformer_blocks):
        if block.pos_embed is not None or block.norm1.norm.elementwise_affine:
            return f"block {index} has positional embeddings or an affine norm"
        if unusual := _unusual(block.attn1):
            return f"the attention of block {index} has {unusual}"
    if head.model.norm_out.elementwise_affine:
        return "its last norm is affine"
    return None


def _intercepted(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def _unusual(attention: Any) -> str | None:
    """Of diffusers' ``Attention``, what the fused computation leaves out."""
    for name in ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k"):
        if getattr(attention, name, None) is not None:
            return name
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        return "a residual connection or a rescaled output"
    return None
