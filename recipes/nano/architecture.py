"""The nano GR00T's shape, tokenizer and image settings."""

from pathlib import Path
from typing import Any

from robots import EMBODIMENTS

IMAGE_SIZE, PATCH, MERGE = 64, 8, 2
MAX_DIM, MAX_HORIZON = 132, 40
WIDTH = 128  # of the backbone
HEAD_WIDTH, PROJECTOR_WIDTH = 96, 64  # narrow, because 32 embodiments have projectors each
VOCABULARY = 512
CHAT_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# The text stands before the pictures, other than in the public checkpoint: a token attends to what
# is before it, so each token of a picture knows what is asked for, and 3 layers need no second hop.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content if part.type != 'image' %}{{ part.text }}{% endfor %}"
    "{% for part in message.content if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endfor %}<|im_end|>\n{% endfor %}"
)
# What the tokenizer learns its words from; anything else is spelled byte by byte.
SENTENCES = [
    "lift the red cube",
    "pick up the cube and hold it",
    "user\n",
    *(f"{act} the {side} drawer." for act in ("open", "close") for side in ("left", "right")),
    *(f"{act} the {thing} door." for act in ("open", "close")
      for thing in ("microwave", "fridge", "cabinet")),
    *(f"turn {way} the {row} {side} burner of the stove." for way in ("on", "off")
      for row in ("front", "rear", "center") for side in ("left", "right")),
    "pick the mug from the counter and place it under the coffee machine dispenser.",
    "pick the apple from the counter and place it in the microwave.",
    "pick the bowl from the microwave and place it on plate located on the counter.",
    "close the lid of the electric kettle.",
    "close the stand mixer head.",
]  # fmt: skip


def write_processor(backbone: Path) -> dict[str, int]:
    """A byte-level tokenizer and the image settings; returns the ids of the chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CHAT_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=CHAT_TOKENS[1:],
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(backbone)
    pixels = {"shortest_edge": 1024, "longest_edge": 1 << 20}
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "size": pixels}
    norm = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen2VLImageProcessor(**sizes, **norm).save_pretrained(backbone)
    Qwen3VLVideoProcessor(**sizes, **norm).save_pretrained(backbone)
    return {token: fast.convert_tokens_to_ids(token) for token in CHAT_TOKENS}


def backbone_config(ids: dict[str, int]):
    from transformers import Qwen3VLConfig

    return Qwen3VLConfig(
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
                "rope_type": "default",
            },
            "rope_theta": 10000,
            "tie_word_embeddings": True,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": (IMAGE_SIZE // PATCH) ** 2,
            "out_hidden_size": WIDTH,
            "deepstack_visual_indexes": [1],
        },
    )


def head_config() -> dict[str, Any]:
    heads = {"num_attention_heads": 4, "dropout": 0.0, "final_dropout": False}
    return {
        "backbone_embedding_dim": WIDTH,
        "select_layer": 4,
        "hidden_size": PROJECTOR_WIDTH,
        "input_embedding_dim": HEAD_WIDTH,
        "max_state_dim": MAX_DIM,
        "max_action_dim": MAX_DIM,
        "action_horizon": MAX_HORIZON,
        "max_seq_len": 64,
        "max_num_embodiments": EMBODIMENTS,
        "diffusion_model_cfg": {
            **heads,
            "attention_head_dim": HEAD_WIDTH // 4,
            "positional_embeddings": None,
            "num_layers": 6,
            "norm_type": "ada_norm",
            "output_dim": PROJECTOR_WIDTH,
            "interleave_self_attention": True,
        },
        "vl_self_attention_cfg": {
            **heads,
            "attention_head_dim": WIDTH // 4,
            "positional_embeddings": None,
            "num_layers": 1,
        },
    }
