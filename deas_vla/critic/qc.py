"""QC: TD learning on action chunks with policy samples in the target (arXiv 2507.07969).

``y = R + bootstrap (1 - terminated) max_n min_e Q̄_e(s', a_n)`` over ``next_candidates``, chunks
that the behaviour policy sampled at s'. Unlike DEAS, IQL and HLG the target asks the policy: its
quality bounds the critic's, and a policy that proposes what the data doesn't hold can raise it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deas_vla.critic.base import Metrics, QVCritic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import Statistics
from deas_vla.critic.support import widen
from deas_vla.errors import DeasError


class Qc(QVCritic):
    """Scalar Q over chunks; V is a read-out for reports and enters no target."""

    def __init__(self, config: CriticConfig, statistics: Statistics | None = None) -> None:
        super().__init__(config, statistics, outputs=1)

    @property
    def representation(self) -> str:
        return "scalar"

    def expect(self, output: Tensor) -> Tensor:
        return widen(output).squeeze(-1)

    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """As `Critic.loss`; DeasError for a batch without ``next_candidates``."""
        if batch.next_candidates is None:
            raise DeasError(
                "critic.algorithm = 'qc': its target needs policy samples at the next state and "
                "batch.next_candidates = None; sample them, or take deas, iql or hlg"
            )
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        obs_action = torch.cat([obs, self.chunk(batch.actions)], dim=-1)
        q = self.expect(self.critics(obs_action))  # (E, B)
        v = self.expect(self.value_net(obs))  # (B,)

        with torch.no_grad():
            next_obs = self.observe(batch.next_feature, batch.next_state)
            next_q = self.candidate_values(
                self.target_critics, next_obs, batch.next_candidates
            ).amin(0)
            y = self.td_target(batch, next_q.amax(-1))  # (B,)
            q_target = self.expect(self.target_critics(obs_action)).amin(0)  # (B,)

        loss_q = self.over_members((q - y).square(), batch)
        loss_v = (q_target - v).square().mean()  # V reads out the mean over the dataset's chunks
        metrics = self.summary(loss_q=loss_q, loss_v=loss_v, q=q, q_target=q_target, v=v, y=y)
        return loss_q + loss_v, metrics
