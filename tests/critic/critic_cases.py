"""Small critics and random batches, shared by the critic tests."""

from __future__ import annotations

import torch

from deas_vla.critic import ChunkBatch, Critic, CriticConfig, Statistics

B, F, S, H, A, N = 12, 6, 3, 4, 2, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_config(algorithm: str = "deas", **changes: object) -> CriticConfig:
    settings: dict[str, object] = {
        "algorithm": algorithm,
        "feature_dim": F,
        "state_dim": S,
        "action_dim": A,
        "horizon": H,
        "hidden": [32, 32],
        "value_width": 16,
        "value_depth": 1,
        "feature_encoder_dim": 8,
        "feature_encoder_hidden": 16,
        "bins": 31,
        "v_min": -10.0,
        "v_max": 1.0,
    }
    return CriticConfig(**{**settings, **changes})


def random_statistics(seed: int = 1) -> Statistics:
    generator = seeded(seed)
    moments = {}
    for name, dim in (("feature", F), ("state", S), ("action", A)):
        moments[f"{name}_mean"] = torch.randn(dim, generator=generator)
        moments[f"{name}_std"] = 0.5 + torch.rand(dim, generator=generator)
    return Statistics(**moments)


def random_batch(seed: int = 2, size: int = B, dtype: torch.dtype = torch.float32) -> ChunkBatch:
    """Transitions that end an episode, and such that do not."""
    generator = seeded(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    terminated = torch.arange(size) % 3 == 0
    return ChunkBatch(
        feature=normal(size, F),
        state=normal(size, S),
        actions=normal(size, H, A),
        reward=-torch.rand(size, generator=generator, dtype=torch.float64).to(dtype),
        bootstrap=torch.full((size,), 0.95, dtype=dtype),
        terminated=terminated,
        next_feature=normal(size, F),
        next_state=normal(size, S),
        next_actions=normal(size, H, A),
        next_candidates=normal(size, N, H, A),
    )


def trained(critic: Critic, batch: ChunkBatch, steps: int) -> Critic:
    optimizer, generator = critic.make_optimizer(), seeded(9)
    for _ in range(steps):
        loss, _ = critic(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.update_target()
    return critic
