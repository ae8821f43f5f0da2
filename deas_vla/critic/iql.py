"""IQL on action chunks: scalar expectile regression (arXiv 2110.06169, equations 5 and 6).

The "expectile only" ablation of DEAS: the same targets and the same expectile, with squared errors
of scalars instead of cross-entropies of distributions. No action but the dataset's enters a target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deas_vla.critic.base import Metrics, QVCritic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.deas import expectile_weight
from deas_vla.critic.normalization import Statistics
from deas_vla.critic.support import widen


class Iql(QVCritic):
    """Scalar Q and V over chunks; the support is read by the saturation metric only."""

    def __init__(self, config: CriticConfig, statistics: Statistics | None = None) -> None:
        super().__init__(config, statistics, outputs=1)

    @property
    def representation(self) -> str:
        return f"scalar, expectile {self.config.expectile}"

    def expect(self, output: Tensor) -> Tensor:
        return widen(output).squeeze(-1)

    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        obs_action = torch.cat([obs, self.chunk(batch.actions)], dim=-1)
        q = self.expect(self.critics(obs_action))  # (E, B)
        v = self.expect(self.value_net(obs))  # (B,)

        with torch.no_grad():
            y = self.td_target(batch, self.value(batch.next_feature, batch.next_state))  # (B,)
            q_target = self.expect(self.target_critics(obs_action)).amin(0)  # (B,)
            weight = expectile_weight(q_target - v, self.config.expectile)

        loss_v = (weight * (q_target - v).square()).mean()
        loss_q = self.over_members((q - y).square(), batch)
        metrics = self.summary(loss_q=loss_q, loss_v=loss_v, q=q, q_target=q_target, v=v, y=y)
        return loss_q + loss_v, metrics
