"""Which layers of an action expert beside a vision-language model can be trained."""

# Modules of an embodiment's own, where the state goes to the expert and time through an MLP.
PROJECTORS = (
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
)


def expert_parts(expert: str) -> dict[str, str]:
    """Patterns of layers by part, for the module of that name: all of them, or the attention's."""
    attention = "q_proj|k_proj|v_proj|o_proj"
    layers = rf"{expert}\..*\."
    return {
        "head": rf"{layers}({attention}|gate_proj|up_proj|down_proj)",
        "attention": rf"{layers}({attention})",
    }
