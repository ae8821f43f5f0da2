"""What stands in a chunk after the step that ended its episode.

The actions after a terminal step were never executed, so Q is the same for every tail. A constant
filling would say otherwise: only chunks that end an episode have it, so that it marks the outcome
in training and is absent from every candidate scored later. Tails are therefore drawn anew for
each batch from what a policy may put there.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from deas_vla.errors import DeasError


@dataclass
class TailConfig:
    """How often each kind of tail is drawn, relative to the others.

    Attributes:
        hold: The last executed action, held.
        steps: Independent steps of other chunks.
        chunks: Consecutive steps of one other chunk.
        policy: What the policy proposed at the same frame, where its samples are cached; drawn as
            ``hold`` where they are not.
    """

    hold: float = 1.0
    steps: float = 1.0
    chunks: float = 1.0
    policy: float = 1.0

    def __post_init__(self) -> None:
        shares = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, share in shares.items():
            if not 0 <= share < float("inf"):
                raise DeasError(f"tails.{name} {share}: use a finite share of 0 or more")
        if not sum(shares.values()) > 0:
            raise DeasError(f"tails {shares}: give at least one kind a share above 0")


KINDS = tuple(f.name for f in fields(TailConfig))


class Tails:
    """Fills chunks after their valid steps; the same draw for the same seed on any device.

    Args:
        actions: (T, A) actions of all frames.
        steps: int64 (K,), frames that single steps are drawn from.
        chunks: int64 (C,), frames at which whole chunks of H executed steps start; may be empty
            where no episode holds one, and single steps stand in.
        horizon: H.
        config: Shares of the kinds.
    """

    def __init__(
        self, actions: Tensor, steps: Tensor, chunks: Tensor, horizon: int, config: TailConfig
    ) -> None:
        self._actions = actions
        self._steps = steps
        self._chunks = chunks
        self._offset = torch.arange(horizon, device=actions.device)
        shares = torch.tensor([getattr(config, kind) for kind in KINDS], dtype=torch.float64)
        self._bounds = (shares.cumsum(0) / shares.sum()).to(actions.device)

    def fill(
        self, chunks: Tensor, valid_steps: Tensor, seeds: Tensor, proposed: Tensor | None = None
    ) -> Tensor:
        """Chunks whose invalid steps are drawn.

        Args:
            chunks: (B, H, A); whatever stands in invalid steps is never read.
            valid_steps: int64 (B,) in 1..H, steps that were executed.
            seeds: int64 (B,), one for each row: it alone fixes the row's draw.
            proposed: (B, N, H, A) policy samples at the chunks' frames, if there are any.

        Returns:
            (B, H, A).
        """
        kind = torch.bucketize(_uniform(seeds, 0), self._bounds, right=True)  # (B,)
        kind = kind.clamp_(max=len(KINDS) - 1)
        drawn = {name: self.draw(name, chunks, valid_steps, seeds, proposed) for name in KINDS}
        stacked = torch.stack([drawn[name] for name in KINDS])  # (kinds, B, H, A)
        tail = stacked[kind, torch.arange(len(kind), device=kind.device)]  # (B, H, A)
        valid = self._offset < valid_steps.unsqueeze(1)  # (B, H)
        return torch.where(valid.unsqueeze(2), chunks, tail)

    def draw(
        self,
        kind: str,
        chunks: Tensor,
        valid_steps: Tensor,
        seeds: Tensor,
        proposed: Tensor | None = None,
    ) -> Tensor:
        """Tails of one kind for all rows, (B, H, A); arguments as `fill`."""
        row = torch.arange(len(chunks), device=chunks.device)
        if kind == "policy" and proposed is not None:
            return proposed[row, _integer(seeds, 1, proposed.shape[1])].to(chunks.dtype)
        if kind in ("hold", "policy"):
            return chunks[row, valid_steps - 1].unsqueeze(1).expand_as(chunks)
        if kind == "chunks" and len(self._chunks):
            start = self._chunks[_integer(seeds, 2, len(self._chunks))]  # (B,)
            return self._actions[start.unsqueeze(1) + self._offset]
        salt = 3 + self._offset
        return self._actions[self._steps[_integer(seeds.unsqueeze(1), salt, len(self._steps))]]


def _integer(seeds: Tensor, salt: Tensor | int, count: int) -> Tensor:
    """Integers in 0..count-1 from seeds and salt, int64."""
    return _mix(seeds, salt) % count


def _uniform(seeds: Tensor, salt: Tensor | int) -> Tensor:
    """Numbers in [0, 1) from seeds and salt, float64."""
    return (_mix(seeds, salt) >> 10).double() / 2**53


def _mix(seeds: Tensor, salt: Tensor | int) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014), of which 63 bits are kept: int64, not negative.

    Integer arithmetic, so that a row's draw is the same on every device and in any batch.
    """
    salt = torch.as_tensor(salt, device=seeds.device)
    x = seeds + (salt + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; it wraps
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return (x ^ _shift(x, 31)) & 0x7FFFFFFFFFFFFFFF


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
