"""What of a policy, a critic and the settings of guidance does not fit together."""

from typing import TYPE_CHECKING

from deas_vla.critic.base import Critic
from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig
from deas_vla.policies.vla import VLA

if TYPE_CHECKING:
    from deas_vla.guidance.configuration_guided import ValueGuidedConfig


def check_fit(config: "ValueGuidedConfig", vla: VLA, critic: Critic | None) -> None:
    """DeasError unless policy, critic and the way they are run belong together."""
    horizon = vla.spec.action_horizon
    check_candidates(config.candidates, critic, config.selection)
    config.speed.check()
    if not 1 <= config.n_action_steps <= horizon:
        raise DeasError(
            f"n_action_steps {config.n_action_steps} is outside the policy's chunk of {horizon}: "
            f"use 1 to {horizon}"
        )
    if critic is None:
        return
    if critic.config.horizon > horizon:
        raise DeasError(
            f"critic chunk length {critic.config.horizon} exceeds the policy's {horizon}: "
            f"retrain with --critic.horizon={horizon} or less"
        )
    if critic.config.action_dim != vla.spec.action_dim:
        raise DeasError(
            f"critic scores {critic.config.action_dim} action dimensions, the policy has "
            f"{vla.spec.action_dim}: use a critic of this embodiment"
        )


def check_candidates(candidates: int, critic: Critic | None, rule: SelectionConfig) -> None:
    """DeasError for a number of candidates that ``rule`` cannot choose among."""
    rule.check(critic.config.ensemble if critic is not None else None)
    if candidates < 1:
        raise DeasError(f"candidates {candidates}: use 1 (base policy) or more")
    if candidates > 1 and critic is None and rule.asks_critic:
        raise DeasError(
            f"candidates {candidates} without a critic: train one (--stages=critic) or "
            "use --candidates=[1]"
        )
