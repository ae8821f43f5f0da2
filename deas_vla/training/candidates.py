"""Chunks that the policy proposes at recorded frames, from cached tokens."""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from deas_vla.data.episodes import EpisodeTable
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.groot import GrootVLA
from deas_vla.training.features import Encodings
from deas_vla.training.policy import policy_targets

_FRAMES = 64  # decoded at once


@torch.no_grad()
def sample_candidates(
    vla: GrootVLA,
    encodings: Encodings,
    table: EpisodeTable,
    frames: NDArray[np.int64],
    *,
    candidates: int,
    horizon: int,
    seed: int,
) -> Tensor:
    """The first ``horizon`` steps of N chunks at each frame.

    Args:
        vla: The policy, in evaluation mode.
        encodings: With tokens.
        table: The dataset.
        frames: int64 (M,), global frame indices.
        candidates: N.
        horizon: H, the critic's chunk length.
        seed: With a frame's index it makes that frame's noise, whatever the batches are.

    Returns:
        float32 (M, N, H, A) on the CPU, environment units.
    """
    targets = policy_targets(vla, table, frames)
    rows = []
    for part in torch.arange(len(frames)).split(_FRAMES):
        chosen = frames[part.numpy()]
        batch = encodings.batch(chosen, vla.device)
        batch |= {name: targets[name][part].to(vla.device) for name in ("state", "embodiment_id")}
        # A frame stands for an episode: candidate k of a frame is the same whatever N is.
        noise = CandidateNoise([(seed << 40) + int(frame) for frame in chosen])
        drawn = noise.draw(candidates, vla.spec.noise_shape)
        rows.append(vla.sample(vla.encoding_from(batch), drawn)[:, :, :horizon].cpu())
    return torch.cat(rows)


def candidates_by_frame(
    vla: GrootVLA,
    encodings: Encodings,
    table: EpisodeTable,
    episodes: NDArray[np.int64],
    *,
    candidates: int,
    horizon: int,
    seed: int,
    accelerator: Accelerator,
) -> Tensor:
    """`sample_candidates` at every frame of some episodes, each frame once, shared by processes.

    Returns:
        float32 (T, N, H, A) on the CPU, one row per frame of the table; 0 in other episodes.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    out = torch.zeros(table.num_frames, candidates, horizon, vla.spec.action_dim)
    bar = tqdm(episodes, "candidates", disable=not accelerator.is_local_main_process)
    for episode in bar:
        frames = np.arange(table.num_frames)[table.frames(int(episode))]
        # Equal shares, so that they can be gathered: the last frame is repeated to fill them.
        share = -(-len(frames) // world)
        padded = np.pad(frames, (0, share * world - len(frames)), mode="edge")
        drawn = sample_candidates(
            vla,
            encodings,
            table,
            padded[rank * share : (rank + 1) * share],
            candidates=candidates,
            horizon=horizon,
            seed=seed,
        )
        gathered = accelerator.gather(drawn.to(accelerator.device)).cpu()
        out[torch.from_numpy(frames)] = gathered[: len(frames)]
    return out
