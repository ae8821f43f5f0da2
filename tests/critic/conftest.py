"""Fixtures of the critic tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from critic_cases import random_batch, random_statistics, seeded, small_config

from deas_vla.critic import ChunkBatch, Critic, make_critic


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batch() -> ChunkBatch:
    return random_batch()


@pytest.fixture
def build() -> Callable[..., Critic]:
    def make(algorithm: str = "deas", seed: int = 0, **changes: object) -> Critic:
        return make_critic(small_config(algorithm, **changes), random_statistics(), seeded(seed))

    return make
