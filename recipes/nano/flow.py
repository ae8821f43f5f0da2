"""Second phase: the action head learns the experts' chunks over the frozen backbone's tokens."""

from collections.abc import Callable
from typing import Any

import torch
from robots import HORIZON
from sources import Chunks, Source, joined
from torch import Tensor, nn
from tqdm import tqdm

SAMPLES = 8  # chunks of a frame whose mean is held against the expert's
LOOKED_AT = 256  # frames of each robot that are sampled for


def imitate(
    model: Any,
    sources: list[Source],
    every: list[Chunks],
    sizes: list[int],
    schedule: Callable[[list[nn.Parameter]], tuple[Any, Any]],
    steps: int,
) -> None:
    """GR00T's flow-matching loss on cached tokens.

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
    length = max(chunks.tokens.shape[1] for chunks in every)
    optimizer, rate = schedule(list(head.parameters()))
    progress = tqdm(range(steps), desc="flow matching")
    for step in progress:
        drawn = [
            c.train[torch.randint(len(c.train), (n,))] for c, n in zip(every, sizes, strict=True)
        ]
        batches = [c.batch(i, length) for c, i in zip(every, drawn, strict=True)]
        loss = sources[0].vla.flow_matching_loss(*joined(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    head.eval()


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
    length = chunks.tokens.shape[1]
    losses = [
        source.vla.flow_matching_loss(*chunks.batch(part, length)).item()
        for part in chunks.test.split(256)
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
    encoding, wanted, counts = chunks.batch(index, chunks.tokens.shape[1])
    noise = torch.randn(len(index), SAMPLES, *source.vla.spec.noise_shape)
    sampled = source.vla.sample_normalised(encoding, noise).float().mean(1)
    wanted, sampled = wanted[:, :HORIZON], sampled[:, :HORIZON]
    counts = counts[:, :HORIZON]  # (B, HORIZON, A_model)
    usual = (wanted * counts).sum((0, 1)) / counts.sum((0, 1)).clamp(min=1)
    missed, spread = ((wanted - guess).abs() * counts for guess in (sampled, usual))
    return float(missed.sum() / spread.sum())
