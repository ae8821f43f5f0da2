"""DEAS: detached value learning with action sequences (arXiv 2510.07730).

V is pulled towards the distribution of the target Q by an expectile-weighted cross-entropy, Q
towards an HL-Gauss projection of the chunk return plus V at the next state. No action but the
dataset's enters a target: the policy is detached from the critic.

What the losses converge to. Hold the target distributions ``p_a = p_Q̄(s, a)`` fixed. The gradient
of ``sum_a alpha_a CE(p_a, p_V)`` in V's logits is ``sum_a alpha_a (p_V - p_a)``, alpha taking no
gradient, so at rest ``p_V = sum_a alpha_a p_a / sum_a alpha_a`` over the dataset's chunks at s. Its
expectation satisfies ``sum_a alpha_a (E[p_a] - E[p_V]) = 0`` with ``alpha_a = tau`` where
``E[p_a] >= E[p_V]``, else ``1 - tau``: the equation of the tau-expectile. V's mean is therefore
exactly IQL's expectile of Q's means, and the pair is the fixed point of
``Q(s, a) = mean[m(R + bootstrap (1 - terminated) V(s'))]``, ``V(s) = expectile_tau Q(s, .)``,
where ``m(y)`` is the expectation of HLG(y): y itself to 1e-5 bins, away from the support's ends.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from deas_vla.critic.base import Metrics, QVCritic, pessimistic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import Statistics
from deas_vla.critic.support import widen


class Deas(QVCritic):
    """Categorical Q and V over chunks with expectile-weighted cross-entropy."""

    def __init__(self, config: CriticConfig, statistics: Statistics | None = None) -> None:
        super().__init__(config, statistics, outputs=config.bins)

    def expect(self, output: Tensor) -> Tensor:
        return self.support.expectation(widen(output).softmax(-1))

    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        obs_action = torch.cat([obs, self.chunk(batch.actions)], dim=-1)
        q_logits = self.critics(obs_action)  # (E, B, m)
        v_logits = self.value_net(obs)  # (B, m)

        with torch.no_grad():
            y = self.td_target(batch, self.value(batch.next_feature, batch.next_state))  # (B,)
            p_y = self.support.project(y)  # (B, m)
            p_target, q_target = self._pessimistic_target(obs_action)
            v = self.expect(v_logits)
            alpha = expectile_weight(q_target - v, self.expectile)

        loss_v = (alpha * cross_entropy(p_target, v_logits)).mean()
        loss_q = self.over_members(cross_entropy(p_y, q_logits), batch)
        metrics = self.summary(
            loss_q=loss_q, loss_v=loss_v, q=self.expect(q_logits), q_target=q_target, v=v, y=y
        )
        return loss_q + loss_v, metrics

    @property
    def expectile(self) -> float:
        return self.config.expectile

    @property
    def representation(self) -> str:
        c = self.config
        return f"{c.bins} bins in {c.v_min:.3g} to {c.v_max:.3g}, expectile {self.expectile}"

    def _pessimistic_target(self, obs_action: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution (B, m) and expectation (B,) of the target critic with the smaller one."""
        p = widen(self.target_critics(obs_action)).softmax(-1)  # (E, B, m)
        q = self.support.expectation(p)  # (E, B)
        member = pessimistic(q)  # (B,)
        row = torch.arange(len(member), device=member.device)
        return p[member, row], q[member, row]


def expectile_weight(advantage: Tensor, tau: float) -> Tensor:
    """``tau`` where the advantage ``Q - V`` is 0 or more, else ``1 - tau`` (IQL, equation 5)."""
    return torch.where(advantage >= 0, tau, 1 - tau)


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """``-sum_i p_i log softmax(logits)_i`` over the last axis, float32 at least."""
    return -(target * F.log_softmax(widen(logits), dim=-1)).sum(-1)
