"""A decision taken apart into its stages, in three ways of sampling many candidates."""

import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import torch

from deas_vla.critic.config import CriticConfig
from deas_vla.critic.registry import make_critic
from deas_vla.data.pooling import PoolingConfig, feature_dim
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.features import pool_encoding
from deas_vla.guidance.selection import select
from deas_vla.policies.vla import VLA

FUSED, COPIES, NAIVE = "fused", "own head, N copies", "N observations"
STAGES = ("preprocessing", "backbone", "head", "critic", "selection")


class StagedDecisions:
    """Decides in any of the three ways, and keeps how long the parts took.

    Args:
        fused: The policy as guidance runs it.
        own: The same network by its family's own code.
        batch: Observations B in a decision: noise for pictures, one instruction.
    """

    def __init__(self, fused: VLA, own: VLA, batch: int) -> None:
        self.fused, self.own, self.batch = fused, own, batch
        vla = fused
        self.pooling, spec = PoolingConfig(), vla.spec
        width = feature_dim(self.pooling, len(spec.image_keys), spec.token_dim)
        settings = CriticConfig(
            feature_dim=width, state_dim=spec.state_dim, action_dim=spec.action_dim,
            horizon=min(8, spec.action_horizon), v_min=0.0, v_max=1.0,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        self.critic = make_critic(settings, generator=generator).to(vla.device).eval()
        size = (batch, 3, *vla.image_size)
        self.observation: dict[str, Any] = {
            key: torch.randint(0, 255, size, dtype=torch.uint8, generator=generator)
            for key in spec.image_keys
        }
        self.state = 0.1 * torch.randn(batch, spec.state_dim, generator=generator)
        self.observation |= {"observation.state": self.state, "task": ["lift the cube"] * batch}
        self.noise = torch.randn(batch, 1024, *spec.noise_shape, generator=generator)
        self.milliseconds: dict[tuple[str, int], list[list[float]]] = defaultdict(list)

    @torch.no_grad()
    def decide(self, way: str, candidates: int, turn: int = 0) -> None:
        """Decide among N candidates; `milliseconds` gets the five stages and the CPU's time."""
        marks = [(time.perf_counter(), time.process_time())]

        def mark() -> None:
            if self.fused.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append((time.perf_counter(), time.process_time()))

        vla = self.fused if way == FUSED else self.own
        inputs = vla.preprocess(self.observation)
        mark()
        noise, state = self.noise[:, :candidates], self.state
        if way == NAIVE:  # N observations of one candidate each
            inputs = self.repeated(inputs, candidates)
            state = state.repeat_interleave(candidates, dim=0)
            noise = noise.flatten(0, 1)[:, None]
        encoding = vla.encode_inputs(inputs, state)
        mark()
        chunks = vla.sample(encoding, noise)
        mark()
        members = None
        if candidates > 1:
            actions = chunks[:, :, : self.critic.config.horizon].to(vla.device)
            feature = pool_encoding(vla, encoding, self.pooling)
            members = self.critic.member_scores(feature, encoding.state.to(vla.device), actions)
            members = members.reshape(len(members), self.batch, candidates)
        mark()
        chunks = chunks.reshape(self.batch, candidates, *chunks.shape[2:])
        select(SelectionConfig(), chunks, members, [])
        mark()
        wall = [1e3 * (b[0] - a[0]) for a, b in pairwise(marks)]
        self.milliseconds[way, candidates].append([*wall, 1e3 * (marks[-1][1] - marks[0][1])])

    def repeated(self, inputs: dict[str, Any], count: int) -> dict[str, Any]:
        """Preprocessed inputs of every observation ``count`` times in a row."""
        out = {}
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor):
                rows = value.unflatten(0, (self.batch, -1))  # patches and grids are laid end to end
                out[key] = rows.repeat_interleave(count, dim=0).flatten(0, 1)
        return out

    def peak_mb(self, way: str, candidates: int) -> float | None:
        """Most memory on a GPU in one decision, weights included."""
        if self.fused.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        self.decide(way, candidates)
        return torch.cuda.max_memory_allocated() / 1e6
