"""What a critic is (architecture, algorithm) and, apart from it, how it is asked (inference)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from deas_vla.errors import DeasError

ALGORITHMS = ("deas", "iql", "hlg", "qc", "evor")
SUPPORTS = ("smdp", "geometric", "data", "fixed")


@dataclass
class InferenceConfig:
    """Settings of EVOR's value estimate, changed without retraining (arXiv 2510.08218).

    Assign a new one to ``critic.inference``. The other algorithms have nothing to set here.

    Attributes:
        eta: Temperature of ``Q* = eta log mean_j exp(z_j / eta)``, in units of return.
        samples: Flow samples N_Z behind one ``Q*``.
        flow_steps: Euler steps of one flow sample.
    """

    eta: float = 1.0
    samples: int = 32
    flow_steps: int = 10

    def validate(self) -> None:
        """Raise DeasError for a setting that has no meaning."""
        _require(self.eta > 0, "critic.inference.eta", self, "a number above 0")
        for name in ("samples", "flow_steps"):
            _require(getattr(self, name) >= 1, f"critic.inference.{name}", self, "1 or more")


@dataclass
class CriticConfig:
    """Architecture and algorithm of a critic; plain values only, so that it is JSON and flags.

    ``feature_dim``, ``state_dim`` and ``action_dim`` come from the dataset, ``v_min`` and ``v_max``
    from `deas_vla.critic.support.support_bounds`; all five are saved with the critic.

    Attributes:
        algorithm: ``deas``, ``iql``, ``hlg``, ``qc`` or ``evor``.
        feature_dim: Width F of the frozen vision-language feature, from the dataset; 0 for a
            critic on the state alone.
        state_dim: Proprioceptive dimensions S, from the dataset.
        action_dim: Action dimensions A, from the dataset.
        horizon: Critic chunk length H, environment steps.
        hidden: Widths of the hidden layers of Q.
        value_width: Of the value network.
        value_depth: Residual blocks of the value network.
        feature_encoder_dim: What the feature is brought down to before it meets the state.
        feature_encoder_hidden: Hidden width of the layer that does so.
        ensemble: Members of Q.
        bins: Of the value distribution.
        sigma_bins: HL-Gauss standard deviation, in bins.
        support: Where the bins lie: ``smdp``, ``geometric`` or ``data`` bounds, or ``fixed``
            between ``v_min`` and ``v_max``.
        v_min: Lower end of the support, in units of return; resolved when left out.
        v_max: Upper end, likewise.
        g1: Discount per step inside a chunk.
        g2: Discount per step between chunks.
        expectile: Of the value loss.
        ema: Rate at which the target network follows.
        lr: Learning rate.
        target_flow_steps: EVOR: Euler steps of the bootstrap sample while training.
        inference: Of EVOR.
    """

    algorithm: str = "deas"

    # What goes in.
    feature_dim: int = 0
    state_dim: int = 0
    action_dim: int = 0
    horizon: int = 8

    # Networks.
    hidden: list[int] = field(default_factory=lambda: [512, 512, 512, 512])
    value_width: int = 256
    value_depth: int = 4
    feature_encoder_dim: int = 64
    feature_encoder_hidden: int = 256
    ensemble: int = 2

    # Value distribution.
    bins: int = 101
    sigma_bins: float = 0.75
    support: str = "smdp"
    v_min: float | None = None
    v_max: float | None = None

    # Algorithm.
    g1: float = 0.9
    g2: float = 0.99
    expectile: float = 0.7
    ema: float = 0.005
    lr: float = 3e-4
    target_flow_steps: int = 10

    inference: InferenceConfig = field(default_factory=InferenceConfig)

    @property
    def bounds(self) -> tuple[float, float]:
        """``(v_min, v_max)`` in units of return; DeasError while they aren't resolved."""
        if self.v_min is None or self.v_max is None:
            raise DeasError(
                f"critic.v_min = {self.v_min}, critic.v_max = {self.v_max}: the value support is "
                "not resolved; set both from deas_vla.critic.support.support_bounds"
            )
        return self.v_min, self.v_max

    def validate(self) -> None:
        """Raise DeasError, naming the field, its value and what it takes, for a senseless field."""
        _require(self.algorithm in ALGORITHMS, "critic.algorithm", self, _one_of(ALGORITHMS))
        _require(self.support in SUPPORTS, "critic.support", self, _one_of(SUPPORTS))
        for name in ("feature_dim", "state_dim", "value_depth"):
            _require(getattr(self, name) >= 0, f"critic.{name}", self, "0 or more")
        for name in (
            "action_dim",
            "horizon",
            "value_width",
            "feature_encoder_dim",
            "feature_encoder_hidden",
            "ensemble",
            "target_flow_steps",
        ):
            _require(getattr(self, name) >= 1, f"critic.{name}", self, "1 or more")
        _require(
            self.feature_dim + self.state_dim >= 1, "critic.state_dim", self, "a feature or a state"
        )
        _require(
            len(self.hidden) >= 1 and all(width >= 1 for width in self.hidden),
            "critic.hidden",
            self,
            "one or more widths of 1 or more",
        )
        _require(self.bins >= 2, "critic.bins", self, "2 or more")
        _require(self.sigma_bins > 0, "critic.sigma_bins", self, "a number above 0")
        for name in ("g1", "g2"):
            _require(0 < getattr(self, name) <= 1, f"critic.{name}", self, "a number in (0, 1]")
        _require(0 < self.expectile < 1, "critic.expectile", self, "a number between 0 and 1")
        _require(0 < self.ema <= 1, "critic.ema", self, "a number in (0, 1]")
        _require(self.lr > 0, "critic.lr", self, "a number above 0")
        v_min, v_max = self.bounds
        _require(
            math.isfinite(v_min) and math.isfinite(v_max) and v_min < v_max,
            "critic.v_max",
            self,
            f"a finite number above v_min = {v_min}",
        )
        self.inference.validate()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CriticConfig:
        """Inverse of `to_dict`; DeasError for a key this version doesn't know."""
        values = dict(values)
        inference = dict(values.pop("inference", {}))
        inference.pop("tau_q", None)  # of the choice, not of the value: guidance/selection.py
        _refuse_unknown(values, cls, "critic")
        _refuse_unknown(inference, InferenceConfig, "critic.inference")
        return cls(**values, inference=InferenceConfig(**inference))


def _require(holds: bool, name: str, config: object, remedy: str) -> None:
    if not holds:
        raise DeasError(f"{name} = {getattr(config, name.split('.')[-1])!r}: it takes {remedy}")


def _one_of(names: tuple[str, ...]) -> str:
    return "one of " + ", ".join(names)


def _refuse_unknown(values: dict[str, Any], cls: type, prefix: str) -> None:
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise DeasError(
                f"{prefix}.{key} = {values[key]!r}: no such setting; known are "
                + ", ".join(sorted(known))
            )
