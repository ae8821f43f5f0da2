"""One round of improvement: policy and critic trained anew on demonstrations and rollouts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import draccus
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.bundle import MANIFEST, open_bundle, read_manifest, write_bundle
from deas_vla.data.counts import task_counts
from deas_vla.data.episodes import (
    EpisodeTable,
    episode_digests,
    load_episodes,
    split_episodes,
)
from deas_vla.data.joining import join_tables
from deas_vla.data.layout import common_assets, open_dataset
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.config import load_vla
from deas_vla.policies.lora import trains_backbone
from deas_vla.policies.vla import VLA
from deas_vla.provenance import plain, provenance
from deas_vla.training.checkpoints import CheckpointConfig
from deas_vla.training.config import (
    CriticTrainingConfig,
    DatasetConfig,
    FeaturesConfig,
    PolicyConfig,
)
from deas_vla.training.critic import train_critic
from deas_vla.training.datasets import load_dataset
from deas_vla.training.encodings import Encodings, join_encodings
from deas_vla.training.features import cache_of_run, extract_features
from deas_vla.training.policy import finetune_policy
from deas_vla.training.preemption import Preemption
from deas_vla.training.record import recorded_run
from deas_vla.training.run import Run

ROLLOUTS = "local/rollouts"


@dataclass(frozen=True)
class Retraining:
    """What a round trains.

    Attributes:
        holdout: Share of the rollouts kept out of training.
        seed: Of the hold-out, and with ``round`` of what is trained.
        round: Its number, from 1.
        clone: Whether the policy gets a new adapter, of all successful episodes so far.
        policy_steps: Its updates; the bundle's own number when 0.
        critic_steps: The critic's updates, likewise.
    """

    holdout: float
    seed: int
    round: int
    clone: bool = False
    policy_steps: int = 0
    critic_steps: int = 0


@dataclass(frozen=True)
class RoundData:
    """Demonstrations and all rollouts so far.

    Attributes:
        table: Episodes of all.
        encodings: Of their frames.
        train: int64, episodes to train on.
        held_out: int64, the others.
        shares: Of each of ``table.sources``, where the demonstrations have weights.
    """

    table: EpisodeTable
    encodings: Encodings
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    shares: list[float] | None


def check_retraining(bundle: Path, settings: Retraining) -> None:
    """DeasError, before anything is collected, for what `retrain` would refuse of this bundle."""
    manifest = read_manifest(bundle)
    if rollouts := manifest["data"].get("rollouts"):
        raise DeasError(
            f"bundle {bundle} was trained on rollouts {rollouts} already, which would be left out: "
            f"start from {manifest['improved_from']}, and give recipes/retrain.py all rollouts"
        )
    if (algorithm := manifest["config"]["critic"]["algorithm"]) == "qc":
        raise DeasError(
            f"bundle {bundle} has critic.algorithm={algorithm}, which samples the policy at every "
            "frame, and retraining does not: use deas, iql, hlg or evor"
        )
    if settings.policy_steps and not settings.clone:
        raise DeasError(
            f"policy_steps {settings.policy_steps} without --clone=true: the policy stays what it "
            "is, so leave it out"
        )
    _policy_settings(manifest, settings)


def is_retrained(
    bundle: Path, rollouts: Sequence[Path], directory: Path, settings: Retraining
) -> bool:
    """Whether ``directory``/bundle is there, as `retrain` would write it.

    Raises:
        DeasError: It is there, and of another bundle, other data or settings: its evaluation would
            say nothing of these.
    """
    improved = directory / "bundle"
    if not (improved / MANIFEST).is_file():
        return False
    had, start = read_manifest(improved), read_manifest(bundle)
    remedy = f"delete {directory}, or choose another --output_dir"
    source = _source(start)
    if had.get("improved_from_digest", source) != source:  # bundles of before do not say
        raise DeasError(f"{improved} was made from another bundle than {bundle} is: {remedy}")
    data = join_tables(_tables(start, rollouts)).fingerprint
    if had["data"]["fingerprint"] != data:
        raise DeasError(
            f"{improved} was trained on other data than {bundle}'s and "
            f"{', '.join(map(str, rollouts))}: {remedy}"
        )
    asked = plain(settings)
    said = asked | had.get("retraining", {})  # bundles of before do not say
    if other := [f"{name} {said[name]}" for name in asked if said[name] != asked[name]]:
        raise DeasError(f"{improved} was trained with {', '.join(other)}: {remedy}")
    return True


def retrain(
    bundle: Path,
    rollouts: Sequence[Path],
    directory: Path,
    settings: Retraining,
    device: str,
    cache: Path | None = None,
) -> None:
    """Train on the bundle's data and the rollouts, and write ``directory``/bundle.

    Args:
        bundle: The first one: its base checkpoint, statistics and settings are kept, and its cache
            of features is read.
        rollouts: Datasets of all rounds so far.
        directory: Of the round; an interrupted training goes on from there.
        settings: What to train.
        device: To train on.
        cache: Where features of the rollouts are kept; beside each of them when left out.
    """
    manifest = read_manifest(bundle)
    policy = open_bundle(bundle, device=device)
    accelerator = Accelerator(cpu=device == "cpu")
    # Each dataset has its own cache: a later round computes what is new.
    places = [cache or place.parent / "cache" for place in rollouts]
    caches = [cache_of_run(bundle, manifest), *places]
    data = _gather(_tables(manifest, rollouts), caches, manifest, policy, settings, accelerator)
    critic_config = _critic_settings(manifest, settings.critic_steps)
    policy_config = _policy_settings(manifest, settings)
    checkpoint = draccus.decode(CheckpointConfig, manifest["config"].get("checkpoint", {}))

    shared = {
        "data": data.table.fingerprint,
        "bundle": _source(manifest),
        "holdout": settings.holdout,
        "seed": settings.seed,
    }
    if data.shares is not None:
        shared["shares"] = str(data.shares)
    identities = {"critic": shared | {"critic": str(plain(critic_config))}}
    if settings.clone:
        identities["policy"] = shared | {"policy": str(plain(policy_config))}
    directory.mkdir(parents=True, exist_ok=True)
    training = directory / "training"
    with (
        Preemption(accelerator) as preemption,
        recorded_run(training, identities, True, accelerator),
    ):
        seed = settings.seed + settings.round
        run = Run(training, accelerator, preemption, checkpoint, seed, lambda *_: None)
        vla = policy.vla
        if settings.clone:
            vla = _cloned(policy, data, policy_config, run, device)
        critic = train_critic(
            data.table,
            data.encodings.pooled,
            data.train,
            data.held_out,
            critic_config,
            run,
            shares=data.shares,
        )
    record = {
        **provenance(),
        "config": manifest["config"] | {"critic": plain(critic_config)},
        "improved_from": str(bundle),
        "improved_from_digest": _source(manifest),
        "retraining": plain(settings),
        "data": manifest["data"]
        | {
            "fingerprint": data.table.fingerprint,
            "episodes": data.table.num_episodes,
            "successful_episodes": int(data.table.episode_success.sum()),
            "tasks": task_counts(data.table),
            "trained_episode_digests": episode_digests(data.table, data.train),
            "held_out_episodes": data.table.episode_ids[data.held_out].tolist(),
            "rollouts": [str(place) for place in rollouts],
            "assets": common_assets(
                [open_dataset(part.repo_id, part.root) for part in data.table.sources]
            ),
        },
    }
    if settings.clone:
        record["config"] |= {"policy": plain(policy_config)}
    guided = replace(policy.config, adapter=policy.config.adapter or settings.clone)
    improved = ValueGuidedPolicy(guided, vla, critic, policy.dataset_stats)
    write_bundle(improved, directory / "bundle", record)


def _source(manifest: dict[str, Any]) -> str:
    """SHA-256 of what a round takes from a bundle: base, adapter, pooling, critic's settings."""
    taken = {
        "base": [manifest.get("backbone"), manifest.get("head")],
        "adapter": manifest["files"].get("policy/adapter_model.safetensors"),
        "pooling": manifest["config"]["features"]["pooling"],
        "critic": manifest["config"]["critic"],
    }
    if (shares := _datasets(manifest).shares) is not None:
        taken["shares"] = shares
    return hashlib.sha256(json.dumps(taken, sort_keys=True).encode()).hexdigest()


