"""Critics of action chunks: pure tensors, no robot, no dataset, no policy."""

from deas_vla.critic.base import Critic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.config import CriticConfig, InferenceConfig
from deas_vla.critic.normalization import Normalizer, Statistics, compute_statistics
from deas_vla.critic.registry import make_critic
from deas_vla.critic.serialization import load_critic, save_critic
from deas_vla.critic.support import ValueSupport, support_bounds

__all__ = [
    "ChunkBatch",
    "Critic",
    "CriticConfig",
    "InferenceConfig",
    "Normalizer",
    "Statistics",
    "ValueSupport",
    "compute_statistics",
    "load_critic",
    "make_critic",
    "save_critic",
    "support_bounds",
]
