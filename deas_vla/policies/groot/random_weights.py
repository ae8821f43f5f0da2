"""GR00T N1.7 of any size with random weights: time and memory do not depend on what they are."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from deas_vla.policies.groot.adapter import GrootVLA
from deas_vla.policies.groot.checkpoint import NO_REMOTE_CODE
from deas_vla.policies.groot.flow import Flow
from deas_vla.policies.groot.processors import quiet
from deas_vla.policies.places import checkpoint_directory

_NANO = "deas_vla/assets/groot_nano"  # tokenizer, statistics and embodiment of every size
_EMBODIMENT = "robosuite_panda"


@dataclass(frozen=True)
class Size:
    """A shape of the network.

    Attributes:
        cameras: Pictures of an observation.
        pixels: Height and width of a picture.
        horizon: Steps of a chunk.
        head: What of LeRobot's ``GR00TN17Config`` differs from the public checkpoint's.
        text: What of the backbone's ``text_config`` differs from Cosmos-Reason2-2B's.
        vision: Likewise of its ``vision_config``.
    """

    cameras: int = 3
    pixels: int = 256
    horizon: int = 40
    head: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


SIZES = {
    # The public checkpoint's limits (40 steps of 132 numbers) on as little as works at all.
    "nano": Size(
        pixels=64,
        head={
            "backbone_embedding_dim": 128,
            "select_layer": 2,
            "hidden_size": 64,
            "input_embedding_dim": 64,
            "image_target_size": [64, 64],
            "image_crop_size": [64, 64],
            "diffusion_model_cfg": {
                "positional_embeddings": None,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 32,
                "norm_type": "ada_norm",
                "dropout": 0.0,
                "final_dropout": False,
                "output_dim": 64,
                "interleave_self_attention": True,
            },
            "vl_self_attention_cfg": {
                "positional_embeddings": None,
                "num_layers": 1,
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "dropout": 0.0,
                "final_dropout": False,
            },
        },
        text={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_hidden_layers": 2,
            "vocab_size": 512,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
                "rope_type": "default",
            },
        },
        vision={
            "hidden_size": 64,
            "intermediate_size": 128,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 128,
            "deepstack_visual_indexes": [0],
        },
    ),
    # A backbone that costs at least ten times what the head costs for one candidate.
    "medium": Size(
        cameras=2,
        horizon=16,
        head={
            "backbone_embedding_dim": 512,
            "select_layer": 8,
            "hidden_size": 256,
            "input_embedding_dim": 256,
            "action_horizon": 16,
            "diffusion_model_cfg": {
                "positional_embeddings": None,
                "num_layers": 8,
                "num_attention_heads": 8,
                "attention_head_dim": 32,
                "norm_type": "ada_norm",
                "dropout": 0.2,
                "final_dropout": True,
                "output_dim": 256,
                "interleave_self_attention": True,
            },
            "vl_self_attention_cfg": {
                "positional_embeddings": None,
                "num_layers": 1,
                "num_attention_heads": 8,
                "attention_head_dim": 64,
                "dropout": 0.2,
                "final_dropout": True,
            },
        },
        text={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_hidden_layers": 8,
            "vocab_size": 512,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [12, 10, 10],
                "rope_type": "default",
            },
        },
        vision={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "depth": 13,
            "num_heads": 8,
            "out_hidden_size": 512,
            "deepstack_visual_indexes": [2, 4, 6],
        },
    ),
    "full": Size(),
}


def random_vla(
    size: Size, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> GrootVLA:
    """A policy of that size with processors, on nano's embodiment: state 9, action 7 dimensions."""
    cameras = tuple(f"camera{k}" for k in range(size.cameras))
    with TemporaryDirectory() as folder:
        root = Path(folder)
        backbone = _write_side_files(root, size, cameras)
        return GrootVLA.assemble(
            _model(size, backbone, device, dtype, seed),
            root,
            str(backbone),
            embodiment=_EMBODIMENT,
            image_keys=tuple(f"observation.images.{name}" for name in cameras),
            state_dim=9,
            action_dim=7,
            name_or_path="random weights",
        )


