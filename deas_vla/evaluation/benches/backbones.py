"""Frozen backbones as a training loop would run them: on every batch, from pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import iter_episode_frames
from deas_vla.data.pooling import PoolingConfig, pool_tokens
from deas_vla.guidance.features import pool_encoding
from deas_vla.policies.config import VLAConfig
from deas_vla.policies.vla import VLA

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class BackboneSource:
    """The checkpoint whose frozen backbone the frames go through.

    Attributes:
        path: Local directory or Hub id.
        embodiment: Embodiment tag in it.
        dtype: Of the weights.
    """

    path: str = "deas_vla/assets/groot_nano"
    embodiment: str = "robosuite_panda"
    dtype: str = "float32"

    def vla(self, table: EpisodeTable) -> VLAConfig:
        """What loads it for the dataset's cameras and dimensions."""
        return VLAConfig(
            path=self.path,
            embodiment=self.embodiment,
            image_keys=list(table.image_keys),
            state_dim=table.state.shape[1],
            action_dim=table.action.shape[1],
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone in two halves: only the second belongs into an update.

    Attributes:
        inputs: What it reads of the given frames, on the device: a list of micro-batches.
        run: Its pooled features of such inputs, float32 (B, F).
        width: F.
    """

    inputs: Callable[[NDArray[np.int64]], list[dict[str, Tensor]]]
    run: Callable[[list[dict[str, Tensor]]], Tensor]
    width: int


def checkpoint_backbone(vla: VLA, table: EpisodeTable, micro_batch: int) -> Backbone:
    """A loaded VLA's backbone on the dataset's own pictures, all of which are decoded here."""
    keys = vla.spec.image_keys
    decoded = [part for _, part in iter_episode_frames(table.root, table, keys)]
    pictures = {key: np.concatenate([part[key] for part in decoded]) for key in keys}

    def inputs(frames: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        batches = []
        for part in _parts(frames, micro_batch):
            batch: dict[str, Any] = {
                key: torch.from_numpy(pictures[key][part]).permute(0, 3, 1, 2) for key in keys
            }
            batch["observation.state"] = torch.from_numpy(table.state[part])
            batch["task"] = [table.tasks[task] for task in table.task_index[part]]
            batches.append(vla.preprocess(batch) | {"raw_state": batch["observation.state"]})
        return batches

    def run(batches: list[dict[str, Tensor]]) -> Tensor:
        encodings = [vla.encode_inputs(batch, batch["raw_state"]) for batch in batches]
        return torch.cat([pool_encoding(vla, each, PoolingConfig()) for each in encodings])

    return Backbone(inputs, run, vla.spec.token_dim)


def full_size_backbone(
    cameras: int, micro_batch: int, dtype: str, device: torch.device, seed: int
) -> Backbone:
    """GR00T N1.7's backbone with random weights, on pictures and words of noise.

    The shapes are those of the public checkpoint (256 x 256 pixels, 64 tokens a camera, an
    instruction of 16 tokens): time does not depend on what stands in them.
    """
    from lerobot.policies.groot.groot_n1_7 import GR00TN17Config, Qwen3Backbone

    settings = GR00TN17Config()
    default = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPES[dtype])
    try:
        with device:
            model = Qwen3Backbone(
                settings.model_name,
                select_layer=settings.select_layer,
                load_pretrained_weights=False,
            )
    finally:
        torch.set_default_dtype(default)
    model = model.to(device, _DTYPES[dtype]).requires_grad_(False).eval()
    ids, vision = model.model.config, model.model.config.vision_config
    side = settings.image_target_size[0] // vision.patch_size
    tokens = (side // vision.spatial_merge_size) ** 2
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    picture = [ids.vision_start_token_id, *[ids.image_token_id] * tokens, ids.vision_end_token_id]
    words = torch.cat([torch.tensor(picture * cameras), torch.arange(100, 116)])
    generator = torch.Generator(device).manual_seed(seed)
    noise: dict[str, Any] = {"device": device, "dtype": _DTYPES[dtype], "generator": generator}

    def inputs(frames: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        batches = []
        for part in _parts(frames, micro_batch):
            shown = len(part) * cameras
            batch = {
                "input_ids": words.repeat(len(part), 1),
                "attention_mask": torch.ones(len(part), len(words), dtype=torch.long),
                "image_grid_thw": torch.tensor([[1, side, side]]).repeat(shown, 1),
            }
            pixels = torch.randn(shown * side**2, patch, **noise)
            batches.append({k: v.to(device) for k, v in batch.items()} | {"pixel_values": pixels})
        return batches

    @torch.no_grad()
    def run(batches: list[dict[str, Tensor]]) -> Tensor:
        parts = []
        for batch in batches:
            out = model(model.prepare_input(dict(batch)))
            masks = out["backbone_attention_mask"], out["image_mask"]
            parts.append(pool_tokens(out["backbone_features"], *masks, cameras, PoolingConfig()))
        return torch.cat(parts)

    return Backbone(inputs, run, settings.backbone_embedding_dim)


def _parts(frames: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [frames[at : at + size] for at in range(0, len(frames), size)]
