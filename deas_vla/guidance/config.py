"""How one of N candidates is chosen: settings that change without retraining.

Light to import: every simulator process reads the flags of the script that started it.
"""

from dataclasses import dataclass, fields, replace

from deas_vla.errors import DeasError

RULES = ("best", "softmax", "uniform", "medoid")
ENSEMBLES = ("min", "mean")


@dataclass
class SelectionConfig:
    """How a candidate is chosen.

    Attributes:
        rule: ``best`` takes the highest score; ``softmax`` draws with probability
            ``exp(score / temperature)`` (V-GPS, arXiv 2410.13816; with EVOR's ``Q*`` it is that
            paper's rejection sampling, arXiv 2510.08218). Two controls ask no critic: ``uniform``,
            and ``medoid``, the candidate nearest to all others.
        temperature: Of ``softmax``, in units of return.
        ensemble: The score is the smallest member's value (``min``; DEAS, arXiv 2510.07730) or
            ``mean_e Q_e - kappa std_e Q_e`` (``mean``).
        kappa: Of ``mean``: how much the members' disagreement counts against a candidate.
    """

    rule: str = "best"
    temperature: float = 0.0
    ensemble: str = "min"
    kappa: float = 0.0

    def check(self, members: int | None) -> None:
        """Refuse a setting without meaning, or one that a critic of ``members`` cannot serve.

        Args:
            members: Of the critic's ensemble; None without a critic.

        Raises:
            DeasError: The setting, its value and the remedy.
        """
        if self.rule not in RULES:
            raise DeasError(f"selection.rule '{self.rule}' is unknown: use one of {list(RULES)}")
        if self.rule == "softmax" and not self.temperature > 0:
            raise DeasError(
                f"selection.temperature {self.temperature} with rule softmax: use a value above 0, "
                "or rule best"
            )
        if self.rule != "softmax" and self.temperature != 0:
            raise DeasError(
                f"selection.temperature {self.temperature} with rule {self.rule}: use 0, or rule "
                "softmax"
            )
        if self.ensemble not in ENSEMBLES:
            raise DeasError(
                f"selection.ensemble '{self.ensemble}' is unknown: use one of {list(ENSEMBLES)}"
            )
        if self.ensemble == "min" and self.kappa != 0:
            raise DeasError(
                f"selection.kappa {self.kappa} with ensemble min: use 0, or "
                "--selection.ensemble=mean"
            )
        if not 0 <= self.kappa < float("inf"):
            raise DeasError(f"selection.kappa {self.kappa}: use a finite number of 0 or more")
        if self.kappa > 0 and members is not None and members < 2:
            raise DeasError(
                f"selection.kappa {self.kappa} asks for the ensemble's disagreement, and this "
                f"critic has {members} member: use 0, or train with --critic.ensemble=5"
            )

    @property
    def asks_critic(self) -> bool:
        """Whether the rule looks at values at all."""
        return self.rule in ("best", "softmax")


@dataclass
class SelectionOverride:
    """Flags that replace parts of a bundle's own `SelectionConfig`; what is left out stays.

    Attributes:
        rule: ``best``, ``softmax``, ``uniform`` or ``medoid``.
        temperature: Of ``softmax``, in units of return.
        ensemble: ``min`` or ``mean`` of the members' values.
        kappa: Of ``mean``: how much the members' disagreement counts against a candidate.
    """

    rule: str | None = None
    temperature: float | None = None
    ensemble: str | None = None
    kappa: float | None = None

    def over(self, config: SelectionConfig) -> SelectionConfig:
        """``config`` with what these flags say."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(config, **{name: value for name, value in said.items() if value is not None})
