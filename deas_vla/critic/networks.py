"""Networks of the critics: feature encoder, ensemble of MLPs, residual value network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureEncoder(nn.Sequential):
    """Small trainable encoder of the frozen feature, (..., F) to (..., out_dim) in (-1, 1).

    One hidden layer and a tanh (DEAS, arXiv 2510.07730): 64 bounded
    numbers stand beside the proprioceptive state instead of drowning it in thousands of raw ones.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, out_dim),
            nn.Tanh(),
        )


class EnsembleLinear(nn.Module):
    """E linear layers as one batched product, (E, B, in_dim) to (E, B, out_dim)."""

    def __init__(self, members: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(members, 1, out_dim))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation with its own scale and shift for each member, (E, B, dim)."""

    def __init__(self, members: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, dim))
        self.bias = nn.Parameter(torch.zeros(members, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        # Scale and shift inside the kernel: passes over (E, B, dim) of their own cost more on a CPU
        # than joining the members again.
        members = zip(x.unbind(), self.weight.unbind(), self.bias.unbind(), strict=True)
        return torch.stack([F.layer_norm(m, m.shape[-1:], w[0], b[0]) for m, w, b in members])


class EnsembleMLP(nn.Module):
    """E independent MLPs with (linear, LayerNorm, GELU) layers and a linear head.

    Takes one input for all members (B, in_dim) or one each (E, B, in_dim); returns (E, B, out_dim).
    """

    def __init__(self, members: int, in_dim: int, hidden: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [
                EnsembleLinear(members, in_dim, width),
                EnsembleLayerNorm(members, width),
                nn.GELU(),
            ]
            in_dim = width
        self.layers = nn.Sequential(*layers, EnsembleLinear(members, in_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.expand(self.members, -1, -1)
        out: Tensor = self.layers(x)
        return out


class ResidualBlock(nn.Module):
    """``x + LN(W2 act(LN(W1 x)))``, the block of BRO (arXiv 2405.16158)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class ResidualMLP(nn.Sequential):
    """Residual LayerNorm network with ``depth`` blocks, (B, in_dim) to (B, out_dim)."""

    def __init__(self, in_dim: int, width: int, depth: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, width),
            nn.LayerNorm(width),
            nn.GELU(),
            *(ResidualBlock(width) for _ in range(depth)),
            nn.Linear(width, out_dim),
        )


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every linear layer from ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``, torch's own default.

    With a generator the weights depend on nothing else that drew random numbers.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | EnsembleLinear):
            fan_in = layer.weight.shape[1]  # (out, in) or (E, in, out)
            bound = fan_in**-0.5 if fan_in > 0 else 0.0
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)


def frozen_copy[M: nn.Module](module: M) -> M:
    """A copy that no optimizer trains: the start of an EMA target."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """``target <- (1 - rate) target + rate online``, in place, all parameters at once."""
    # The call behind torch.optim.swa_utils: one kernel on a GPU instead of one per parameter.
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
