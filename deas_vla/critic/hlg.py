"""HLG: DEAS without its expectile, the "distribution only" ablation (arXiv 2510.07730).

DEAS at tau = 1/2, to the bit: V's distribution is then the plain mixture of the target Q's over the
dataset's chunks, and the pair evaluates the behaviour policy instead of improving on it. Keeping
tau = 1/2 rather than a V regressed some other way leaves the weight the only thing that differs.
"""

from __future__ import annotations

from deas_vla.critic.deas import Deas


class Hlg(Deas):
    """Categorical Q and V over chunks, without expectile: ``config.expectile`` is not read."""

    @property
    def expectile(self) -> float:
        return 0.5
