"""A critic trained by two processes is the one that a single process trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from critic_cases import B, random_batch, random_statistics, seeded, small_config, trained
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from deas_vla.critic import ChunkBatch, make_critic


def _train_rank(rank: int, world: int, directory: str, algorithm: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world
    )
    critic = make_critic(small_config(algorithm), random_statistics(), seeded())
    wrapped, optimizer = DistributedDataParallel(critic), critic.make_optimizer()
    whole = random_batch()
    share = slice(rank * B // world, (rank + 1) * B // world)
    given = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    batch = ChunkBatch(**{k: value[share] for k, value in given.items() if value is not None})
    for _ in range(10):
        loss, _ = wrapped(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.update_target()
    if rank == 0:
        value = critic.value(whole.feature, whole.state).detach()
        save_file({"value": value}, f"{directory}/value.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two cold imports of torch, on a machine that may be busy
@pytest.mark.parametrize("algorithm", ["deas"])
def test_two_processes_equal_one(tmp_path: Path, algorithm: str) -> None:
    torch.multiprocessing.spawn(_train_rank, args=(2, str(tmp_path), algorithm), nprocs=2)
    critic = make_critic(small_config(algorithm), random_statistics(), seeded())
    batch = random_batch()
    trained(critic, batch, 10)
    two = load_file(tmp_path / "value.safetensors")["value"]
    torch.testing.assert_close(two, critic.value(batch.feature, batch.state), rtol=0, atol=1e-4)
