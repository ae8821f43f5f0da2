"""GR00T's preprocessing in worker processes, with the checkpoint's own augmentation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deas_vla.policies.groot.processors import encode_step
from deas_vla.policies.on_cpu import on_cpu

BACKBONE_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")


@dataclass(frozen=True)
class Augmentation:
    """What a checkpoint was trained with, drawn once for all pictures of an observation.

    NVIDIA's order is crop, rotation, colour; here colour and rotation see the whole picture.

    Attributes:
        crop: Share of height and width that a window keeps; 1 for no crop.
        rotation: Largest angle either way, degrees.
        jitter: ``brightness``, ``contrast``, ``saturation``, ``hue``, as torchvision's.
        letter_box: Whether a picture is made square by black borders before it is cropped.
    """

    crop: float
    rotation: float
    jitter: dict[str, float]
    letter_box: bool

    def __call__(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures (3, H, W) of one observation; drawn from torch's global generator."""
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        steps: list[Any] = []
        if self.jitter:
            steps.append(v2.ColorJitter(**self.jitter))
        if self.rotation:
            steps.append(v2.RandomRotation(self.rotation))
        images: Any = [tv_tensors.Image(picture) for picture in pictures]
        for step in steps:
            images = step(images)  # one draw for the whole list
        plain = [image.as_subclass(Tensor) for image in images]
        if self.letter_box:
            plain = [_square(picture) for picture in plain]
        return random_window(plain, self.crop) if self.crop < 1 else plain


def random_window(pictures: Sequence[Tensor], share: float) -> list[Tensor]:
    """The same window of all pictures, ``share`` of their height and width, anywhere."""
    down, right = torch.rand(2).tolist()
    out = []
    for picture in pictures:
        height, width = picture.shape[-2:]
        tall, wide = max(1, round(height * share)), max(1, round(width * share))
        top, left = round((height - tall) * down), round((width - wide) * right)
        out.append(picture[..., top : top + tall, left : left + wide])
    return out


def _square(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    tall, wide = max(0, width - height), max(0, height - width)
    borders = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
    return torch.nn.functional.pad(picture, borders)


def own_augmentation(root: Path, preprocessor: Any) -> Augmentation:
    """What the checkpoint in ``root`` says of its training: processor_config.json or config.json.

    Crop and letter box are those of LeRobot's processor, which reads the same files; colour and
    rotation it does not know.
    """
    said: dict[str, Any] = {}
    for name in ("config.json", "processor_config.json"):
        if (file := root / name).is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            found = content.get("processor_kwargs", content)
            said |= {key: value for key, value in found.items() if value is not None}
    jitter = said.get("color_jitter_params") or {}
    step = encode_step(preprocessor)
    share = step.crop_fraction
    if share is None and step.image_crop_size is not None:
        share = step.image_crop_size[0] / step.image_target_size[0]
    return Augmentation(
        crop=share if share is not None and 0 < share < 1 else 1.0,
        rotation=float(said.get("random_rotation_angle") or 0),
        jitter={name: float(value) for name, value in jitter.items() if value},
        letter_box=bool(step.letter_box_transform),
    )


class GrootTrainingInputs:
    """`TrainingInputs` of GR00T: a copy of LeRobot's preprocessor that stays on the CPU.

    Args:
        preprocessor: Of the policy.
        state_dim: S; the copy is handed states of zeros, which no input of the backbone shows.
        dtype: Of the network, which pictures travel in.
        augmentation: Of `augment`; None for none.
    """

    def __init__(
        self,
        preprocessor: Any,
        state_dim: int,
        dtype: torch.dtype,
        augmentation: Augmentation | None,
    ) -> None:
        self._preprocessor = on_cpu(preprocessor)
        self._state_dim = state_dim
        self._dtype = dtype
        self._augmentation = augmentation
        if augmentation is not None:
            encode_step(self._preprocessor).crop_fraction = 1.0  # the window is cut before

    def augment(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._augmentation is None:
            return dict(pictures)
        return dict(zip(pictures, self._augmentation(list(pictures.values())), strict=True))

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        state = torch.zeros(len(observation["task"]), self._state_dim)
        inputs = self._preprocessor({**observation, "observation.state": state})
        kept: dict[str, Tensor] = {name: inputs[name] for name in BACKBONE_INPUTS}
        # The network would round them to its own type: half the memory on the way there.
        kept["pixel_values"] = kept["pixel_values"].to(self._dtype)
        return kept
