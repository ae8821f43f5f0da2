"""Whether the policy trains on cached tokens or with the backbone in the loop, and why."""

import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.feature_cache import FeatureCache, fingerprint_key, joining_bytes, size
from deas_vla.data.pooling import feature_dim
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FeaturesConfig, FinetuneConfig
from deas_vla.training.features import cache_keys, task_masks
from deas_vla.training.record import RunRecord

SETTING = "policy.tokens"


def settle_tokens(
    config: FinetuneConfig,
    vla: VLA,
    table: EpisodeTable,
    directory: Path,
    record: RunRecord,
    accelerator: Accelerator,
) -> None:
    """Decide ``config.policy.tokens`` where it is ``auto``, and say what is taken and why.

    What an interrupted run has decided holds for the one that goes on with it.

    Args:
        config: Of a run that trains the policy; gets the decision.
        vla: The policy, not trained yet.
        table: The dataset.
        directory: Parent of the feature caches.
        record: Of the run.
        accelerator: Its main process decides for all.

    Raises:
        DeasError: Pictures in every step, of a policy that does not train on them.
    """
    told = [("", "")]
    if accelerator.is_main_process:
        told = [_decide(config, vla, table, directory, record)]
    mode, reason = broadcast_object_list(told)[0]
    config.policy.tokens = mode
    if mode == "online":
        vla.training_inputs(config.policy.augment == "checkpoint")  # refused now, or never
    if accelerator.is_main_process:
        record.settle("policy", SETTING, mode)
    accelerator.print(f"policy: tokens {mode}, {reason}")


def _decide(
    config: FinetuneConfig, vla: VLA, table: EpisodeTable, directory: Path, record: RunRecord
) -> tuple[str, str]:
    asked, earlier = config.policy.tokens, record.setting("policy", SETTING)
    if asked != "auto":
        return asked, "as --policy.tokens says"
    if pictures := config.needs_pictures:
        return "online", f"because {pictures} needs pictures in every step"
    if earlier in ("cached", "online"):
        return str(earlier), "as the run that this one goes on with"
    need = required_bytes(vla, table, config.features, directory)
    free = shutil.disk_usage(_existing(directory)).free
    disk = f"{size(need)} of disk needed at {directory}, {size(free)} free"
    if need <= free:
        return "cached", f"because they fit ({disk}); --policy.tokens=online keeps none"
    return "online", f"because cached ones do not fit ({disk}): the backbone runs in every step"


def required_bytes(vla: VLA, table: EpisodeTable, config: FeaturesConfig, directory: Path) -> int:
    """Disk that cached tokens and their pooling still need, while their shards are joined."""
    need = 0
    for part in table.sources:
        length = task_masks(vla, part.tasks)[0].shape[1]
        dims = {
            "pooled": feature_dim(config.pooling, len(vla.spec.image_keys), vla.spec.token_dim),
            "tokens": length * vla.spec.token_dim,
        }
        for name, key in cache_keys(vla, part, config).items():
            dim = dims[name]
            place = directory / f"{name}-{fingerprint_key(key)[:12]}"
            if place.is_dir():
                cache = FeatureCache(place, key, part.episode_lengths, dim)
                need += cache.required_bytes()
            else:
                lengths = part.episode_lengths
                need += part.num_frames * dim * 2
                need += joining_bytes(part.num_frames * dim * 2, int(lengths.max()) * dim * 2)
    return need


def _existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that is there."""
    return next(each for each in (directory, *directory.absolute().parents) if each.exists())
