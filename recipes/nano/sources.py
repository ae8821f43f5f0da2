"""Frames of one robot as the backbone and the action head take them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architecture import IMAGE_SIZE, MERGE, PATCH
from frames import Frames
from robots import Robot
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.errors import DeasError
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.vla import Encoding

# How much colours vary in training: of a table that is always the same, and of kitchens.
COLOURS = {"lift": 0.04, "kitchens": 0.12}
NEAR = 0.05  # metres: within it a miss counts fully, beyond it by its share of the distance


@dataclass
class Questions:
    """A batch of B frames with an instruction each.

    Attributes:
        images: float32 (B, C, 3, H, W), -1 to 1.
        ids: Tokens of picture and text (B, L), padded on the left; ``mask`` says which are real.
        grid: int64 (B * C, 3), patches of each picture.
        target: float32 (B, 6), where the named thing is: in the robot's frame, and from the hand as
            `asinh(distance / NEAR)`, normalised; empty where nothing was asked.
        seen: float32 (B, C, 3), where it is in each picture (`View.seen`); likewise.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    grid: Tensor
    target: Tensor
    seen: Tensor


class Source:
    """One robot's frames, with the processors of its embodiment over the shared model."""

    def __init__(
        self,
        robot: Robot,
        vla: GrootVLA,
        frames: Frames,
        held_out: float,
        seed: int,
        units: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.robot, self.vla, self.frames = robot, vla, frames
        texts = sorted({*frames.text.tolist(), *frames.pair_text.tolist()})
        self.frame_text = torch.from_numpy(np.searchsorted(texts, frames.text))
        self.pair_text = torch.from_numpy(np.searchsorted(texts, frames.pair_text))
        self.pair_frame = torch.from_numpy(frames.pair_frame)
        self.images = torch.from_numpy(frames.images)
        self._read(texts)

        episodes = np.unique(frames.episode)
        rng = np.random.default_rng(seed)
        out = rng.permutation(episodes)[: max(1, round(held_out * len(episodes)))]
        self.held_out = torch.from_numpy(np.isin(frames.episode, out))
        aside = self.held_out[self.pair_frame]
        self.train_pairs, self.test_pairs = torch.where(~aside)[0], torch.where(aside)[0]
        self.at_work = torch.from_numpy(frames.imitate)[self.pair_frame]  # (m,) of an expert
        at = torch.from_numpy(frames.pair_target)
        hand = torch.from_numpy(frames.hand)[self.pair_frame]
        state = frames.state[frames.pair_frame]
        self.seen = torch.from_numpy(robot.seen(frames.pair_target, state))  # (m, C, 3)
        self.from_hand = at - hand  # (m, 3) metres
        where = torch.cat([at, torch.asinh(self.from_hand / NEAR)], dim=1)  # (m, 6)
        known = where[self.train_pairs]
        self.centre, self.scale = units or (known.mean(0), known.std(0))
        self.where = (where - self.centre) / self.scale

    @classmethod
    def load_all(
        cls, robots: list[Robot], init: Path, data: Path, held_out: float, seed: int
    ) -> list["Source"]:
        """All robots' frames over one model."""
        first = robots[0]
        vla = GrootVLA.from_pretrained(
            init, embodiment=first.tag, image_keys=first.image_keys,
            state_dim=first.state_dim, action_dim=first.action_dim,
        )  # fmt: skip
        sources = []
        for robot in robots:
            mine = GrootVLA.assemble(
                vla.model,
                init,
                str(init / "backbone"),
                embodiment=robot.tag,
                image_keys=robot.image_keys,
                state_dim=robot.state_dim,
                action_dim=robot.action_dim,
                name_or_path=str(init),
            )
            frames = Frames.load(data / robot.folder)
            sources.append(cls(robot, mine, frames, held_out, seed))
        return sources

    def elsewhere(self, frames: Frames) -> "Source":
        """Other frames of the robot, all held out, with targets in this source's units."""
        units = self.centre, self.scale
        return Source(self.robot, self.vla, frames, held_out=1.0, seed=0, units=units)

    def questions(self, pairs: Tensor, augment: bool = False) -> Questions:
        batch = self._batch(self.pair_frame[pairs], self.pair_text[pairs])
        if augment:
            batch.images = recoloured(batch.images, COLOURS[self.robot.folder])
        batch.target, batch.seen = self.where[pairs], self.seen[pairs]
        return batch

    def drawn(self, count: int, at_work: float) -> Tensor:
        """Questions to train on, (count,), a share ``at_work`` of them about experts' frames."""
        working = self.at_work[self.train_pairs]
        weight = torch.where(working, at_work / working.sum(), (1 - at_work) / (~working).sum())
        return self.train_pairs[torch.multinomial(weight, count, replacement=True)]

    def misses(self, pairs: Tensor, predicted: Tensor) -> Tensor:
        """Metres (B,) from the place that ``predicted`` (B, 6) tells, seen from the hand."""
        found = NEAR * torch.sinh((predicted * self.scale + self.centre)[:, 3:])
        return (found - self.from_hand[pairs]).norm(dim=1)

    def looks(self, frames: Tensor) -> Questions:
        """Frames with their episodes' own instructions."""
        return self._batch(frames, self.frame_text[frames])

    def targets(self, frames: Tensor, size: int = 256) -> dict[str, Tensor]:
        """State, action, mask and embodiment as LeRobot's processor makes them; halves, bools."""
        parts = []
        for part in frames.split(size):
            columns = (getattr(self.frames, name)[part.numpy()] for name in
                       ("state", "actions", "valid"))  # fmt: skip
            found = self.vla.preprocess_targets(*map(torch.from_numpy, columns))
            found["action"] = found["action"].half()
            found["action_mask"] = found["action_mask"].bool()
            parts.append(found)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _batch(self, frames: Tensor, texts: Tensor) -> Questions:
        images = self.images[frames].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        grid = self.grid.repeat(len(frames), 1)
        return Questions(
            images, self.ids[texts], self.mask[texts], grid, torch.empty(0), torch.empty(0)
        )

    def _read(self, texts: list[str]) -> None:
        """Tokens of every instruction, through LeRobot's processor once, and a look at pixels.

        Raises:
            DeasError: `patches_of` does not do what the processor does.
        """
        few = np.arange(len(texts)) % len(self.images)
        batch: dict[str, Any] = {
            key: self.images[few, k].permute(0, 3, 1, 2)
            for k, key in enumerate(self.robot.image_keys)
        }
        batch["observation.state"] = torch.from_numpy(self.frames.state[few])
        inputs = self.vla.preprocess(batch | {"task": texts})
        self.ids, self.mask = inputs["input_ids"], inputs["attention_mask"]
        self.grid = inputs["image_grid_thw"][: len(self.robot.cameras)]
        ours = patches_of(self._batch(torch.from_numpy(few), torch.arange(len(texts))).images)
        if not torch.allclose(ours, inputs["pixel_values"], atol=1e-3):
            raise DeasError(
                f"the processor of {self.vla.name_or_path} makes other patches of the pictures of "
                f"'{self.robot.tag}': they have to be {IMAGE_SIZE} pixels high and wide"
            )


def patches_of(images: Tensor) -> Tensor:
    """Pictures (B, C, 3, H, W) as Qwen's patches (n, 3*2*p*p), those of a token side by side."""
    cells = IMAGE_SIZE // PATCH // MERGE
    pixels = images.reshape(-1, 3, cells, MERGE, PATCH, cells, MERGE, PATCH)
    pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # a still has two equal moments
    return pixels.expand(*pixels.shape[:6], 2, PATCH, PATCH).reshape(-1, 6 * PATCH * PATCH)


def recoloured(images: Tensor, strength: float) -> Tensor:
    """Another light on each observation (B, C, 3, H, W), and noise on its pixels."""
    shape = (len(images), 1, 3, 1, 1)
    light = 1 + strength * torch.randn(shape)
    return images * light + strength * torch.randn(shape) + 0.02 * torch.randn_like(images)


def backbone(model, batch: Questions) -> dict[str, Tensor]:
    """Tokens of the chosen frames, with gradient."""
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "pixel_values": patches_of(batch.images),
        "image_grid_thw": batch.grid,
    }
    return model.backbone(model.backbone.prepare_input(inputs))


