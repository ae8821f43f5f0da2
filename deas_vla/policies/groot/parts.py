"""Which layers of GR00T N1.7 can be trained, by the name of their part."""

from typing import Any

_TRANSFORMER = r".*\.(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2)"
_LANGUAGE = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_VISION = (
    r"(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"
    r"|(merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
)


def trainable_parts(groot: Any) -> dict[str, str]:
    """Patterns of layers of LeRobot's ``GR00TN17``, by part.

    ``head`` is the flow's transformer, ``attention`` of it only the attention layers;
    ``vl_self_attention`` and ``vlln`` (a norm) are what the action head makes of the tokens first;
    ``vision`` is the vision tower, ``llm_top:K`` the last K language layers that are in use.
    """
    layers = len(groot.backbone.language_model.layers)
    parts = {
        "head": r"action_head\.model\." + _TRANSFORMER,
        "attention": r"action_head\.model\..*\.(to_q|to_k|to_v|to_out\.0)",
        "vl_self_attention": r"action_head\.vl_self_attention\." + _TRANSFORMER,
        "vlln": r"action_head\.vlln",
        "vision": r"backbone\..*\bvisual\." + _VISION,
    }
    for count in range(1, layers + 1):
        last = "|".join(str(index) for index in range(layers - count, layers))
        parts[f"llm_top:{count}"] = rf"backbone\..*\blanguage_model\.layers\.({last})\.{_LANGUAGE}"
    return parts
