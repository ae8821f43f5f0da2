"""The ``critic`` stage: offline value learning on cached features (algorithms: DEAS losses)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from deas_vla.critic.base import Critic
from deas_vla.critic.normalization import compute_statistics
from deas_vla.critic.registry import make_critic
from deas_vla.critic.support import support_bounds
from deas_vla.data.dataset import TransitionDataset
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import reward_bounds, rewards_from_success
from deas_vla.data.transitions import ChunkTransitions, chunk_transitions, monte_carlo_chunk_returns
from deas_vla.errors import DeasError
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.loop import index_batches

Log = Callable[[dict[str, float], int], None]


def train_critic(
    table: EpisodeTable,
    features: NDArray[np.floating],
    episodes: NDArray[np.int64],
    config: CriticTrainingConfig,
    accelerator: Accelerator,
    seed: int,
    log: Log,
) -> Critic:
    """Train a fresh critic on the chunk transitions of ``episodes``.

    Args:
        table: The dataset's frames.
        features: (T, F) pooled features of all frames.
        episodes: Episode rows to train on.
        config: Critic and training.
        accelerator: One process or many: the same global batches for any number of them.
        seed: Of initial weights and batches.
        log: Receives metrics and the step.

    Returns:
        The critic, unwrapped, in evaluation mode.

    Raises:
        DeasError: No chunk fits the episodes, returns outside the support, a loss not finite.
    """
    transitions = make_transitions(table, episodes, config)
    data = TransitionDataset(
        table, features, transitions, config.horizon, device=accelerator.device
    )
    critic = new_critic(table, features, episodes, config, seed).to(accelerator.device)
    optimizer: Any = critic.make_optimizer()
    wrapped, optimizer = accelerator.prepare(critic, optimizer)
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    batches = index_batches(
        len(data),
        config.batch_size,
        config.steps,
        seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    wrapped.train()
    bar = tqdm(batches, "critic", config.steps, disable=not accelerator.is_local_main_process)
    for step, rows in enumerate(bar):
        loss, metrics = wrapped(data.batch(rows), generator)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        critic.update_target()
        if step % config.log_every == 0 or step == config.steps - 1:
            values = {name: float(value) for name, value in metrics.items()}
            log({f"critic/{name}": value for name, value in values.items()}, step)
            bar.set_postfix(q=f"{values['q_mean']:.2f}", loss=f"{float(loss):.3f}")
            if not np.isfinite(float(loss)):
                raise DeasError(
                    f"critic loss is {float(loss)} at step {step}: lower --critic.lr ({config.lr}) "
                    "or check the dataset's rewards"
                )
    return critic.eval()


def make_transitions(
    table: EpisodeTable, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> ChunkTransitions:
    """Chunk transitions of ``episodes``; DeasError where none is as long as the critic's chunk."""
    transitions = chunk_transitions(
        rewards_from_success(table.success, table.dataset_reward, config.reward),
        table.terminated,
        table.episode_start[episodes],
        table.episode_end[episodes],
        horizon=config.horizon,
        g1=config.g1,
        g2=config.g2,
        tail=config.tail,
    )
    if len(transitions) == 0:
        raise DeasError(
            f"no episode of dataset {table.root} holds a chunk of critic.horizon={config.horizon} "
            "steps: use a shorter one"
        )
    return transitions


def new_critic(
    table: EpisodeTable,
    features: NDArray[np.floating],
    episodes: NDArray[np.int64],
    config: CriticTrainingConfig,
    seed: int,
) -> Critic:
    """A critic with the data's dimensions, support and normalisation, and seeded weights."""
    frames = np.concatenate([np.arange(table.num_frames)[table.frames(int(e))] for e in episodes])
    statistics = compute_statistics(
        torch.from_numpy(np.asarray(features[frames])),
        torch.from_numpy(table.state[frames]),
        torch.from_numpy(table.action[frames]),
    )
    v_min, v_max = value_bounds(table, episodes, config)
    resolved = config.critic(
        feature_dim=features.shape[1],
        state_dim=table.state.shape[1],
        action_dim=table.action.shape[1],
        v_min=v_min,
        v_max=v_max,
    )
    return make_critic(resolved, statistics, torch.Generator().manual_seed(seed))


def value_bounds(
    table: EpisodeTable, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> tuple[float, float]:
    """The support's ends, by ``config.support``; DeasError where an observed return lies outside."""
    reward = rewards_from_success(table.success, table.dataset_reward, config.reward)
    returns = monte_carlo_chunk_returns(
        reward,
        table.terminated,
        table.episode_start[episodes],
        table.episode_end[episodes],
        horizon=config.horizon,
        g1=config.g1,
        g2=config.g2,
    ).value
    r_min, r_max = reward_bounds(config.reward, table.dataset_reward)
    given = None if config.v_min is None or config.v_max is None else (config.v_min, config.v_max)
    v_min, v_max = support_bounds(
        config.support,
        r_min=r_min,
        r_max=r_max,
        g1=config.g1,
        g2=config.g2,
        horizon=config.horizon,
        returns=torch.from_numpy(returns),
        fixed=given,
    )
    low, high = float(returns.min()), float(returns.max())
    if low < v_min or high > v_max:
        raise DeasError(
            f"value support [{v_min:.3g}, {v_max:.3g}] does not contain the dataset's returns "
            f"[{low:.3g}, {high:.3g}]: use --critic.support=smdp or wider --critic.v_min and v_max"
        )
    return v_min, v_max
