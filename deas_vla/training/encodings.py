"""What the frozen backbone made of a dataset's frames, and of several datasets' together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.joining import join_rows


@dataclass(frozen=True)
class Encodings:
    """What the frozen backbone made of all frames.

    Attributes:
        pooled: float16 (T, F), the critic's features.
        tokens: (T, L * D) float16, or the bits of bfloat16 as uint16, padded on the left; None
            where the action head is not trained.
        token_mask: bool (K, L) per instruction, false on padding.
        image_mask: bool (K, L) per instruction.
        task_index: int64 (T,), instruction of each frame.
        unreadable: Episode rows whose videos could not be read: their frames stand for nothing.
    """

    pooled: NDArray[np.float16]
    tokens: NDArray[Any] | None
    token_mask: Tensor
    image_mask: Tensor
    task_index: NDArray[np.int64]
    unreadable: tuple[int, ...] = ()

    def readable(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some episode rows that there are features of."""
        return episodes[~np.isin(episodes, self.unreadable)]

    def batch(self, frames: NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
        """Tokens (B, L, D) and masks (B, L) of the given frames, on ``device``."""
        assert self.tokens is not None
        task = torch.from_numpy(self.task_index[frames])
        tokens = torch.from_numpy(self.tokens[frames])  # (B, L * D)
        if tokens.dtype == torch.uint16:
            tokens = tokens.view(torch.bfloat16)
        return {
            "tokens": tokens.unflatten(1, (self.token_mask.shape[1], -1)).to(device),
            "token_mask": self.token_mask[task].to(device),
            "image_mask": self.image_mask[task].to(device),
        }


def join_encodings(
    encodings: Sequence[Encodings], tables: Sequence[EpisodeTable], joined: EpisodeTable
) -> Encodings:
    """What the backbone made of all frames of ``joined``; no row is copied.

    Args:
        encodings: Of each table, with tokens or all without.
        tables: The datasets.
        joined: ``join_tables(tables)``.
    """
    length = max(each.token_mask.shape[1] for each in encodings)
    masks: dict[str, tuple[Tensor, Tensor]] = {}
    unreadable: list[int] = []
    episodes = 0
    for each, table in zip(encodings, tables, strict=True):
        short = length - each.token_mask.shape[1]
        for row, task in enumerate(table.tasks):
            token, image = each.token_mask[row], each.image_mask[row]
            masks[task] = pad(token, (short, 0)), pad(image, (short, 0))
        unreadable += [row + episodes for row in each.unreadable]
        episodes += table.num_episodes
    tokens = [each.tokens for each in encodings if each.tokens is not None]
    return Encodings(
        join_rows([each.pooled for each in encodings]),
        join_rows(tokens) if len(tokens) == len(encodings) else None,
        torch.stack([masks[task][0] for task in joined.tasks]),
        torch.stack([masks[task][1] for task in joined.tasks]),
        joined.task_index,
        tuple(unreadable),
    )
