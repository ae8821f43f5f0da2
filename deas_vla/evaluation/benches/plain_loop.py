"""DEAS as a plain PyTorch loop: the yardstick for our own update."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deas_vla.critic.base import Critic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.deas import cross_entropy, expectile_weight
from deas_vla.critic.support import ValueSupport


class PlainLoop(nn.Module):
    """DEAS as one would write it down first.

    Two Q networks and V, each 4 x 512 with LayerNorm and GELU, behind the same feature encoder;
    torch's Adam as it comes, and a Python loop for the EMA.

    Args:
        like: Whose support, normalisation, dimensions and expectile it takes.
        lr: Of Adam.
    """

    def __init__(self, like: Critic, lr: float) -> None:
        super().__init__()
        config = like.config
        self.support: ValueSupport = like.support
        self.expectile, self.rate = config.expectile, config.ema
        self.statistics = like.normalizer
        width = config.feature_encoder_hidden
        self.encoder = nn.Sequential(
            nn.Linear(config.feature_dim, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, config.feature_encoder_dim),
            nn.Tanh(),
        )
        seen = config.feature_encoder_dim + config.state_dim
        acted = seen + config.horizon * config.action_dim
        self.q = nn.ModuleList(mlp(acted, config.bins) for _ in range(2))
        self.target = nn.ModuleList(mlp(acted, config.bins) for _ in range(2))
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)
        self.v = mlp(seen, config.bins)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr)

    def observe(self, feature: Tensor, state: Tensor) -> Tensor:
        encoded = self.encoder(self.statistics.feature(feature))
        return torch.cat([encoded, self.statistics.state(state)], dim=-1)

    def update(self, batch: ChunkBatch) -> None:
        """One step on B transitions."""
        expect = lambda logits: self.support.expectation(F.softmax(logits, -1))  # noqa: E731
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        chunk = self.statistics.actions(batch.actions).flatten(1)
        acted = torch.cat([obs, chunk], dim=-1)
        v = self.v(obs)  # (B, m)
        with torch.no_grad():
            next_v = expect(self.v(self.observe(batch.next_feature, batch.next_state)))
            y = batch.reward + batch.bootstrap * next_v * ~batch.terminated
            projected = self.support.project(y)
            targets = torch.stack([F.softmax(q(acted), -1) for q in self.target])  # (2, B, m)
            expected = self.support.expectation(targets)  # (2, B)
            member = expected.argmin(0)
            every = torch.arange(len(member), device=member.device)
            weight = expectile_weight(expected[member, every] - expect(v), self.expectile)
        loss = (weight * cross_entropy(targets[member, every], v)).mean()
        for q in self.q:
            loss = loss + cross_entropy(projected, q(acted)).mean() / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.q.parameters(), strict=True):
                old.copy_((1 - self.rate) * old + self.rate * new)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """(B, inputs) to (B, outputs) through four hidden layers of 512."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(inputs, 512), nn.LayerNorm(512), nn.GELU()]
        inputs = 512
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