def _cloned(
    policy: ValueGuidedPolicy, data: RoundData, config: PolicyConfig, run: Run, device: str
) -> VLA:
    """The base checkpoint with an adapter of the successes: filtered behaviour cloning.

    On cached tokens, so of pictures as they are, whatever augmentation the bundle's policy had.
    """
    vla = load_vla(policy.config.vla, dataset_stats=policy.dataset_stats, device=device)
    finetune_policy(
        vla,
        data.encodings,
        data.table,
        data.train,
        data.held_out,
        config,
        run,
        shares=data.shares,
    )
    return vla


def _gather(
    tables: Sequence[EpisodeTable],
    caches: Sequence[Path],
    manifest: dict[str, Any],
    policy: ValueGuidedPolicy,
    settings: Retraining,
    accelerator: Accelerator,
) -> RoundData:
    skips = bool(manifest["data"].get("unreadable_episodes"))
    features = FeaturesConfig(policy.config.pooling, skip_unreadable=skips)
    encodings = [
        extract_features(
            policy.vla, table, features, cache, accelerator, keep_tokens=settings.clone
        )
        for table, cache in zip(tables, caches, strict=True)
    ]
    joined = join_tables(tables)
    out = np.isin(tables[0].episode_ids, manifest["data"]["held_out_episodes"])
    train, held_out = [np.flatnonzero(~out)], [np.flatnonzero(out)]
    first = tables[0].num_episodes
    for table in tables[1:]:
        mine, aside = split_episodes(table, settings.holdout, settings.seed)
        train.append(mine + first)
        held_out.append(aside + first)
        first += table.num_episodes
    whole = join_encodings(encodings, tables, joined)
    chosen, aside = (whole.readable(np.concatenate(rows)) for rows in (train, held_out))
    return RoundData(joined, whole, chosen, aside, _shares(manifest, tables))


