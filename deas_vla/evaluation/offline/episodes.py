"""Which critic and episodes belong together: none that it was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deas_vla.critic.base import Critic
from deas_vla.critic.config import CriticConfig
from deas_vla.critic.normalization import Normalizer, compute_statistics
from deas_vla.data.episodes import EpisodeTable, check_dimensions, episode_digests
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Indices
from deas_vla.guidance.guided import ValueGuidedPolicy


def held_out_episodes(
    manifest: Mapping[str, Any], table: EpisodeTable, chosen: Sequence[int] | None = None
) -> Indices:
    """Episode rows to evaluate a bundle on, none of which it was trained on.

    Args:
        manifest: ``bundle.json``.
        table: The training dataset, or another one entirely.
        chosen: Values of ``episode_index``; when None, the bundle's held-out episodes of its own
            dataset, and all of another.

    Raises:
        DeasError: Overlap with training, an unknown episode, or nothing that was held out.
    """
    data = manifest["data"]
    own = data["fingerprint"] == table.fingerprint
    allowed = set(data["held_out_episodes"]) if own else set(table.episode_ids.tolist())
    wanted = sorted(allowed if chosen is None else set(chosen))
    rows = {int(episode): row for row, episode in enumerate(table.episode_ids)}
    for episode in wanted:
        if episode not in rows:
            raise DeasError(f"episode {episode} is not in dataset {table.root}: choose another")
        if episode not in allowed:
            raise DeasError(
                f"episode {episode} of dataset {table.root} was trained on: "
                f"choose --episodes among the held-out {sorted(allowed)}"
            )
    if not wanted:
        raise DeasError(
            "the bundle held no episode out: train with --dataset.holdout above 0, or evaluate "
            "on another dataset"
        )
    found = np.array([rows[episode] for episode in wanted], dtype=np.int64)
    if not own:
        _refuse_trained(data, table, found)
    return found


def _refuse_trained(data: Mapping[str, Any], table: EpisodeTable, episodes: Indices) -> None:
    """DeasError where another dataset holds copies of episodes that the bundle was trained on."""
    if "trained_episode_digests" not in data:
        raise DeasError(
            f"dataset {table.root} is not the one of the bundle ({data['repo_id']}, fingerprint "
            f"{data['fingerprint'][:12]}), and the bundle does not say which episodes it was "
            "trained on: run the recipe again"
        )
    trained = set(data["trained_episode_digests"])
    digests = episode_digests(table, episodes)
    copies = [
        int(e) for e, d in zip(table.episode_ids[episodes], digests, strict=True) if d in trained
    ]
    if copies:
        raise DeasError(
            f"dataset {table.root} is neither the bundle's (fingerprint {table.fingerprint[:12]}, "
            f"not {data['fingerprint'][:12]}) nor another one: {len(copies)} of its episodes were "
            f"trained on (first: {copies[0]}); leave them out with --episodes"
        )


def fitting_critic(
    policy: ValueGuidedPolicy, manifest: Mapping[str, Any], table: EpisodeTable, bundle: Path
) -> Critic:
    """The bundle's critic, after checking that bundle and dataset belong to it.

    Raises:
        DeasError: No critic, other dimensions or cameras, or a critic of another training.
    """
    if policy.critic is None:
        raise DeasError(
            f"bundle {bundle} has no critic: run the recipe with --stages=[features,critic]"
        )
    spec = policy.vla.spec
    check_dimensions(table, spec.state_dim, spec.action_dim, spec.image_keys)
    check_same_critic(manifest, policy.critic.config)
    if manifest["data"]["fingerprint"] == table.fingerprint:
        data = manifest["data"]
        apart = [*data["held_out_episodes"], *data.get("unreadable_episodes", [])]
        trained = np.flatnonzero(~np.isin(table.episode_ids, apart))
        check_statistics(policy.critic.normalizer, table, trained)
    return policy.critic


def check_same_critic(manifest: Mapping[str, Any], critic: CriticConfig) -> None:
    """DeasError where ``bundle.json`` describes the training of another critic than this one.

    The reward convention stands in the manifest alone, so the two must belong together.
    """
    trained = manifest["config"]["critic"]
    for name in ("algorithm", "horizon", "g1", "g2", "expectile"):
        if trained[name] != getattr(critic, name):
            raise DeasError(
                f"bundle.json says critic.{name} = {trained[name]}, critic/ has "
                f"{getattr(critic, name)}: train both in one run"
            )


def check_statistics(normalizer: Normalizer, table: EpisodeTable, trained: Indices) -> None:
    """DeasError where the critic normalises by statistics of other episodes than ``trained``."""
    frames = table.frames_of(trained)
    state, action = (torch.from_numpy(rows[frames]) for rows in (table.state, table.action))
    expected = compute_statistics(torch.zeros(len(frames), 0), state, action)
    for name in ("state_mean", "state_std", "action_mean", "action_std"):
        have, want = getattr(normalizer, name).cpu(), getattr(expected, name)
        if not torch.allclose(have, want, rtol=1e-3, atol=1e-5):
            at = int((have - want).abs().argmax())
            raise DeasError(
                f"the critic has statistics of another dataset: {name}[{at}] is {have[at]:.4g}, "
                f"the episodes that bundle.json says it was trained on make it {want[at]:.4g}; "
                "train policy and critic of a bundle in one run"
            )
