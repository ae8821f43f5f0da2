"""Which of N scored candidates is executed (algorithms: best-of-N; V-GPS, arXiv 2410.13816)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deas_vla.errors import DeasError


def select(
    scores: Tensor, temperature: float, generators: Sequence[torch.Generator] = ()
) -> Tensor:
    """Choose one candidate per row.

    Args:
        scores: (B, N) critic values.
        temperature: 0 takes the argmax; above 0 draws with probability
            ``softmax(scores / temperature)``, in units of return (V-GPS, section 4).
        generators: Randomness of each row's draw; not used at temperature 0.

    Returns:
        int64 (B,).

    Raises:
        DeasError: A negative temperature, or a score that is not finite.
    """
    if temperature < 0:
        raise DeasError(f"temperature {temperature} is negative: use 0 for argmax or a value above")
    if not torch.isfinite(scores).all():
        raise DeasError(
            f"candidate scores hold {scores[~torch.isfinite(scores)][0]}: retrain the critic"
        )
    if temperature == 0:
        return scores.argmax(dim=1)
    probabilities = torch.softmax(scores.double() / temperature, dim=1)
    rows = zip(probabilities.cpu(), generators, strict=True)
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
    return torch.cat(drawn).to(scores.device)
