"""Which of N scored candidates is executed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.guidance.config import SelectionConfig


@dataclass(frozen=True)
class Selection:
    """A choice for each of B decisions.

    Attributes:
        chosen: int64 (B,).
        scores: (B, N), what was compared, in units of return; None where no critic was asked.
        finite: bool (B,), false where a score was not finite and candidate 0 stayed.
    """

    chosen: Tensor
    scores: Tensor | None
    finite: Tensor


def select(
    config: SelectionConfig,
    candidates: Tensor,
    members: Tensor | None,
    generators: Sequence[torch.Generator],
    scale: Tensor | None = None,
) -> Selection:
    """Choose one candidate per row.

    Args:
        config: The rule; ``check`` has passed.
        candidates: (B, N, H, A) chunks in environment units; ``medoid`` compares them.
        members: (E, B, N) values of the ensemble, or None where the rule asks no critic.
        generators: Randomness of each row's draw.
        scale: (A,) units of the actions that ``medoid`` measures distances in.

    Returns:
        The choice. A row with a score that is not finite keeps candidate 0.
    """
    batch, count = candidates.shape[:2]
    if members is None:
        if count == 1:
            chosen = torch.zeros(batch, dtype=torch.int64)
        elif config.rule == "medoid":
            chosen = _medoid(candidates, scale)
        else:
            chosen = _uniform(count, generators)
        return Selection(chosen, None, torch.ones(batch, dtype=torch.bool))
    scores = pooled(members, config)  # (B, N)
    finite = torch.isfinite(members).all(dim=2).all(dim=0)  # (B,)
    safe = scores.masked_fill(~finite.unsqueeze(1), 0.0)
    if config.rule == "softmax":
        chosen = _draw(chances(safe, config), generators)
    else:
        chosen = safe.argmax(dim=1)
    return Selection(torch.where(finite, chosen, 0), scores, finite)


def pooled(members: Tensor, config: SelectionConfig) -> Tensor:
    """One score (B, N) of the ensemble's values (E, B, N): the smallest, or mean - kappa std."""
    if config.ensemble == "min":
        return members.amin(0)
    return members.mean(0) - config.kappa * members.std(0, correction=0)


def chances(scores: Tensor, config: SelectionConfig) -> Tensor:
    """How probable each candidate is to be taken by its score, float64 (B, N), rows sum to 1.

    Args:
        scores: (B, N), finite, in units of return.
        config: ``softmax`` gives ``exp(score / temperature)``, normalised; any other rule all to
            the highest score.
    """
    if config.rule == "softmax":
        return torch.softmax(scores.double() / config.temperature, dim=1)
    highest = scores.argmax(dim=1)
    return torch.nn.functional.one_hot(highest, scores.shape[1]).double()


def _medoid(candidates: Tensor, scale: Tensor | None) -> Tensor:
    """The candidate with the smallest summed distance to the others, int64 (B,)."""
    flat = (candidates if scale is None else candidates / scale).flatten(2).double()
    return torch.cdist(flat, flat).sum(2).argmin(dim=1)


def _uniform(count: int, generators: Sequence[torch.Generator]) -> Tensor:
    return torch.cat([torch.randint(count, (1,), generator=generator) for generator in generators])


def _draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    rows = zip(probabilities.cpu(), generators, strict=True)
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
    return torch.cat(drawn).to(probabilities.device)
