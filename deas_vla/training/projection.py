"""From what a few frames cost to what a whole dataset would, and what of it does not fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.feature_cache import joining_bytes, size
from deas_vla.training.config import FinetuneConfig

_CHECKPOINTS = 2  # of a stage's weights and moments: the best, and the one being written


@dataclass(frozen=True)
class Costs:
    """What was measured, by what it grows with.

    Attributes:
        frame: Seconds a frame takes through the backbone, with the cache.
        chunk: Seconds a chunk takes in an update of the policy.
        update: Seconds of an update of the critic.
        decision: Seconds of a decision among ``candidates``.
        candidates: N.
        token_bytes: Of a frame's tokens on the disk, 0 where none are kept.
        pooled_bytes: Of its pooled feature.
        checkpoint_bytes: Of a checkpoint of policy and critic.
        kept_bytes: Of a chunk, what stays for the backward pass.
        weight_bytes: Of the network and what is trained of it, on the device.
    """

    frame: float
    chunk: float
    update: float
    decision: float
    candidates: int
    token_bytes: int
    pooled_bytes: int
    checkpoint_bytes: int
    kept_bytes: int
    weight_bytes: int


def projection(
    costs: Costs, table: EpisodeTable, config: FinetuneConfig, output: Path, device: torch.device
) -> list[str]:
    """What the whole run would take, a line each, and the flag that fits where something does not.

    Args:
        costs: Measured on this machine.
        table: The whole dataset.
        config: Of the run.
        output: On the disk that it would write to.
        device: That it would train on.
    """
    frames, policy = table.num_frames, config.policy
    hours = {
        "features": frames * costs.frame / 3600,
        "policy": policy.steps * policy.batch_size * costs.chunk / 3600,
        "critic": config.critic.steps * costs.update / 3600,
    }
    spent = ", ".join(f"{name} {value:.1f} h" for name, value in hours.items())
    lines = [
        f"{table.num_episodes} episodes, {frames} frames, on one process like this one: "
        f"{sum(hours.values()):.1f} h ({spent})",
        f"a decision among {costs.candidates} candidates: {costs.decision * 1e3:,.0f} ms",
    ]
    return lines + _disk(costs, table, config, output) + _memory(costs, config, device)


def _disk(costs: Costs, table: EpisodeTable, config: FinetuneConfig, output: Path) -> list[str]:
    place = Path(config.features.cache or output)
    free = shutil.disk_usage(place if place.is_dir() else output).free
    longest = int(table.episode_lengths.max())
    kept = costs.checkpoint_bytes * (config.checkpoint.keep + _CHECKPOINTS)

    def need(row: int) -> int:
        return table.num_frames * row + joining_bytes(table.num_frames * row, longest * row) + kept

    whole, pooled = (need(row) for row in (costs.token_bytes + costs.pooled_bytes,
                                           costs.pooled_bytes))  # fmt: skip
    said = f"disk: {size(whole)} (tokens {size(table.num_frames * costs.token_bytes)}, pooled "
    said += f"{size(table.num_frames * costs.pooled_bytes)}, checkpoints {size(kept)}), "
    said += f"{size(free)} free at {place}"
    if config.policy.steps == 0:
        whole = pooled
    if whole <= free:
        return [f"{said}: fits"]
    if pooled <= free:
        return [
            f"{said}: DOES NOT FIT; --features.cache=DIR on a larger disk, or "
            f"--policy.tokens=online, which keeps {size(pooled)}"
        ]
    return [f"{said}: DOES NOT FIT, nor do pooled features; --features.cache=DIR on another disk"]


def _memory(costs: Costs, config: FinetuneConfig, device: torch.device) -> list[str]:
    share = config.policy.batch_size // config.policy.gradient_accumulation_steps
    need = costs.weight_bytes + share * costs.kept_bytes
    said = f"policy: {size(costs.weight_bytes)} of weights, gradients and moments, and "
    said += f"{size(share * costs.kept_bytes)} for the activations of {share} chunks"
    if device.type != "cuda":
        return [said]
    room = int(0.9 * torch.cuda.mem_get_info(device)[1])  # kernels and fragments take the rest
    if need <= room:
        return [f"{said}: fits {size(room)} of this GPU"]
    parts = config.policy.gradient_accumulation_steps
    while costs.weight_bytes + config.policy.batch_size // parts * costs.kept_bytes > room:
        parts *= 2
        if parts > config.policy.batch_size:
            return [f"{said}: DOES NOT FIT {size(room)}, whatever the batch; take a larger GPU"]
    advice = f"--policy.gradient_accumulation_steps={parts}"
    if not config.policy.gradient_checkpointing:
        advice += ", or --policy.gradient_checkpointing=true"
    return [f"{said}: DOES NOT FIT {size(room)}; {advice}"]
