"""Encodings of several datasets as those of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from deas_vla.data.episodes import EpisodeTable
from deas_vla.training.features import Encodings


@dataclass(frozen=True)
class TokenRows:
    """Cached tokens of several datasets, looked up by the frames of the joined table.

    Attributes:
        parts: float16 (T_i, L_i * D) each, on disk.
        width: L * D of the longest; shorter rows are padded on the left with zeros.
    """

    parts: tuple[NDArray[np.float16], ...]
    width: int

    def __getitem__(self, frames: NDArray[np.int64]) -> NDArray[np.float16]:
        """float16 (B, L * D) of ``frames`` (B,)."""
        rows = np.zeros((len(frames), self.width), dtype=np.float16)
        begin = 0
        for part in self.parts:
            here = (frames >= begin) & (frames < begin + len(part))
            rows[here, self.width - part.shape[1] :] = part[frames[here] - begin]
            begin += len(part)
        return rows


def join_encodings(
    encodings: Sequence[Encodings], tables: Sequence[EpisodeTable], joined: EpisodeTable
) -> Encodings:
    """What the backbone made of all frames of ``joined``.

    Args:
        encodings: Of each table, with tokens or all without.
        tables: The datasets.
        joined: ``join_tables(tables)``.
    """
    length = max(each.token_mask.shape[1] for each in encodings)
    masks: dict[str, tuple[Tensor, Tensor]] = {}
    for each, table in zip(encodings, tables, strict=True):
        short = length - each.token_mask.shape[1]
        for row, task in enumerate(table.tasks):
            both = (each.token_mask[row], each.image_mask[row])
            masks[task] = tuple(pad(mask, (short, 0)) for mask in both)  # type: ignore[assignment]
    parts = [each.tokens for each in encodings if each.tokens is not None]
    whole = [part for part in parts if isinstance(part, np.ndarray)]
    tokens = None
    if len(whole) == len(encodings):
        tokens = TokenRows(tuple(whole), max(part.shape[1] for part in whole))
    return Encodings(
        np.concatenate([each.pooled for each in encodings]),
        tokens,
        torch.stack([masks[task][0] for task in joined.tasks]),
        torch.stack([masks[task][1] for task in joined.tasks]),
        joined.task_index,
    )
