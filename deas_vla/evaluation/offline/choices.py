"""How far what the critic chooses is from what solved the task, by the number of candidates.

More candidates ask more of a critic: the best of many is also the one whose error is largest
(Gao et al., arXiv 2210.10760, for reward models). A choice that moves away from demonstrated
chunks as N grows says so before a robot moves.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.evaluation.offline.intervals import Estimate, Indices, mean_over
from deas_vla.evaluation.offline.scoring import FrameCritic, ScoredChunks
from deas_vla.guidance.config import SelectionConfig
from deas_vla.guidance.selection import chances


def choice_distances(
    critic: FrameCritic,
    chunks: ScoredChunks,
    groups: Mapping[str, NDArray[np.bool_]],
    asked: Indices,
    sampled: NDArray[np.float32],
    scale: NDArray[np.float32],
    selection: SelectionConfig,
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, dict[int, Estimate]]:
    """Distance of what is chosen of N samples from the dataset's chunk, less that of any sample.

    The distance is the root mean square over steps and dimensions, in units of ``scale``. Below 0
    the choice is nearer to what was done there than a candidate at random; that it rises with N
    is a sign that the critic is exploited.

    Args:
        critic: Its scores choose.
        chunks: The dataset's own, M of them.
        groups: Masks (M,) by name, of episodes that succeeded: others are no model to follow.
        asked: int64 (K,), at which of the chunks the policy was asked.
        sampled: (K, N, H, A), what it proposed there, environment units.
        scale: (A,), the spread of the training actions.
        selection: What makes one score of the ensemble and chooses by it: the best, or, where the
            rule draws, all with their chances.
        generator: Of the resamples.
        resamples: Of the bootstrap over episodes.

    Returns:
        By group and by N, powers of two from 2 up to the number of samples, and that number; empty
        where the rule asks no critic.
    """
    if not selection.asks_critic:
        return {}
    count = sampled.shape[1]
    own = chunks.chunk[asked][:, None]
    distance = np.sqrt(np.square((sampled - own) / scale).mean((2, 3), dtype=np.float64))  # (K, N)
    scores = torch.from_numpy(critic.scores(chunks.frame[asked], sampled, selection))  # (K, N)
    excess = {
        n: (chances(scores[:, :n], selection).numpy() * distance[:, :n]).sum(1) - distance.mean(1)
        for n in candidate_counts(count)
    }
    episode = chunks.episode[asked]
    return {
        name: {
            n: mean_over(values[mask[asked]], episode[mask[asked]], generator, resamples)
            for n, values in excess.items()
        }
        for name, mask in groups.items()
    }


def candidate_counts(most: int) -> list[int]:
    """Powers of two from 2 up to ``most``, and ``most`` itself; none where there is no choice."""
    powers = (2**k for k in range(1, most.bit_length()))
    return sorted({*powers, most} - {0, 1})
