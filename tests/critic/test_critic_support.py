"""HL-Gauss and the support bounds, against float64 references, scipy and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from deas_vla.critic import ValueSupport, support_bounds
from deas_vla.critic.deas import cross_entropy, expectile_weight
from deas_vla.errors import DeasError

SIGMAS = (0.1, 0.75, 3.0)  # in bins

supports = st.builds(
    lambda low, length, bins, sigma: ValueSupport(low, low + length, bins, sigma),
    st.floats(-200, 200),
    st.floats(0.1, 500),
    st.integers(2, 201),
    st.floats(0.1, 3),
)


def scipy_projection(support: ValueSupport, y: float, sigma: float) -> torch.Tensor:
    """The projection bin by bin in float64, from scipy's normal distribution and its tails."""
    y = min(max(y, support.v_min), support.v_max)
    edges = [
        support.v_min + (support.v_max - support.v_min) * i / support.bins
        for i in range(support.bins + 1)
    ]
    dist = norm(y, sigma)
    mass = [
        # Beyond y the survival function keeps the digits that a difference near 1 would lose.
        dist.sf(low) - dist.sf(high) if low > y else dist.cdf(high) - dist.cdf(low)
        for low, high in itertools.pairwise(edges)
    ]
    total = dist.cdf(support.v_max) - dist.cdf(support.v_min)
    return torch.tensor([m / total for m in mass], dtype=torch.float64)


def targets(support: ValueSupport) -> list[float]:
    """At the ends, on edges and centres, just inside, just outside and far outside."""
    low, high, w = support.v_min, support.v_max, support.width
    return [low, high, low + w, low + 1.5 * w, high - 1e-6 * w, low - 1e-6 * w, high + w,
            (low + high) / 2, low - 1e6, high + 1e30, -math.inf, math.inf]  # fmt: skip


@pytest.mark.parametrize("sigma_bins", SIGMAS)
@pytest.mark.parametrize("bounds", [(-55.0, 0.0), (0.0, 1.0), (-1e4, 1e4), (100.0, 100.5)])
@pytest.mark.parametrize("bins", [2, 51, 101])
def test_projection_equals_scipy(bounds: tuple[float, float], bins: int, sigma_bins: float) -> None:
    support = ValueSupport(*bounds, bins, sigma_bins)
    y = torch.tensor(targets(support), dtype=torch.float64)
    reference = torch.stack(
        [scipy_projection(support, v, sigma_bins * support.width) for v in y.tolist()]
    )

    exact = support.project(y)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, reference, rtol=0, atol=1e-11)

    # What float32 loses is y itself: half a unit in its last place, as a share of sigma.
    ulp = torch.finfo(torch.float32).eps * max(map(abs, bounds)) / (sigma_bins * support.width)
    single = support.project(y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), reference, rtol=0, atol=2e-6 + ulp)


@pytest.mark.parametrize("sigma_bins", SIGMAS)
def test_projection_survives_bf16_autocast_unchanged(sigma_bins: float) -> None:
    support = ValueSupport(-55.0, 0.0, 101, sigma_bins)
    y = torch.linspace(-60, 5, 999)
    without = support.project(y)
    with torch.autocast("cpu", torch.bfloat16):
        within = support.project(y)
        expectation = support.expectation(within)
    assert within.dtype == torch.float32
    assert torch.equal(within, without)
    assert torch.equal(expectation, support.expectation(without))


def test_half_precision_targets_are_widened_first() -> None:
    support = ValueSupport(-55.0, 0.0)
    y = torch.linspace(-60, 5, 99).bfloat16()
    assert torch.equal(support.project(y), support.project(y.float()))


def test_a_nan_target_is_not_hidden() -> None:
    assert ValueSupport(-1.0, 1.0).project(torch.tensor(math.nan)).isnan().all()


def test_sigma_in_units_of_return_overrides_the_default() -> None:
    support = ValueSupport(-2.0, 2.0, 40, sigma_bins=0.75)
    y = torch.tensor([0.3], dtype=torch.float64)
    wide = ValueSupport(-2.0, 2.0, 40, sigma_bins=2.0)
    torch.testing.assert_close(support.project(y, sigma=0.2), wide.project(y))


