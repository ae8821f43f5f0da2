"""A VLA of GR00T N1.7's dimensions around the action head, whose backbone computes nothing."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deas_vla.policies.groot.adapter import GrootVLA
from deas_vla.policies.groot.random_weights import Size, random_vla
from deas_vla.policies.vla import Encoding

WIDTH = 2048  # of N1.7's tokens
TOKENS = 224  # of three cameras and an instruction
_DIT = {
    "positional_embeddings": None,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "norm_type": "ada_norm",
    "dropout": 0.0,
    "final_dropout": False,
    "output_dim": 64,
    "interleave_self_attention": True,
}
# Chunks and tokens as wide as N1.7's, few and narrow layers between them.
WIDE = Size(
    cameras=1,
    pixels=32,
    head={
        "backbone_embedding_dim": WIDTH,
        "select_layer": 1,
        "hidden_size": 64,
        "input_embedding_dim": 64,
        "diffusion_model_cfg": _DIT,
        "vl_self_attention_cfg": {
            "positional_embeddings": None,
            "num_layers": 0,
            "num_attention_heads": 16,
            "attention_head_dim": 128,
            "dropout": 0.0,
            "final_dropout": False,
        },
    },
    text={
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 512,
    },
    vision={
        "hidden_size": 64,
        "intermediate_size": 64,
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    },
)


class StandIn:
    """`WIDE` as a ``VLA`` whose backbone hands out the same noise at every frame.

    Args:
        tokens: L of an observation.
    """

    def __init__(self, tokens: int = TOKENS) -> None:
        self._vla = random_vla(WIDE)
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(1, tokens, WIDTH, generator=generator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vla, name)

    @property
    def network(self) -> GrootVLA:
        """What the action head's half is."""
        return self._vla

    def preprocess(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return dict(batch)

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        return self.encode_inputs(observation, observation["observation.state"])

    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        # A copy for each frame, as a backbone makes it.
        tokens = self._noise.repeat(len(state), 1, 1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return Encoding(tokens, mask, mask, {}, torch.as_tensor(state))