class Chunks:
    """Tokens and targets of every frame of one robot that is imitated."""

    def __init__(self, model, source: Source) -> None:
        frames = torch.from_numpy(np.flatnonzero(source.frames.imitate))
        tokens, attention, images = [], [], []
        with torch.no_grad():
            for part in tqdm(frames.split(32), desc=f"tokens, {source.robot.folder}"):
                out = backbone(model, source.looks(part))
                tokens.append(out["backbone_features"].half())
                attention.append(out["backbone_attention_mask"])
                images.append(out["image_mask"])
        self.tokens, self.attention = torch.cat(tokens), torch.cat(attention)
        self.images = torch.cat(images)
        self.targets = source.targets(frames)
        held_out = source.held_out[frames]
        self.train, self.test = torch.where(~held_out)[0], torch.where(held_out)[0]

    def batch(self, index: Tensor) -> tuple[Encoding, Tensor, Tensor]:
        """Encodings, actions and what of them counts."""
        inputs = {"state": self.targets["state"][index].float()}
        inputs["embodiment_id"] = self.targets["embodiment_id"][index]
        encoding = Encoding(
            self.tokens[index].float(), self.attention[index], self.images[index],
            inputs, inputs["state"],
        )  # fmt: skip
        action, counts = (self.targets[key][index].float() for key in ("action", "action_mask"))
        return encoding, action, counts


def joined(parts: list[tuple[Encoding, Tensor, Tensor]]) -> tuple[Encoding, Tensor, Tensor]:
    """Batches of several robots as one, padded on the left to the longest's tokens."""
    encodings, *rest = zip(*parts, strict=True)
    longest = max(e.tokens.shape[1] for e in encodings)

    def padded(name: str) -> Tensor:
        values = [getattr(e, name) for e in encodings]
        behind = (0, 0) * (values[0].ndim - 2)
        return torch.cat([nn.functional.pad(v, (*behind, longest - v.shape[1], 0)) for v in values])

    whole = {name: padded(name) for name in ("tokens", "attention_mask", "image_mask")}
    keys = encodings[0].inputs
    inputs = {key: torch.cat([e.inputs[key] for e in encodings]) for key in keys}
    action, counts = (torch.cat(part) for part in rest)
    return Encoding(**whole, inputs=inputs, state=inputs["state"]), action, counts
