"""The episodes of a run: its datasets, checked, loaded and joined."""

from typing import Any

from deas_vla.data.check import require_sound
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.data.joining import join_tables
from deas_vla.data.layout import resolve_root
from deas_vla.training.config import DatasetConfig, SourceConfig


def load_dataset(config: DatasetConfig) -> EpisodeTable:
    """All episodes of a dataset or a mixture, without decoding any video.

    Raises:
        DeasError: A dataset that is not there or that its metadata do not describe, datasets of
            different robots.
    """
    return join_tables([_load(source) for source in config.sources])


def provenance(config: DatasetConfig, table: EpisodeTable) -> list[dict[str, Any]]:
    """What ``bundle.json`` says of each dataset."""
    weights = [source.weight for source in config.sources]
    return [
        {
            "repo_id": part.repo_id,
            "root": str(part.root),
            "fingerprint": part.fingerprint,
            "episodes": part.num_episodes,
            "successful_episodes": int(part.episode_success.sum()),
            "weight": weight,
        }
        for part, weight in zip(table.sources, weights, strict=True)
    ]


def _load(source: SourceConfig) -> EpisodeTable:
    root = resolve_root(source.repo_id, source.root)
    require_sound(root)
    return load_episodes(source.repo_id, root)