def write_checkpoint(
    root: Path, size: Size, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> None:
    """A raw checkpoint of that size with random weights, laid out as the public one, in ``root``.

    It knows `new_embodiment`, of any cameras and dimensions up to the network's, and has nano's
    tokenizer. The public shape takes 6.3 GB of memory and of disk.
    """
    root.mkdir(parents=True, exist_ok=True)
    cameras = tuple(f"camera{k}" for k in range(size.cameras))
    backbone = _write_side_files(root, size, cameras)
    model = _model(size, backbone, "cpu", dtype, seed)
    model.config.model_name = backbone.name  # beside it, wherever the checkpoint is moved to
    model.config.architectures = [type(model).__name__]
    with quiet():
        model.save_pretrained(root, max_shard_size="2GB")


def _model(size: Size, backbone: Path, device: str, dtype: torch.dtype, seed: int) -> Any:
    """LeRobot's ``GR00TN17`` with random weights, made in their final type."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    settings = GR00TN17Config(model_name=str(backbone), **size.head)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with quiet(), torch.random.fork_rng([]), torch.device(device):
            torch.manual_seed(seed)
            model = GR00TN17(
                settings, load_backbone_weights=False, transformers_loading_kwargs=NO_REMOTE_CODE
            )
    finally:
        torch.set_default_dtype(before)
    return model.to(device, dtype)


def head_on_meta(
    size: Size, tokens: int
) -> tuple[Any, Callable[[int], None], Callable[[int], None]]:
    """The action head's operations without any weight or number: for counting them.

    Args:
        size: Its shape; bfloat16.
        tokens: Vision-language tokens L of an observation, pictures' ones among them.

    Returns:
        LeRobot's head, and two functions of N: the fused head on N candidates of one observation,
        and LeRobot's own on N copies.
    """
    from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead, GR00TN17Config
    from transformers.feature_extraction_utils import BatchFeature

    settings = GR00TN17Config(**size.head)
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    with torch.device("meta"):
        head = GR00TN17ActionHead(settings).to(torch.bfloat16).eval().requires_grad_(False)
    pictures = torch.arange(tokens) < size.cameras * (size.pixels // 32) ** 2

    def run(flow: Flow, count: int, masks: str) -> None:
        backbone = {
            "backbone_features": torch.empty(1, tokens, settings.backbone_embedding_dim, **meta),
            "backbone_attention_mask": torch.ones(1, tokens, dtype=torch.bool, device=masks),
            "image_mask": pictures[None].to(masks),
        }
        action = {
            "state": torch.empty(1, 1, settings.max_state_dim, **meta),
            "embodiment_id": torch.zeros(1, dtype=torch.long, device="meta"),
        }
        noise = torch.empty(1, count, size.horizon, settings.max_action_dim, **meta)
        with torch.no_grad():
            flow.sample(head, BatchFeature(data=backbone), BatchFeature(data=action), noise)

    # How many tokens a mask picks is looked at where it is: the fused head takes it from the host.
    return head, lambda n: run(Flow(), n, "cpu"), lambda n: run(Flow(fuse=False), n, "meta")


def _write_side_files(root: Path, size: Size, cameras: tuple[str, ...]) -> Path:
    """Nano's processor and statistics, with this size's pictures and chunks; the backbone's."""
    from lerobot.policies.groot.groot_n1_7 import _cosmos_reason2_qwen3_vl_config

    nano = checkpoint_directory(_NANO)
    backbone = root / "backbone"
    shutil.copytree(nano / "backbone", backbone)
    for name in ("statistics.json", "embodiment_id.json"):
        shutil.copy(nano / name, root / name)
    (root / "config.json").write_text(json.dumps({"model_type": "Gr00tN1d7"}))
    processor = json.loads((nano / "processor_config.json").read_text())
    settings = processor["processor_kwargs"]
    settings["image_target_size"] = settings["image_crop_size"] = [size.pixels] * 2
    settings["max_action_horizon"] = size.horizon
    modality = settings["modality_configs"][_EMBODIMENT]
    modality["video"]["modality_keys"] = list(cameras)
    modality["action"]["delta_indices"] = list(range(size.horizon))
    (root / "processor_config.json").write_text(json.dumps(processor))

    tokens = json.loads((nano / "backbone/config.json").read_text())
    config = _cosmos_reason2_qwen3_vl_config().to_dict()
    config["text_config"] |= size.text | {
        key: tokens["text_config"][key] for key in ("bos_token_id", "eos_token_id")
    }
    config["vision_config"] |= size.vision
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config |= {key: tokens[key] for key in ids}
    (backbone / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        pictures = json.loads((backbone / name).read_text())
        pictures["patch_size"] = config["vision_config"]["patch_size"]
        (backbone / name).write_text(json.dumps(pictures))
    return backbone
