"""The critics by name."""

from __future__ import annotations

import torch

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.deas import Deas
from deas_vla.critic.evor import Evor
from deas_vla.critic.hlg import Hlg
from deas_vla.critic.iql import Iql
from deas_vla.critic.networks import initialize
from deas_vla.critic.normalization import Statistics
from deas_vla.critic.qc import Qc

CRITICS: dict[str, type[Critic]] = {
    "deas": Deas,
    "iql": Iql,
    "hlg": Hlg,
    "qc": Qc,
    "evor": Evor,
}


def make_critic(
    config: CriticConfig,
    statistics: Statistics | None = None,
    generator: torch.Generator | None = None,
) -> Critic:
    """A fresh critic on the CPU, of the class that ``config.algorithm`` names.

    ``statistics`` default to none at all (inputs pass unscaled); a CPU ``generator`` makes the
    initial weights reproducible. Raises DeasError for a setting that has no meaning.
    """
    config.validate()
    critic = CRITICS[config.algorithm](config, statistics)
    initialize(critic, generator)
    critic.update_target(rate=1.0)
    return critic
