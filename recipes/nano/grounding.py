"""First phase: the backbone learns to see where the named thing is.

Three questions to every picture and instruction. *Where* is asked of the means of tokens, as
critics read them. *Pointing* is asked of each token by itself: is the thing in your part of the
picture, where in it, and how far away? An error of the first has to find its way through a mean of
16 tokens; the second tells every token what it looks at, and generalises to other kitchens sooner.
*Telling* is asked of the tokens behind the pictures, and nothing answers for them: their first
numbers have to be the place. An action head that had to learn from chunks alone how to read the
place out of pictures' tokens did not get there (docs/nano.md).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sources import Questions, Source, backbone
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.data.pooling import PoolingConfig, feature_dim, pool_tokens

POOLING = PoolingConfig(kind="camera_mean")  # as critics see it
POINTING = 0.3  # weight of the second question
TELLING = 1.0  # weight of the third
TELLERS = 3  # last tokens, behind all pictures


class Pointer(nn.Module):
    """What each token of a picture says of the thing that the instruction names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, 128), nn.GELU(),
                                 nn.Linear(128, 4))  # fmt: skip

    def forward(self, pictures: Tensor, text: Tensor) -> Tensor:
        """Score, place in the token's cell from its middle, and log of metres: (B, C, T, 4).

        Args:
            pictures: (B, C, T, D), tokens of each picture, row by row.
            text: (B, D), mean of the other tokens.
        """
        asked = text[:, None, None].expand_as(pictures)
        return self.net(torch.cat([pictures, asked], dim=-1))


def pointing_loss(said: Tensor, seen: Tensor) -> Tensor:
    """Cross-entropy of the cell, "in none" among them, and the error of place and distance there.

    Args:
        said: (B, C, T, 4) of a `Pointer`.
        seen: (B, C, 3), `View.seen`, NaN where the thing is not in the picture.
    """
    cell, place = cells(seen, said.shape[2])
    visible = cell >= 0
    none = said.new_zeros(*said.shape[:2], 1)
    scores = torch.cat([said[..., 0], none], dim=2).flatten(0, 1)  # (B * C, T + 1)
    which = torch.where(visible, cell, said.shape[2]).flatten()
    loss = nn.functional.cross_entropy(scores, which)
    if not visible.any():
        return loss
    there = said[visible][torch.arange(int(visible.sum())), cell[visible], 1:]
    return loss + nn.functional.smooth_l1_loss(there, place[visible], beta=0.1)


