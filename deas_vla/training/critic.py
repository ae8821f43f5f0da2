"""The ``critic`` stage: offline value learning on cached features (algorithms: DEAS losses)."""

from collections.abc import Sequence
from itertools import tee

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.critic.base import Critic
from deas_vla.data.dataset import TransitionDataset, bootstrap_episodes
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.sampling import row_weights
from deas_vla.evaluation.offline.ranking import chunks_of_other_episodes, win_rate
from deas_vla.evaluation.offline.scoring import FrameCritic, score_dataset_chunks
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.critic_data import make_transitions, new_critic
from deas_vla.training.divergence import LossWatch
from deas_vla.training.run import Run
from deas_vla.training.update import CriticUpdate

# What the offline metric looks at, which bounds the cost of a checkpoint: one value of ``evor`` is
# hundreds of passes through its network.
_METRIC_EPISODES, _METRIC_CHUNKS, _METRIC_RIVALS = 64, 512, 4


def train_critic(
    table: EpisodeTable,
    features: NDArray[np.floating],
    episodes: NDArray[np.int64],
    held_out: NDArray[np.int64],
    config: CriticTrainingConfig,
    run: Run,
    *,
    candidates: NDArray[np.floating] | None = None,
    shares: Sequence[float] | None = None,
) -> Critic:
    """Train a critic on the chunk transitions of ``episodes``, from the last checkpoint on.

    Args:
        table: The dataset's frames.
        features: (T, F) pooled features of all frames.
        episodes: Episode rows to train on.
        held_out: Episode rows that the offline metric is measured on; may be none.
        config: Critic and training.
        run: Processes, seed, checkpoints.
        candidates: (T, N, H, A) policy samples at every frame: what ``qc`` bootstraps from, and
            the other algorithms never see.
        shares: What part of a batch comes from each of ``table.sources``; by size when left out.

    Returns:
        The critic, unwrapped, in evaluation mode.

    Raises:
        DeasError: No chunk fits the episodes, returns outside the support, a loss not finite,
            ``qc`` without candidates, or a checkpoint that cannot be written or read.
        Preempted: SIGTERM came; everything is saved.
    """
    accelerator = run.accelerator
    transitions = make_transitions(table, episodes, config)
    data = TransitionDataset(
        table,
        features,
        transitions,
        config.horizon,
        device=accelerator.device,
        next_actions=config.algorithm == "evor",
        candidates=candidates,
        tails=config.tails,
        member_weights=bootstrap_episodes(
            config.ensemble, episodes, table.num_episodes, np.random.default_rng(run.seed)
        )
        if config.bootstrap_episodes
        else None,
    )
    critic = new_critic(table, features, episodes, config, run.seed).to(accelerator.device)
    generator = torch.Generator(accelerator.device)
    generator.manual_seed(run.seed + accelerator.process_index)
    update = CriticUpdate(critic, config, accelerator, generator)
    checkpoints = run.checkpoints(
        "critic",
        generator=generator,
        metric=lambda: offline_metric(critic, table, features, held_out, config),
        poll=20,
    )
    watch = LossWatch(
        "critic",
        critic,
        transitions.start,
        checkpoints,
        run.output,
        accelerator,
        f"lower --critic.lr ({config.lr}) or check the dataset's rewards",
    )
    start = checkpoints.resume()
    update.resume(start)
    weights = row_weights(table, transitions.start, shares, config.balance)
    steps = range(start, config.steps)
    draws, ahead = tee(run.batches(len(data), config.batch_size, steps, weights))
    bar = run.bar(zip(draws, data.batches(ahead), strict=True), "critic", start, config.steps)
    with run.preemption.deferred():
        for step, (draw, batch) in enumerate(bar, start):
            logged = step % config.log_every == 0 or step == config.steps - 1
            loss, metrics = update(batch, want_metrics=logged)
            watch.record(step, draw.rows, loss)
            if logged:
                watch.check()
                values = {name: float(value) for name, value in metrics.items()}
                run.log({f"critic/{name}": value for name, value in values.items()}, step)
                bar.set_postfix(q=f"{values['q_mean']:.2f}", loss=f"{loss.item():.3f}")
            checkpoints.after(step + 1, config.steps, watch.check_weights)
    checkpoints.load_best()
    run.accelerator.free_memory()
    return critic.eval()


def offline_metric(
    critic: Critic,
    table: EpisodeTable,
    features: NDArray[np.floating],
    held_out: NDArray[np.int64],
    config: CriticTrainingConfig,
) -> float:
    """How often a success' own chunk scores above other episodes' at the same observation.

    Within one state, as best-of-N chooses: a critic that is blind to actions comes out at 0.5,
    whatever it knows of states. Over the first 64 held-out episodes and 512 of their chunks at
    most, the same ones and the same rivals at every checkpoint. NaN where no success is held out
    that is as long as a chunk, or no other episode to take rivals from.
    """
    training = critic.training
    critic.eval()
    try:
        frame_critic = FrameCritic(critic, table, features)
        rows = held_out[:_METRIC_EPISODES]
        long_enough = rows[table.episode_lengths[rows] >= config.horizon]
        if len(long_enough) == 0:
            return float("nan")
        chunks = score_dataset_chunks(
            frame_critic, table, long_enough, config.reward, at_most=_METRIC_CHUNKS
        )
        if not chunks.terminated.any() or len(np.unique(chunks.episode)) < 2:
            return float("nan")
        rivals = chunks_of_other_episodes(chunks, np.random.default_rng(0), _METRIC_RIVALS)
        rivals = rivals.of(chunks.terminated)
        won = win_rate(frame_critic, chunks, rivals)
        return float(won[chunks.terminated].mean())
    finally:
        critic.train(training)
