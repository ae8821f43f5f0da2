"""Second phase: the action head learns the experts' chunks over the frozen backbone's tokens.

What it learns from is arranged so that it listens to what the backbone tells (grounding.py). Left
to itself it reads the pictures' tokens, by which it knows the kitchens of its frames and no others,
and never asks the tellers (docs/nano.md has the figures). So

- all tokens between the words and the tellers are another frame's;
- the first updates are regression, from no noise to the chunk. Flow matching, most of whose
  gradient is the noise's, takes far longer to find what is told;
- most updates see four of the pictures' tokens and the steps that robots use, at twice the speed.

Tellers tell what they found and not the truth: a head that learned from the truth trusts numbers
that miss.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from grounding import TELLERS
from robots import HORIZON
from sources import Chunks, Source, joined
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.policies.vla import Encoding

SAMPLES = 8  # chunks of a frame whose mean is held against the expert's
LOOKED_AT = 256  # frames of each robot that are sampled for
REGRESSION = 0.5  # share of the updates without noise
SHORT = 0.85  # share of the updates on the robots' own steps and few tokens, at twice the speed
FEW = 4  # tokens of pictures, where they are few


def imitate(
    model: Any,
    sources: list[Source],
    every: list[Chunks],
    sizes: list[int],
    schedule: Callable[[list[nn.Parameter]], tuple[Any, Any]],
    steps: int,
) -> None:
    """Regression, then GR00T's flow-matching loss, on cached tokens.

    Args:
        model: Its action head is trained.
        sources: Robots, each with its chunks in ``every``.
        every: Tokens and targets.
        sizes: How many chunks of each robot an update is made of.
        schedule: Makes the optimizer and its schedule.
        steps: Updates.
    """
    head = model.action_head
    head.requires_grad_(True)
    head.train()
    keep_unused_at_zero(head, sources)
    vla = sources[0].vla
    optimizer, rate = schedule(list(head.parameters()))
    progress = tqdm(range(steps), desc="flow matching")
    for step in progress:
        short = step < SHORT * steps
        batches = [drawn(chunks, n, short) for chunks, n in zip(every, sizes, strict=True)]
        encoding, action, counts = joined(batches)
        if short:
            action, counts = action[:, :HORIZON], counts[:, :HORIZON]
        if step < REGRESSION * steps:
            missed = (chunk_without_noise(vla, encoding, action) - action).square() * counts
            loss = missed.sum() / counts.sum()
        else:
            loss = vla.flow_matching_loss(encoding, action, counts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    head.eval()


def drawn(chunks: Chunks, count: int, short: bool) -> tuple[Encoding, Tensor, Tensor]:
    """A batch to train on, in which no picture is the frame's own.

    Args:
        chunks: Of one robot.
        count: B.
        short: Keep `FEW` tokens of the pictures, and none of padding.
    """
    index = chunks.train[torch.randint(len(chunks.train), (count,))]
    encoding, action, counts = chunks.batch(index)
    tokens, pictures = encoding.tokens, chunks.images[0]  # at the same places in each frame
    first = int(pictures.int().argmax())
    others = tokens[torch.randperm(count), first:-TELLERS]
    tokens = torch.cat([tokens[:, :first], others, tokens[:, -TELLERS:]], dim=1)
    kept = torch.arange(len(pictures))
    if short:
        some = torch.where(pictures)[0]
        some = some[torch.randperm(len(some))[:FEW]]
        words = torch.where(~pictures & chunks.attention.any(0))[0]
        kept = torch.cat([words, some]).sort().values
    masks = {name: getattr(encoding, name)[:, kept] for name in ("attention_mask", "image_mask")}
    return replace(encoding, tokens=tokens[:, kept], **masks), action, counts


def chunk_without_noise(vla: Any, encoding: Encoding, like: Tensor) -> Tensor:
    """What the head makes of no noise at time 0, as long as ``like`` (B, H, A_model)."""
    head = vla.groot.action_head
    seen, given = vla.head_inputs(encoding)
    seen = head.process_backbone_output(seen)
    robot = given.embodiment_id
    state = head.state_encoder(given.state.view(len(like), 1, -1), robot)
    start = torch.zeros(len(like), dtype=torch.long, device=like.device)
    action = head.action_encoder(torch.zeros_like(like), start, robot)
    action = action + head.position_embedding(torch.arange(like.shape[1], device=like.device))
    out, _ = head.model(
        hidden_states=torch.cat([state, action], dim=1),
        encoder_hidden_states=seen.backbone_features,
        encoder_attention_mask=seen.backbone_attention_mask,
        timestep=start,
        return_all_hidden_states=True,
        image_mask=seen.image_mask,
        backbone_attention_mask=seen.backbone_attention_mask,
    )
    return head.action_decoder(out, robot)[:, -like.shape[1] :]


def keep_unused_at_zero(head: Any, sources: list[Source]) -> None:
    """Let no noise in through action dimensions that a robot does not have.

    The head pads them with noise that stays noise while it samples; 132 of them would drown seven.
    """
    weight = head.action_encoder.W1.W  # (embodiments, action dimensions, width)
    used = torch.ones_like(weight[..., :1])
    for source in sources:
        used[source.robot.number, source.robot.action_dim :] = 0
    with torch.no_grad():
        weight.mul_(used)
    weight.register_hook(lambda gradient: gradient * used)


@torch.no_grad()
def imitated(source: Source, chunks: Chunks) -> dict[str, Any]:
    """How well a robot's experts are imitated.

    Returns:
        ``flow_loss`` of the held-out episodes, and ``unexplained``, of them and of those that were
        trained on: the distance of the mean sampled chunk from the expert's, over that of always
        the mean command. The loss hides what a head has not learned, for most of it is noise.
    """
    losses = [
        source.vla.flow_matching_loss(*chunks.batch(part)).item() for part in chunks.test.split(256)
    ]
    return {
        "flow_loss": sum(losses) / len(losses),
        "unexplained": {
            name: unexplained(source, chunks, index[torch.randperm(len(index))[:LOOKED_AT]])
            for name, index in (("held_out", chunks.test), ("trained", chunks.train))
        },
    }


def unexplained(source: Source, chunks: Chunks, index: Tensor) -> float:
    """Of `imitated`, over the chunks ``index``; 1 for what knows nothing but the mean command."""
    encoding, wanted, counts = chunks.batch(index)
    noise = torch.randn(len(index), SAMPLES, *source.vla.spec.noise_shape)
    sampled = source.vla.sample_normalised(encoding, noise).float().mean(1)
    wanted, sampled = wanted[:, :HORIZON], sampled[:, :HORIZON]
    counts = counts[:, :HORIZON]  # (B, HORIZON, A_model)
    usual = (wanted * counts).sum((0, 1)) / counts.sum((0, 1)).clamp(min=1)
    missed, spread = ((wanted - guess).abs() * counts for guess in (sampled, usual))
    return float(missed.sum() / spread.sum())
