"""What every critic is to the rest of the library, and what the ones with Q and V share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.networks import (
    EnsembleMLP,
    FeatureEncoder,
    ResidualMLP,
    ema_update,
    frozen_copy,
)
from deas_vla.critic.normalization import Normalizer, Statistics
from deas_vla.critic.support import ValueSupport
from deas_vla.errors import DeasError

Metrics = dict[str, Tensor]


class Critic(nn.Module, ABC):
    """Values of states and action chunks, learned offline from `ChunkBatch`es.

    Everything that comes in is in environment units and raw pooled features; everything that
    comes out is in units of return. A training step is::

        loss, metrics = critic(batch)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        critic.update_target()

    One scalar holds all losses, so one backward and one Adam over `trainable_parameters` do.
    Targets are parameters without gradient: they're saved, and DistributedDataParallel ignores
    them. The feature encoder is trained by every loss and has no EMA twin (DEAS).
    """

    def __init__(self, config: CriticConfig, statistics: Statistics | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = copy.deepcopy(config)
        self.inference = self.config.inference
        self.support = ValueSupport(*config.bounds, config.bins, config.sigma_bins)
        dims = (config.feature_dim, config.state_dim, config.action_dim)
        self.normalizer = Normalizer(_fitting(statistics or Statistics.identity(*dims), dims))
        self.encoder = (
            FeatureEncoder(
                config.feature_dim, config.feature_encoder_hidden, config.feature_encoder_dim
            )
            if config.feature_dim
            else None
        )
        encoded = config.feature_encoder_dim if config.feature_dim else 0
        self.observation_dim = encoded + config.state_dim
        self.chunk_dim = config.horizon * config.action_dim

    @abstractmethod
    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """The sum of all losses (a scalar to call backward on) and detached scalar metrics.

        ``generator`` feeds whatever the algorithm samples; only ``evor`` does.
        """

    @abstractmethod
    def member_scores(
        self,
        feature: Tensor,
        state: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Value of candidates by each of E members: feature (B, F), state (B, S), actions
        (B, N, H, A) to (E, B, N), in units of return.

        Differentiable in ``actions``; wrap it in ``torch.inference_mode`` to choose. Raises
        DeasError for a chunk of another length or width than the critic's.
        """

    def score(
        self,
        feature: Tensor,
        state: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``min_e`` of `member_scores`, (B, N): the value that the losses are pessimistic with."""
        return self.member_scores(feature, state, actions, generator).amin(0)

    @abstractmethod
    def value(self, feature: Tensor, state: Tensor) -> Tensor:
        """Value of states: feature (B, F), state (B, S) to (B,), in units of return."""

    @property
    @abstractmethod
    def representation(self) -> str:
        """What the values are, for people: bins, scalars or flows, and their expectile."""

    @abstractmethod
    def update_target(self, rate: float | None = None) -> None:
        """Move the EMA targets by ``rate`` (``config.ema`` if None) after each optimizer step."""

    def forward(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """`loss`, under the name that DistributedDataParallel and accelerate wrap.

        In float32 whatever they wrap it in: values are trained as they are scored, and autocast,
        which a large policy trains under, would round returns to three digits.
        """
        with torch.autocast(batch.state.device.type, enabled=False):
            return self.loss(batch, generator)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains: everything but the targets."""
        return [p for p in self.parameters() if p.requires_grad]

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by role, ``q`` and ``v``: what gradient norms are told apart by."""

    def make_optimizer(self, *, capturable: bool = False) -> torch.optim.Adam:
        """Adam at ``config.lr`` over `trainable_parameters`: the recorded rate is the used one.

        Call it after moving the critic to its device. ``capturable`` lets a CUDA graph hold the
        step.
        """
        return torch.optim.Adam(
            self.trainable_parameters(), lr=self.config.lr, fused=True, capturable=capturable
        )

    def over_members(self, losses: Tensor, batch: ChunkBatch) -> Tensor:
        """Mean of losses (E, B) over batch and ensemble, each member on its own bootstrap."""
        if batch.member_weight is not None:
            losses = losses * batch.member_weight.T
        return losses.mean()

    def observe(self, feature: Tensor, state: Tensor) -> Tensor:
        """Network input for an observation, (B, F) and (B, S) to (B, D)."""
        state = self.normalizer.state(state)
        if self.encoder is None:
            return state
        return torch.cat([self.encoder(self.normalizer.feature(feature)), state], dim=-1)

    def chunk(self, actions: Tensor) -> Tensor:
        """Network input for chunks, (..., H, A) to (..., H * A).

        Which steps an episode executed is kept from the network: only chunks that end one have
        others, so that it would tell Q the outcome in training and be absent from every candidate
        scored later.
        """
        expected = (self.config.horizon, self.config.action_dim)
        if tuple(actions.shape[-2:]) != expected:
            raise DeasError(
                f"action chunk of shape {tuple(actions.shape[-2:])} (steps, width): this critic "
                f"takes {expected}; cut longer chunks to its first {expected[0]} steps"
            )
        return self.normalizer.actions(actions).flatten(-2)


class QVCritic(Critic):
    """An ensemble of Q networks, its EMA target and one V, each with ``outputs`` numbers.

    What the numbers mean is left to `expect`: logits over the support, or the value itself.
    """

    def __init__(
        self, config: CriticConfig, statistics: Statistics | None = None, *, outputs: int
    ) -> None:
        super().__init__(config, statistics)
        self.critics = EnsembleMLP(
            config.ensemble, self.observation_dim + self.chunk_dim, config.hidden, outputs
        )
        self.target_critics = frozen_copy(self.critics)
        self.value_net = ResidualMLP(
            self.observation_dim, config.value_width, config.value_depth, outputs
        )

    @abstractmethod
    def expect(self, output: Tensor) -> Tensor:
        """Network output (..., outputs) to values (...,), in units of return, float32 at least."""

    def networks(self) -> dict[str, nn.Module]:
        return {"q": self.critics, "v": self.value_net}

    def update_target(self, rate: float | None = None) -> None:
        ema_update(self.target_critics, self.critics, self.config.ema if rate is None else rate)

    def member_scores(
        self,
        feature: Tensor,
        state: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.candidate_values(self.critics, self.observe(feature, state), actions)

    def value(self, feature: Tensor, state: Tensor) -> Tensor:
        return self.expect(self.value_net(self.observe(feature, state)))

    def candidate_values(self, critics: EnsembleMLP, obs: Tensor, actions: Tensor) -> Tensor:
        """``Q_e(s, a_n)``: obs (B, D), actions (B, N, H, A) to (E, B, N)."""
        batch, n = actions.shape[:2]
        obs = obs.unsqueeze(1).expand(-1, n, -1)
        x = torch.cat([obs, self.chunk(actions)], dim=-1)  # (B, N, D + H*A)
        q = self.expect(critics(x.flatten(0, 1)))  # (E, B*N)
        return q.view(-1, batch, n)

    def td_target(self, batch: ChunkBatch, next_value: Tensor) -> Tensor:
        """``y = R + bootstrap (1 - terminated) V(s')``, (B,) (DEAS, arXiv 2510.07730).

        Selected, not multiplied: what stands in the next observation of an ended episode never
        gets through, even a NaN.
        """
        return batch.reward + batch.bootstrap * next_value.masked_fill(batch.terminated, 0.0)

    @torch.no_grad()
    def summary(
        self, *, loss_q: Tensor, loss_v: Tensor, q: Tensor, q_target: Tensor, v: Tensor, y: Tensor
    ) -> Metrics:
        """The metrics that all algorithms log: detached scalars, nothing waits for the device."""
        return {
            "loss_q": loss_q.detach(),
            "loss_v": loss_v.detach(),
            "q_mean": q.mean(),
            "v_mean": v.mean(),
            "target_mean": y.mean(),
            "target_min": y.amin(),
            "target_max": y.amax(),
            "expectile_ratio": (q_target >= v).float().mean(),
            "support_saturation": self.support.outside(y).float().mean(),
        }


def pessimistic(values: Tensor) -> Tensor:
    """Index of the ensemble member with the smallest expectation, values (E, B) to (B,)."""
    return values.argmin(0)


def _fitting(statistics: Statistics, dims: tuple[int, int, int]) -> Statistics:
    for name, dim in zip(("feature", "state", "action"), dims, strict=True):
        for moment in ("mean", "std"):
            shape = tuple(getattr(statistics, f"{name}_{moment}").shape)
            if shape != (dim,):
                raise DeasError(
                    f"statistics of another dataset: {name}_{moment} has shape {shape}, "
                    f"critic.{name}_dim = {dim}; compute them on the dataset of this critic"
                )
    return statistics
