"""The pictures of an offline evaluation, one PNG each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.evaluation.offline.curves import ValueCurve
from deas_vla.evaluation.offline.intervals import Estimate, Floats
from deas_vla.evaluation.offline.metrics import Calibration
from deas_vla.evaluation.offline.scoring import ScoredChunks

_SUCCESS, _FAILURE = "tab:green", "tab:red"


def draw_calibration(chunks: ScoredChunks, found: Calibration, path: Path) -> None:
    """Return over Q: every chunk, the mean of each bin with its interval, and y = x."""
    figure, axes = _figure(4.8, 4.4)
    for mask, colour, name in (
        (chunks.terminated, _SUCCESS, "success"),
        (~chunks.terminated, _FAILURE, "time limit (rest by V)"),
    ):
        axes.scatter(
            chunks.q[mask], chunks.returns[mask], s=8, c=colour, alpha=0.45, lw=0, label=name
        )
    ends = [f(f(chunks.q), f(chunks.returns)) for f in (min, max)]
    axes.plot(ends, ends, color="black", lw=1, label="y = x")
    _with_interval(
        axes, [b.q.value for b in found.bins], [b.returns for b in found.bins], label="bins of Q"
    )
    axes.set(xlabel="Q of the dataset's chunk", ylabel="observed return", aspect="equal")
    _save(figure, axes, path)


def draw_overestimation(found: Calibration, path: Path) -> None:
    """Q minus return, by quantile of Q."""
    figure, axes = _figure(5.6, 3.2)
    _with_interval(
        axes,
        list(range(1, len(found.bins) + 1)),
        [b.overestimation for b in found.bins],
        label="bin of equally many chunks",
    )
    axes.axhline(found.overestimation.value, color="gray", ls="--", lw=1, label="all chunks")
    axes.axhline(0, color="black", lw=1)
    axes.set_xticks(
        range(1, len(found.bins) + 1), [f"{b.q.value:.3g}" for b in found.bins], fontsize="small"
    )
    axes.set(xlabel="mean Q of the bin, ascending", ylabel="Q minus return")
    _save(figure, axes, path)


def draw_separation(
    fractions: Floats,
    found: Sequence[Estimate],
    values: Floats,
    success: NDArray[np.bool_],
    path: Path,
) -> None:
    """AUC by fraction of the episode elapsed, beside V of every episode (E, K)."""
    figure, (left, right) = _figure(8.4, 3.2, columns=2)
    left.plot(fractions, [e.value for e in found], marker="o", label="AUC of V")
    left.fill_between(fractions, [e.low for e in found], [e.high for e in found], alpha=0.2)
    left.axhline(0.5, color="black", lw=1, ls=":", label="cannot tell")
    left.set(
        xlabel="fraction of the episode elapsed", ylabel="success above failure", ylim=(0, 1.03)
    )
    left.legend(frameon=False, fontsize="small")
    for outcome, colour, name in ((True, _SUCCESS, "success"), (False, _FAILURE, "failure")):
        group = values[success == outcome]
        if len(group):
            right.plot(fractions, group.T, color=colour, alpha=0.25, lw=0.8)
            right.plot(fractions, group.mean(0), color=colour, lw=2.5, label=f"{name}, mean")
    right.set(xlabel="fraction of the episode elapsed", ylabel="V (units of return)")
    _save(figure, right, path)


def draw_ranking(found: Mapping[str, Mapping[str, Estimate]], path: Path) -> None:
    """How often the dataset's chunk wins, by kind of rival and by the outcome of its episode."""
    figure, axes = _figure(5.6, 1.0 + 0.4 * len(found))
    place = np.arange(len(found))
    colours = {"all": "black", "successes": _SUCCESS, "failures": _FAILURE}
    for shift, (group, colour) in zip((0.0, -0.22, 0.22), colours.items(), strict=True):
        estimates = [groups[group] for groups in found.values()]
        middle = [100 * estimate.value for estimate in estimates]
        spread = _spread(middle, estimates, 100)
        axes.errorbar(
            middle, place + shift, xerr=spread, color=colour, marker="o", ms=5, ls="", label=group
        )
    axes.axvline(50, color="black", lw=1, ls=":")
    axes.set_yticks(place, list(found))
    axes.invert_yaxis()
    axes.set(xlabel="dataset's chunk above its rival (%)", xlim=(0, 100))
    _save(figure, axes, path)


def draw_values(curve: ValueCurve, path: Path, pictures: int = 8) -> None:
    """V, Q of the dataset's chunk and the observed return along one episode, under a film strip."""
    figure, (strip, axes) = _figure(8.4, 4.2, rows=2, height_ratios=(1, 2))
    length = len(curve.values)
    shown = np.rint(np.linspace(0, length - 1, min(pictures, length))).astype(int)
    strip.imshow(np.hstack(curve.pictures[shown]))
    strip.set_axis_off()
    strip.set_title(curve.title, fontsize="medium")
    time = np.arange(length) / curve.fps
    start = (curve.chunks.frame - curve.chunks.frame[0]) / curve.fps
    axes.plot(time, curve.values, lw=2, label="V")
    axes.plot(start, curve.chunks.q, lw=1.2, label="Q of the executed chunk")
    axes.plot(start, curve.chunks.returns, lw=1, ls="--", color="gray", label="observed return")
    for moment in time[shown]:
        axes.axvline(moment, color="gray", lw=0.5, alpha=0.5)
    axes.set(xlabel="time (s); lines mark the pictures", ylabel="units of return")
    _save(figure, axes, path)


def _with_interval(axes: Any, x: Sequence[float], y: Sequence[Estimate], label: str) -> None:
    middle = [estimate.value for estimate in y]
    axes.errorbar(
        x,
        middle,
        yerr=_spread(middle, y),
        marker="o",
        ms=5,
        color="black",
        capsize=3,
        ls="",
        label=label,
    )


def _spread(middle: Sequence[float], found: Sequence[Estimate], scale: float = 1.0) -> Floats:
    """Lengths of error bars below and above, (2, K); a percentile interval may miss its middle."""
    below = [m - scale * e.low for m, e in zip(middle, found, strict=True)]
    above = [scale * e.high - m for m, e in zip(middle, found, strict=True)]
    return np.clip(np.array([below, above]), 0, None)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows, columns, figsize=(width, height), layout="constrained", gridspec_kw=grid
    )


def _save(figure: Any, legend_of: Any, path: Path) -> None:
    from matplotlib import pyplot

    legend_of.legend(edgecolor="none", fontsize="small")  # readable over points
    for axes in figure.axes:
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
