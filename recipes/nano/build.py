"""The nano GR00T's architecture, tokenizer and side files: the raw N1.7 layout at 3 M parameters.

python recipes/nano/build.py --data=outputs/nano_data --output=outputs/nano_init
"""

import json
from dataclasses import dataclass
from pathlib import Path

import draccus
import numpy as np
import torch

from deas_vla.training.features import column_statistics

EMBODIMENT = "robosuite_panda"
IMAGE_SIZE, PATCH, MERGE = 64, 8, 2
HORIZON = 16
CAMERAS = ["agentview", "eye_in_hand"]
STATE_GROUPS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
ACTION_GROUPS = {"eef_delta": 6, "gripper": 1}
CHAT_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)


@dataclass
class BuildConfig:
    """Where the statistics come from and where the untrained checkpoint goes."""

    data: Path = Path("outputs/nano_data")
    output: Path = Path("outputs/nano_init")
    seed: int = 0


def write_processor(backbone: Path) -> dict[str, int]:
    """A byte-level tokenizer and the image settings; returns the ids of the chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CHAT_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["lift the red cube", "pick up the cube and hold it", "user\n", "open the drawer"], trainer
    )
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
            "vocab_size": 400,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
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
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "num_position_embeddings": (IMAGE_SIZE // PATCH) ** 2,
            "out_hidden_size": 128,
            "deepstack_visual_indexes": [1],
        },
    )


def group_statistics(
    values: np.ndarray, groups: dict[str, int]
) -> dict[str, dict[str, list[float]]]:
    """Isaac-GR00T's ``statistics.json`` entry of one modality; values (n, dim)."""
    out, at = {}, 0
    for name, dim in groups.items():
        out[name] = column_statistics(values[:, at : at + dim])
        at += dim
    return out


def processor_config() -> dict:
    absolute = {"rep": "absolute", "type": "non_eef", "format": "default"}
    modality = {
        "video": {"delta_indices": [0], "modality_keys": CAMERAS},
        "state": {"delta_indices": [0], "modality_keys": list(STATE_GROUPS)},
        "action": {
            "delta_indices": list(range(HORIZON)),
            "modality_keys": list(ACTION_GROUPS),
            "action_configs": [absolute] * len(ACTION_GROUPS),
        },
        "language": {"delta_indices": [0], "modality_keys": ["task"]},
    }
    return {
        "processor_class": "Gr00tN1d7Processor",
        "processor_kwargs": {
            "modality_configs": {EMBODIMENT: modality},
            "image_target_size": [IMAGE_SIZE, IMAGE_SIZE],
            "image_crop_size": [IMAGE_SIZE, IMAGE_SIZE],
            "max_action_horizon": HORIZON,
            "use_percentiles": False,
            "use_relative_action": False,
            "clip_outliers": True,
            "formalize_language": True,
            "state_dropout_prob": 0.0,
        },
    }


def load_parts(data: Path) -> dict[str, np.ndarray]:
    """All ``part_*.npz`` files, joined."""
    parts = [np.load(file) for file in sorted(data.glob("part_*.npz"))]
    if not parts:
        raise SystemExit(f"no part_*.npz in {data}: run recipes/nano/make_data.py first")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0].files}


def save_checkpoint(model, output: Path) -> None:
    """Sharded, as the public checkpoint is; the backbone's path stays relative."""
    model.config.model_name = "backbone"
    model.save_pretrained(output, max_shard_size="2MB")


def build(config: BuildConfig) -> None:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    torch.manual_seed(config.seed)
    backbone = config.output / "backbone"
    backbone.mkdir(parents=True, exist_ok=True)
    backbone_config(write_processor(backbone)).save_pretrained(backbone)
    data = load_parts(config.data)
    actions = data["actions"][data["valid"]]
    statistics = {
        "state": group_statistics(data["state"], STATE_GROUPS),
        "action": group_statistics(actions, ACTION_GROUPS),
    }
    (config.output / "statistics.json").write_text(json.dumps({EMBODIMENT: statistics}, indent=1))
    (config.output / "processor_config.json").write_text(json.dumps(processor_config(), indent=1))
    embodiments = {EMBODIMENT: 0, "new_embodiment": 1}
    (config.output / "embodiment_id.json").write_text(json.dumps(embodiments))
    attention = {"num_attention_heads": 4, "attention_head_dim": 32, "dropout": 0.0}
    model_config = GR00TN17Config(
        architectures=["GR00TN17"],
        model_name=str(backbone.resolve()),
        dtype="float32",
        model_dtype="float32",
        backbone_embedding_dim=128,
        select_layer=3,
        hidden_size=128,
        input_embedding_dim=128,
        max_state_dim=16,
        max_action_dim=8,
        action_horizon=HORIZON,
        max_seq_len=64,
        max_num_embodiments=2,
        diffusion_model_cfg={
            **attention,
            "positional_embeddings": None,
            "num_layers": 6,
            "norm_type": "ada_norm",
            "final_dropout": False,
            "output_dim": 128,
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={
            **attention,
            "positional_embeddings": None,
            "num_layers": 1,
            "final_dropout": False,
        },
        num_inference_timesteps=4,
        image_target_size=[IMAGE_SIZE, IMAGE_SIZE],
        image_crop_size=[IMAGE_SIZE, IMAGE_SIZE],
        state_dropout_prob=0.0,
    )
    safe = {"trust_remote_code": False}
    model = GR00TN17(model_config, transformers_loading_kwargs=safe, load_backbone_weights=False)
    save_checkpoint(model, config.output)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters in {config.output}")


if __name__ == "__main__":
    build(draccus.parse(BuildConfig))
