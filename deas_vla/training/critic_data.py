"""What a critic is trained on: chunk transitions, rewards, support and statistics of episodes."""

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import compute_statistics
from deas_vla.critic.registry import make_critic
from deas_vla.critic.support import support_bounds
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import reward_bounds, table_rewards
from deas_vla.data.transitions import ChunkTransitions, chunk_transitions, monte_carlo_chunk_returns
from deas_vla.errors import DeasError
from deas_vla.training.config import CriticTrainingConfig


def make_transitions(
    table: EpisodeTable, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> ChunkTransitions:
    """Chunk transitions of ``episodes``; DeasError where none is as long as the critic's chunk."""
    transitions = chunk_transitions(
        table_rewards(table, config.reward),
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


def check_critic_data(
    table: EpisodeTable, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> None:
    """Refuse, before any training step of any stage, what the critic stage could not train on.

    Raises:
        DeasError: A setting without meaning, a reward that is not finite, no chunk long enough,
            a support that does not contain the dataset's returns, or no success in all the
            dataset, unless its own reward says what is better.
    """
    if config.reward.kind != "dataset" and not table.episode_success.any():
        raise DeasError(
            f"dataset {table.root} has {table.num_episodes} episodes and not one success: a critic "
            "learns what is better from both outcomes, so add demonstrations or rollouts that "
            "succeed (--dataset.extra)"
        )
    make_transitions(table, episodes, config)
    critic_config(table, 0, episodes, config).validate()


def new_critic(
    table: EpisodeTable,
    features: NDArray[np.floating],
    episodes: NDArray[np.int64],
    config: CriticTrainingConfig,
    seed: int,
) -> Critic:
    """A critic with the data's dimensions, support and normalisation, and seeded weights."""
    frames = table.frames_of(episodes)
    statistics = compute_statistics(
        features,  # mapped: read in blocks, never copied whole
        torch.from_numpy(table.state),
        torch.from_numpy(table.action),
        torch.from_numpy(frames),
    )
    resolved = critic_config(table, features.shape[1], episodes, config)
    return make_critic(resolved, statistics, torch.Generator().manual_seed(seed))


def critic_config(
    table: EpisodeTable, feature_dim: int, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> CriticConfig:
    """The critic's config with the dimensions and the support that the data decide."""
    v_min, v_max = value_bounds(table, episodes, config)
    return config.critic(
        feature_dim=feature_dim,
        state_dim=table.state.shape[1],
        action_dim=table.action.shape[1],
        v_min=v_min,
        v_max=v_max,
    )


def value_bounds(
    table: EpisodeTable, episodes: NDArray[np.int64], config: CriticTrainingConfig
) -> tuple[float, float]:
    """The support's ends, by ``config.support``; DeasError where a return lies outside."""
    returns = monte_carlo_chunk_returns(
        table_rewards(table, config.reward),
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