def test_expectation_undoes_the_projection_inside() -> None:
    """At 0.75 bins the mean is y to 2e-5 bins, except within some five sigma of an end."""
    support = ValueSupport(-55.0, 0.0)
    y = torch.linspace(-55 + 4 * support.width, -4 * support.width, 4001, dtype=torch.float64)
    bias = (support.expectation(support.project(y)) - y) / support.width
    assert bias.abs().max() < 2e-5
    at_end = support.expectation(support.project(torch.zeros(1, dtype=torch.float64)))
    assert at_end.item() / support.width == pytest.approx(-0.7, abs=0.02)  # as documented


@settings(deadline=None, max_examples=50)
@given(supports, st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=6),
       st.sampled_from([torch.float32, torch.float64]))  # fmt: skip
def test_projection_is_a_distribution(
    support: ValueSupport, y: list[float], dtype: torch.dtype
) -> None:
    p = support.project(torch.tensor(y, dtype=dtype).unsqueeze(0))
    assert p.shape == (1, len(y), support.bins)
    assert torch.isfinite(p).all()
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), rtol=0, atol=1e-5)
    mean = support.expectation(p)
    slack = 1e-4 * (support.v_max - support.v_min) + 1e-5 * abs(support.v_min)
    assert (mean >= support.v_min - slack).all() and (mean <= support.v_max + slack).all()


@settings(deadline=None, max_examples=50)
@given(supports, st.floats(-0.5, 1.5), st.floats(0, 1))
def test_expectation_of_the_projection_grows_with_the_target(
    support: ValueSupport, start: float, rise: float
) -> None:
    length = support.v_max - support.v_min
    y = support.v_min + length * torch.tensor([start, start + rise], dtype=torch.float64)
    low, high = support.expectation(support.project(y))
    assert high >= low - 1e-9 * length


@settings(deadline=None, max_examples=50)
@given(supports, st.floats(-0.2, 1.2), st.floats(0.01, 50), st.floats(-100, 100))
def test_projection_does_not_depend_on_the_unit_of_return(
    support: ValueSupport, where: float, scale: float, shift: float
) -> None:
    moved = ValueSupport(
        scale * support.v_min + shift,
        scale * support.v_max + shift,
        support.bins,
        support.sigma_bins,
    )
    y = torch.tensor(support.v_min + where * (support.v_max - support.v_min), dtype=torch.float64)
    torch.testing.assert_close(
        moved.project(scale * y + shift), support.project(y), rtol=0, atol=1e-6
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 4), max_size=3), supports)
def test_shapes(shape: list[int], support: ValueSupport) -> None:
    p = support.project(torch.zeros(shape))
    assert p.shape == (*shape, support.bins)
    assert support.expectation(p).shape == tuple(shape)


def test_centres_are_what_the_expectation_weighs() -> None:
    support = ValueSupport(-3.0, 5.0, 8)
    one_hot = torch.eye(8, dtype=torch.float64)
    expected = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5], dtype=torch.float64)
    torch.testing.assert_close(support.expectation(one_hot), expected)
    torch.testing.assert_close(support.centres(one_hot), expected)


def test_outside() -> None:
    y = torch.tensor([-1.1, -1.0, 0.0, 1.0, 1.1])
    assert ValueSupport(-1.0, 1.0).outside(y).tolist() == [True, False, False, False, True]


# Gradients, float64.


