"""Chunks that the policy proposes at recorded frames, from cached tokens."""

import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.feature_cache import FeatureCache, Fingerprint, fingerprint_key
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.vla import VLA
from deas_vla.training.encodings import Encodings
from deas_vla.training.features import work_list
from deas_vla.training.policy import policy_targets

_FRAMES = 64  # decoded at once


@torch.no_grad()
def sample_candidates(
    vla: VLA,
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
        batch |= {name: values[part].to(vla.device) for name, values in targets.items()}
        # A frame stands for an episode: candidate k of a frame is the same whatever N is.
        noise = CandidateNoise([(seed << 40) + int(frame) for frame in chosen])
        drawn = noise.draw(candidates, vla.spec.noise_shape)
        rows.append(vla.sample(vla.encoding_from(batch), drawn)[:, :, :horizon].cpu())
    return torch.cat(rows)


def candidates_by_frame(
    vla: VLA,
    encodings: Encodings,
    table: EpisodeTable,
    episodes: NDArray[np.int64],
    directory: Path,
    *,
    candidates: int,
    horizon: int,
    seed: int,
    accelerator: Accelerator,
) -> NDArray[np.float16]:
    """`sample_candidates` at every frame of some episodes, each frame once, cached on disk.

    Missing episodes are shared out over the processes, and a killed run loses none that it has
    finished.

    Args:
        vla: The policy, in evaluation mode.
        encodings: With tokens.
        table: The dataset.
        episodes: Rows of those to sample in.
        directory: Parent of the cache, which is named by its fingerprint.
        candidates: N.
        horizon: H, the critic's chunk length.
        seed: Of the noise.
        accelerator: Its processes share the work.

    Returns:
        float16 (T, N, H, A), memory-mapped, environment units, a row per frame of the table; 0 in
        other episodes.
    """
    key: Fingerprint = {
        "policy": vla.head_fingerprint(),
        "backbone": vla.backbone_fingerprint(),
        "embodiment": vla.spec.embodiment,
        "dataset": table.fingerprint,
        "episodes": ",".join(map(str, episodes)),
        "candidates": candidates,
        "horizon": horizon,
        "seed": seed,
    }
    shape = (candidates, horizon, vla.spec.action_dim)
    with accelerator.main_process_first():
        place = directory / f"candidates-{fingerprint_key(key)[:12]}"
        cache = FeatureCache(place, key, table.episode_lengths, math.prod(shape))
    accelerator.print(f"candidates: {cache.check_disk_space()}")
    missing = np.asarray(work_list(accelerator, [cache]), dtype=np.int64)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for episode in tqdm(mine, "candidates", disable=not accelerator.is_local_main_process):
        frames = table.frames_of(np.array([episode]))
        drawn = torch.zeros(len(frames), *shape)
        if episode in episodes:
            drawn = sample_candidates(
                vla,
                encodings,
                table,
                frames,
                candidates=candidates,
                horizon=horizon,
                seed=seed,
            )
        cache.write(int(episode), drawn.flatten(1).numpy())
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        return cache.assemble().reshape(-1, *shape)