def cells(seen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Index (B, C) of the cell that a point is in, -1 for none, and place in it (B, C, 3)."""
    side = round(count**0.5)
    at = seen[..., :2] * side
    whole = at.nan_to_num(-1.0).floor()
    cell = torch.where(whole[..., 0] >= 0, whole[..., 1] * side + whole[..., 0], -1).long()
    return cell, torch.cat([at - whole - 0.5, seen[..., 2:].log()], dim=-1)


def pixels_missed(said: Tensor, seen: Tensor, size: int) -> Tensor:
    """Pixels (B, C) between where the best token points and the thing; NaN where it is not seen."""
    side = round(said.shape[2] ** 0.5)
    best = said[..., 0].argmax(dim=2)  # (B, C)
    place = said.gather(2, best[..., None, None].expand(-1, -1, 1, 4))[:, :, 0, 1:3]
    corner = torch.stack([best % side, best // side], dim=-1)
    return ((corner + 0.5 + place) / side - seen[..., :2]).norm(dim=-1) * size


class Answers(nn.Module):
    """The heads that questions are answered by; they are thrown away afterwards."""

    def __init__(self, width: int, sources: list[Source]) -> None:
        super().__init__()
        self.pointer = Pointer(width)
        self.where = nn.ModuleDict()
        for source in sources:
            pooled = feature_dim(POOLING, len(source.robot.cameras), width)
            self.where[source.robot.tag] = nn.Sequential(
                nn.LayerNorm(pooled), nn.Linear(pooled, 256), nn.GELU(), nn.Linear(256, 6)
            )

    def forward(
        self, model: Any, source: Source, batch: Questions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``model``'s tokens: what heads make of their means, of each, and what they tell.

        Returns:
            Places (B, 6) in the source's units, `Pointer`'s (B, C, T, 4), `told` (B, K, 6).
        """
        out = backbone(model, batch)
        tokens, image = out["backbone_features"], out["image_mask"]
        real = out["backbone_attention_mask"]
        pooled = pool_tokens(tokens, real, image, batch.images.shape[1], POOLING)
        pictures = tokens[image].unflatten(0, (len(tokens), batch.images.shape[1], -1))
        words = (real.bool() & ~image).unsqueeze(-1)
        text = (tokens * words).sum(1) / words.sum(1)
        return self.where[source.robot.tag](pooled), self.pointer(pictures, text), told(tokens)


def told(tokens: Tensor) -> Tensor:
    """Places (B, `TELLERS`, 6) that tokens (B, L, D) tell, as an action head's norm has them."""
    tellers = tokens[:, -TELLERS:].float()
    return nn.functional.layer_norm(tellers, tellers.shape[-1:])[..., :6]


def ground(
    model: Any,
    sources: list[Source],
    drawn: Iterator[tuple[int, Tensor]],
    schedule: Callable[[list[nn.Parameter]], tuple[Any, Any]],
    steps: int,
) -> Answers:
    """Train the backbone and the answers.

    Args:
        model: Its backbone is trained, and frozen again afterwards.
        sources: Frames.
        drawn: Batches: which source, and which of its questions.
        schedule: Makes the optimizer and its schedule.
        steps: Updates.
    """
    answers = Answers(model.config.backbone_embedding_dim, sources)
    parameters = [*model.backbone.parameters(), *answers.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, rate = schedule(parameters)
    progress = tqdm(range(steps), desc="grounding")
    said: dict[str, str] = {}
    for step in progress:
        chosen, index = next(drawn)
        source = sources[chosen]
        batch = source.questions(index, augment=True)
        where, pointed, telling = answers(model, source, batch)
        errors = (
            (where - batch.target).square().mean(),
            pointing_loss(pointed, batch.seen),
            (telling - batch.target[:, None]).square().mean(),
        )
        loss = errors[0] + POINTING * errors[1] + TELLING * errors[2]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        said[source.robot.folder] = " ".join(f"{error.item():.3f}" for error in errors)
        if step % 20 == 0:
            progress.set_postfix(said)
    model.requires_grad_(False)
    return answers


@torch.no_grad()
def missed(model: Any, answers: Answers, source: Source) -> dict[str, float | None]:
    """Median misses of the held-out episodes, as the last token tells; None without such frames.

    Returns:
        Millimetres from the hand for questions about experts' frames, for those nearer than 20 cm,
        and of a robot that stands about; pixels of the pictures in which the thing is, nearer than
        20 cm.
    """
    misses, pixels = [], []
    for pairs in source.test_pairs.split(256):
        batch = source.questions(pairs)
        _, pointed, telling = answers(model, source, batch)
        misses.append(source.misses(pairs, telling[:, -1]))
        pixels.append(pixels_missed(pointed, batch.seen, batch.images.shape[-1]))
    at_work = source.at_work[source.test_pairs]
    near = at_work & (source.from_hand[source.test_pairs].norm(dim=1) < 0.2)
    millimetres = 1e3 * torch.cat(misses)
    return {
        "grounding_at_work_mm": median(millimetres[at_work]),
        "grounding_near_mm": median(millimetres[near]),
        "grounding_standing_mm": median(millimetres[~at_work]),
        "pointing_near_px": median(torch.cat(pixels)[near]),
    }


def median(values: Tensor) -> float | None:
    """Of what is not NaN; None where there is nothing."""
    known = values[values.isfinite()]
    return float(known.median()) if len(known) else None