@pytest.mark.parametrize("sigma_bins", SIGMAS)
def test_gradients_of_the_projection(sigma_bins: float) -> None:
    support = ValueSupport(-2.0, 1.0, 7, sigma_bins)
    y = torch.tensor([-1.9, -0.37, 0.2, 0.95], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(support.project, (y,))


def test_gradients_of_the_expectation_and_the_cross_entropy() -> None:
    support = ValueSupport(-2.0, 1.0, 7)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    p = support.project(torch.linspace(-3, 2, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: support.expectation(x.softmax(-1)), (logits,))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(p, x), (logits,))


def test_cross_entropy_is_smallest_at_its_target_and_finite_for_extreme_logits() -> None:
    support = ValueSupport(-2.0, 1.0, 7)
    p = support.project(torch.tensor([0.3], dtype=torch.float64))
    logits = p.log().requires_grad_()
    cross_entropy(p, logits).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12
    extreme = torch.tensor([[1e4, -1e4, 0, 0, 0, 0, 0]])
    assert torch.isfinite(cross_entropy(p.float(), extreme)).all()


def test_expectile_weight() -> None:
    advantage = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(expectile_weight(advantage, 0.7), torch.tensor([0.3, 0.7, 0.7]))


# Bounds.


@pytest.mark.parametrize(("g1", "g2", "horizon"), [(0.9, 0.99, 16), (0.9, 0.999, 4), (1, 0.9, 3)])
def test_smdp_bound_is_the_value_of_the_worst_for_ever(g1: float, g2: float, horizon: int) -> None:
    v_min, v_max = support_bounds("smdp", r_min=-1, r_max=0, g1=g1, g2=g2, horizon=horizon)
    chunk = sum(g1**k for k in range(horizon))
    forever = sum(chunk * g2 ** (horizon * j) for j in range(20_000))
    assert v_min == pytest.approx(-forever, rel=1e-9)
    assert v_max == 0


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([(-1.0, 0.0), (0.0, 1.0), (-1.0, -0.5), (0.5, 2.0), (-3.0, 2.0)]),
    st.floats(0.1, 1), st.floats(0.1, 0.999), st.integers(1, 16),
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
)  # fmt: skip
def test_smdp_bound_holds_every_episode(
    rewards: tuple[float, float], g1: float, g2: float, horizon: int, mix: list[float]
) -> None:
    r_min, r_max = rewards
    v_min, v_max = support_bounds("smdp", r_min=r_min, r_max=r_max, g1=g1, g2=g2, horizon=horizon)
    value = 0.0
    starts = list(range(0, len(mix), horizon))
    for start in reversed(starts):
        chunk = mix[start : start + horizon]
        value *= g2**horizon
        value += sum(g1**k * (r_min + m * (r_max - r_min)) for k, m in enumerate(chunk))
    assert v_min - 1e-9 <= value <= v_max + 1e-9


def test_geometric_data_and_fixed_bounds() -> None:
    common = {"g1": 0.9, "g2": 0.99, "horizon": 4, "r_min": -1.0, "r_max": 0.0}
    assert support_bounds("geometric", **common) == (pytest.approx(-100), 0)
    data = support_bounds("data", returns=torch.tensor([-30.0, -10.0]), **common)
    assert data == (pytest.approx(-32), pytest.approx(-8))
    assert support_bounds("fixed", fixed=(-5.0, 5.0), **common) == (-5.0, 5.0)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("smpd", {}, "'smpd'"),
        ("geometric", {"g2": 1.0}, "diverges"),
        ("smdp", {"g2": 1.0}, "diverges"),
        ("data", {}, "no returns"),
        ("data", {"returns": [1.0, math.nan]}, "NaN"),
        ("data", {"returns": [2.0, 2.0]}, "every return is 2.0"),
        ("fixed", {}, "v_min"),
        ("fixed", {"fixed": (1.0, 1.0)}, "[1.0, 1.0]"),
        ("smdp", {"r_min": 0.0, "r_max": 0.0}, "length"),
        ("fixed", {"fixed": (-math.inf, 0.0)}, "finite"),
    ],
)
def test_senseless_bounds_are_refused(kind: str, changes: dict[str, object], named: str) -> None:
    settings: dict[str, object] = {
        "r_min": -1.0,
        "r_max": 0.0,
        "g1": 0.9,
        "g2": 0.99,
        "horizon": 4,
    }
    with pytest.raises(DeasError) as refusal:
        support_bounds(kind, **{**settings, **changes})
    assert named in str(refusal.value) and "\n" not in str(refusal.value)
