"""What the critic thinks of a decision: what a monitor shows, whatever made the choice."""

import torch
from torch import Tensor

from deas_vla.guidance.guided import Decision, ValueGuidedPolicy


@torch.no_grad()
def judge(policy: ValueGuidedPolicy, decision: Decision) -> tuple[Tensor, Tensor, Tensor] | None:
    """V of the observations (B,), each member's Q of what was chosen (E, B), and distance (B,).

    None without a critic. Also where the critic had no choice to make (one candidate, or a rule
    that asks none): the monitor wants its opinion all the same.
    """
    critic = policy.critic
    if critic is None or decision.feature is None:
        return None
    state = decision.state.to(decision.feature.device)
    value = critic.value(decision.feature, state)
    distance = critic.normalizer.distance(decision.feature, state)
    if decision.members is not None:
        row = torch.arange(len(decision.chosen), device=decision.members.device)
        return value, decision.members[:, row, decision.chosen.to(row.device)], distance
    chunk = decision.chunk[:, None, : critic.config.horizon].to(decision.feature.device)
    return value, critic.member_scores(decision.feature, state, chunk)[:, :, 0], distance
