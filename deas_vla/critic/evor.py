"""EVOR: an expressive value, learned by flow matching (arXiv 2510.08218).

The reward-to-go ``Z(s, a)`` of the behaviour policy is a distribution sampled by a flow:

    z_x = (1 - x) eps + x z*,   z* = R + bootstrap (1 - terminated) z',   z' ~ Z̄(s', a')
    loss = || u(z_x, x, s, a) - (z* - eps) ||^2

with ``a'`` the next chunk of the dataset. What is asked of it is decided later, without retraining:
``Q*(s, a) = eta log mean_j exp(z_j / eta)``, the optimal value of the KL-regularised problem where
transitions are deterministic. ``eta``, the number of samples and of Euler steps stand
in `Critic.inference`.

V* needs no policy either: ``exp(V*/eta)`` is the mean of ``exp(Q*/eta)`` over behaviour chunks, so
``V*(s) = eta log mean_j exp(z_j / eta)`` over the reward-to-go of the state alone, a second flow
that learns from the same ``z*``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deas_vla.critic.base import Critic, Metrics
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.networks import EnsembleMLP, ResidualMLP, ema_update, frozen_copy
from deas_vla.critic.normalization import Statistics
from deas_vla.errors import DeasError


class Evor(Critic):
    """Flows for the reward-to-go of (state, chunk), one per member, and of the state.

    The flows work on ``(z - mid) / half`` with mid and half of the support, the same order of
    magnitude as their noise; a reward-to-go is clamped to the support.
    """

    def __init__(self, config: CriticConfig, statistics: Statistics | None = None) -> None:
        super().__init__(config, statistics)
        noise = 2  # the point z_x on the path and the time x
        self.flows = EnsembleMLP(
            config.ensemble, self.observation_dim + self.chunk_dim + noise, config.hidden, 1
        )
        self.target_flows = frozen_copy(self.flows)
        self.value_flow = ResidualMLP(
            self.observation_dim + noise, config.value_width, config.value_depth, 1
        )

    def loss(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Metrics]:
        """As `Critic.loss`; DeasError for a batch without ``next_actions``."""
        if batch.next_actions is None:
            raise DeasError(
                "critic.algorithm = 'evor': its target needs the next chunk of the dataset and "
                "batch.next_actions = None; load it, or take deas, iql or hlg"
            )
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        obs_action = torch.cat([obs, self.chunk(batch.actions)], dim=-1)

        with torch.no_grad():
            next_obs_action = torch.cat(
                [
                    self.observe(batch.next_feature, batch.next_state),
                    self.chunk(batch.next_actions),
                ],
                dim=-1,
            )
            members = (self.config.ensemble, len(batch))
            eps = normal(members, generator, batch.reward)
            next_z = self._sample(
                self.target_flows, next_obs_action, eps, self.config.target_flow_steps
            )
            next_z = next_z.masked_fill(batch.terminated, 0.0)
            z_star = batch.reward + batch.bootstrap * next_z  # (E, B)
            target = self._to_flow(z_star)

        losses, q = flow_matching(self.flows, obs_action, target, generator)
        loss_q = self.over_members(losses, batch)
        losses, v = flow_matching(self.value_flow, obs, target, generator)
        loss_v = losses.mean()
        with torch.no_grad():
            metrics = {
                "loss_q": loss_q.detach(),
                "loss_v": loss_v.detach(),
                "q_mean": self._from_flow(q).mean(),
                "v_mean": self._from_flow(v).mean(),
                "target_mean": z_star.mean(),
                "target_min": z_star.amin(),
                "target_max": z_star.amax(),
                "support_saturation": self.support.outside(z_star).float().mean(),
            }
        return loss_q + loss_v, metrics

    def member_scores(
        self,
        feature: Tensor,
        state: Tensor,
        actions: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``Q*_e(s, a_n)``, (E, B, N); the same noise for all candidates.

        Without a generator the noise is the mid-quantiles of the normal distribution: the flow
        of a scalar is monotone, so the samples are quantiles of Z and the score is repeatable.
        """
        batch, n = actions.shape[:2]
        obs = self.observe(feature, state).unsqueeze(1).expand(-1, n, -1)
        obs_action = torch.cat([obs, self.chunk(actions)], dim=-1).flatten(0, 1)  # (B*N, D+C)
        return self._optimal_value(self.flows, obs_action, generator).view(-1, batch, n)

    def value(self, feature: Tensor, state: Tensor) -> Tensor:
        return self._optimal_value(self.value_flow, self.observe(feature, state), None)

    @property
    def representation(self) -> str:
        return f"flows in {self.config.v_min:.3g} to {self.config.v_max:.3g}"

    def networks(self) -> dict[str, nn.Module]:
        return {"q": self.flows, "v": self.value_flow}

    def update_target(self, rate: float | None = None) -> None:
        ema_update(self.target_flows, self.flows, self.config.ema if rate is None else rate)

    def _optimal_value(
        self, flow: nn.Module, condition: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """``eta log mean_j exp(z_j / eta)`` for each row of condition, (M, D) to ([E,] M)."""
        rows, samples, eta = len(condition), self.inference.samples, self.inference.eta
        noise = (
            mid_quantiles(samples, condition)
            if generator is None
            else normal((samples,), generator, condition)
        )
        z = self._sample(
            flow,
            condition.repeat_interleave(samples, dim=0),
            noise.repeat(rows),
            self.inference.flow_steps,
        )  # ([E,] M * N_Z)
        z = z.view(*z.shape[:-1], rows, samples)
        return eta * (torch.logsumexp(z / eta, dim=-1) - math.log(samples))

    def _sample(self, flow: nn.Module, condition: Tensor, eps: Tensor, steps: int) -> Tensor:
        """Reward-to-go in units of return: Euler steps of ``dz/dx = u`` from noise at x = 0."""
        z = eps
        for step in range(steps):
            x = torch.full_like(z, step / steps)
            z = z + velocity(flow, z, x, condition) / steps
        return self._from_flow(z).clamp(self.support.v_min, self.support.v_max)

    def _to_flow(self, z: Tensor) -> Tensor:
        mid, half = self._mid_half()
        return (z.clamp(self.support.v_min, self.support.v_max) - mid) / half

    def _from_flow(self, z: Tensor) -> Tensor:
        mid, half = self._mid_half()
        return mid + half * z

    def _mid_half(self) -> tuple[float, float]:
        v_min, v_max = self.support.v_min, self.support.v_max
        return (v_min + v_max) / 2, (v_max - v_min) / 2


def velocity(flow: nn.Module, z: Tensor, x: Tensor, condition: Tensor) -> Tensor:
    """``u(z, x, s, a)``: z and x (..., M), condition (M, D) to (..., M)."""
    condition = condition.expand(*z.shape, -1)
    u: Tensor = flow(torch.cat([condition, z.unsqueeze(-1), x.unsqueeze(-1)], dim=-1))
    return u.squeeze(-1).to(z.dtype)


def flow_matching(
    flow: nn.Module, condition: Tensor, z_star: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Losses (E, B) of the straight path from noise to ``z_star`` (E, B), and where it now points.

    The second, (E, B), is ``z_x + (1 - x) u``, the flow's own estimate of ``E[z*]``.
    """
    eps = normal(tuple(z_star.shape), generator, z_star)
    x = uniform(tuple(z_star.shape), generator, z_star)
    z_x = (1 - x) * eps + x * z_star
    u = velocity(flow, z_x, x, condition)
    return (u - (z_star - eps)).square(), z_x + (1 - x) * u


def mid_quantiles(n: int, like: Tensor) -> Tensor:
    """The n mid-quantiles of the standard normal distribution, (n,)."""
    level = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n
    quantiles: Tensor = torch.special.ndtri(level)
    return quantiles


def normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal noise, drawn where the generator lives: one seed, one noise, any device."""
    device = like.device if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform noise in [0, 1), drawn as `normal` draws."""
    device = like.device if generator is None else generator.device
    noise = torch.rand(shape, generator=generator, device=device, dtype=like.dtype)
    return noise.to(like.device)