def _datasets(manifest: dict[str, Any]) -> DatasetConfig:
    config: DatasetConfig = draccus.decode(DatasetConfig, manifest["config"]["dataset"])
    return config


def _tables(manifest: dict[str, Any], rollouts: Sequence[Path]) -> list[EpisodeTable]:
    demonstrations = load_dataset(_datasets(manifest))
    return [demonstrations, *(load_episodes(ROLLOUTS, place) for place in rollouts)]


def _shares(manifest: dict[str, Any], tables: Sequence[EpisodeTable]) -> list[float] | None:
    """Demonstrations keep their weights among each other; beside rollouts, frames count."""
    shares = _datasets(manifest).shares
    if shares is None:
        return None
    frames = tables[0].num_frames / sum(shares)
    return [frames * share for share in shares] + [table.num_frames for table in tables[1:]]


def _policy_settings(manifest: dict[str, Any], settings: Retraining) -> PolicyConfig:
    said = dict(manifest["config"]["policy"])
    if "lora_parts" in said:  # its name in earlier bundles
        said["train"] = said.pop("lora_parts")
    config: PolicyConfig = draccus.decode(PolicyConfig, said)
    if settings.clone and trains_backbone(config.train):
        raise DeasError(
            f"policy.train={config.train} trains the backbone, and cloning here goes by cached "
            "tokens of one that stays: finetune with recipes/finetune_groot.py "
            "--policy.episodes=successful on the rollouts"
        )
    steps = settings.policy_steps or config.steps
    if settings.clone and steps == 0:
        raise DeasError(
            "clone: the bundle's policy is the checkpoint as it is (policy.steps=0), so how long "
            "to train it is not known: use --policy_steps=N"
        )
    return replace(config, episodes="successful", steps=steps, tokens="cached", augment="none")


def _critic_settings(manifest: dict[str, Any], steps: int) -> CriticTrainingConfig:
    settings = dict(manifest["config"]["critic"])
    settings["inference"].pop("tau_q", None)
    config: CriticTrainingConfig = draccus.decode(CriticTrainingConfig, settings)
    if config.support in ("smdp", "geometric", "data"):
        config.v_min = config.v_max = None  # of the joined data
    config.steps = steps or config.steps
    return config
