"""The fixed support of a categorical value and the HL-Gauss projection onto it.

HL-Gauss: "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL"
(arXiv 2403.03950); support bounds: DEAS (arXiv 2510.07730).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.errors import DeasError

# How far beyond the returns seen in the data the "data" support reaches, as a share of their
# range: with 101 bins some nine bins, more than the three sigma that HL-Gauss needs to be unbiased.
DATA_MARGIN = 0.1


@dataclass(frozen=True)
class ValueSupport:
    """``bins`` equal bins on ``[v_min, v_max]``, in units of return.

    Raises DeasError unless ``v_min < v_max`` are finite, ``bins >= 2`` and ``sigma_bins > 0``.
    """

    v_min: float
    v_max: float
    bins: int = 101
    sigma_bins: float = 0.75

    def __post_init__(self) -> None:
        if not (math.isfinite(self.v_min) and math.isfinite(self.v_max)):
            raise DeasError(f"value support [{self.v_min}, {self.v_max}]: both must be finite")
        if not self.v_min < self.v_max:
            raise DeasError(f"value support [{self.v_min}, {self.v_max}]: it must have a length")
        if self.bins < 2:
            raise DeasError(f"value support with bins = {self.bins}: it takes 2 or more")
        if not self.sigma_bins > 0:
            raise DeasError(f"value support with sigma_bins = {self.sigma_bins}: it takes above 0")

    @property
    def width(self) -> float:
        """Width of a bin, in units of return."""
        return (self.v_max - self.v_min) / self.bins

    def centres(self, like: Tensor) -> Tensor:
        """Bin centres ``c_i``, (bins,), on the device and in the dtype of ``like``."""
        index = torch.arange(self.bins, device=like.device, dtype=like.dtype)
        return self.v_min + (index + 0.5) * self.width

    def project(self, y: Tensor, sigma: float | None = None) -> Tensor:
        """HL-Gauss: the mass of ``N(y, sigma)`` in each bin, renormalised over the support.

        ``p_i = (F(l_{i+1}) - F(l_i)) / (F(v_max) - F(v_min))`` with F the normal distribution
        function and l the bin edges (arXiv 2403.03950). ``y`` (...,) in units of
        return is clamped to the support first; ``sigma`` in units of return defaults to
        ``sigma_bins * width``. Returns (..., bins), never NaN for a y that isn't: computed in
        float32 even under autocast, in float64 for a float64 ``y``.

        The tail beyond an end of the support counts no more: a y within three sigma of an end comes
        out with an expectation further inside, by 0.7 bins at the end itself for the default sigma.
        """
        y = widen(y)
        scale = self.sigma_bins if sigma is None else sigma / self.width
        with torch.autocast(y.device.type, enabled=False):
            # In units of bins, counted from v_min, the edges are the exact integers 0..bins.
            position = ((y - self.v_min) / self.width).clamp(0, self.bins)
            edges = torch.arange(self.bins + 1, device=y.device, dtype=y.dtype)
            cdf = torch.erf((edges - position.unsqueeze(-1)) / (math.sqrt(2) * scale))
            mass = cdf.diff(dim=-1)
            return mass / (cdf[..., -1:] - cdf[..., :1])

    def expectation(self, probs: Tensor) -> Tensor:
        """``E[p] = sum_i p_i c_i``: probabilities (..., bins) to units of return (...,)."""
        probs = widen(probs)
        index = torch.arange(self.bins, device=probs.device, dtype=probs.dtype)
        # A weighted sum in bins and one affine map keep v_min's magnitude out of the rounding.
        return self.v_min + self.width * ((probs * (index + 0.5)).sum(-1))

    def outside(self, y: Tensor) -> Tensor:
        """Where a target (...,) lies outside the support and is clamped; bool (...,)."""
        return (y < self.v_min) | (y > self.v_max)


def widen(x: Tensor) -> Tensor:
    """``x`` in float32 at least: half precisions are widened, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def support_bounds(
    kind: str,
    *,
    r_min: float,
    r_max: float,
    g1: float,
    g2: float,
    horizon: int,
    returns: Sequence[float] | Tensor | None = None,
    fixed: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Bounds ``(v_min, v_max)`` of the value support, in units of return.

    - ``smdp``: ``r (1-g1^H)/(1-g1) / (1-g2^H)`` of ``r_min`` and ``r_max``, the value of earning it
      for ever in whole chunks (DEAS);
    - ``geometric``: ``r / (1-g2)``;
    - ``data``: the range of ``returns`` (chunk Monte-Carlo returns, in the same discounts) and
      `DATA_MARGIN` of it on both sides;
    - ``fixed``: ``fixed`` as given.

    An episode may also end after one step, so the first two reach at least to ``r_min`` and
    ``r_max`` themselves: it matters only where both rewards have one sign.

    Raises DeasError for an unknown kind, a discount of 1 where the sum diverges, returns that are
    missing, not finite or all the same, and bounds that enclose nothing.
    """
    if kind == "smdp":
        bounds = _reach(r_min, r_max, _geometric_sum(g1, horizon) * _infinite_sum(g2**horizon))
    elif kind == "geometric":
        bounds = _reach(r_min, r_max, _infinite_sum(g2))
    elif kind == "data":
        bounds = _data_bounds(returns)
    elif kind == "fixed":
        if fixed is None:
            raise DeasError("critic.support = 'fixed': set critic.v_min and critic.v_max")
        bounds = fixed
    else:
        raise DeasError(f"critic.support = {kind!r}: it takes one of smdp, geometric, data, fixed")
    ValueSupport(*bounds)  # refuses bounds that enclose nothing
    return bounds


def _geometric_sum(g: float, n: int) -> float:
    return float(n) if g == 1 else (1 - g**n) / (1 - g)


def _infinite_sum(g: float) -> float:
    if not g < 1:
        raise DeasError(
            f"critic.g2 with a discount of {g} a chunk: the sum of rewards diverges; "
            "take g2 below 1 or critic.support = 'data' or 'fixed'"
        )
    return 1 / (1 - g)


def _reach(r_min: float, r_max: float, total: float) -> tuple[float, float]:
    return min(r_min, r_min * total), max(r_max, r_max * total)


def _data_bounds(returns: Sequence[float] | Tensor | None) -> tuple[float, float]:
    values = torch.as_tensor([] if returns is None else returns, dtype=torch.float64)
    if values.numel() == 0:
        raise DeasError("critic.support = 'data': no returns were given; take another support")
    if not bool(torch.isfinite(values).all()):
        raise DeasError("critic.support = 'data': a return is NaN or infinite; mend the rewards")
    low, high = values.min().item(), values.max().item()
    if low == high:
        raise DeasError(
            f"critic.support = 'data': every return is {low}; take critic.support = 'fixed'"
        )
    margin = DATA_MARGIN * (high - low)
    return low - margin, high + margin
