"""What decides the result of each stage: by which a run that goes on knows itself again.

What changes memory, speed or place is none of it: how a batch is split, what is computed twice,
where data, caches and checkpoints lie, how often something is saved or logged.
"""

from pathlib import Path
from typing import Any

from deas_vla.data.episodes import EpisodeTable
from deas_vla.digests import checkpoint_digest
from deas_vla.provenance import plain
from deas_vla.training.config import FinetuneConfig

_MEMORY = {
    "policy": ("path", "gradient_accumulation_steps", "gradient_checkpointing", "workers"),
    "critic": ("log_every",),
}
_BASE = ("family", "embodiment", "dtype")  # of the policy, what the critic's features depend on


def identities(config: FinetuneConfig, table: EpisodeTable) -> dict[str, dict[str, Any]]:
    """The identity of each stage of a run that trains, by its name.

    Args:
        config: Of the run.
        table: Its episodes.
    """
    settings = plain(config)
    base = Path(config.policy.path)
    shared = {
        "dataset.content": table.fingerprint,
        "dataset.holdout": config.dataset.holdout,
        "dataset.weights": str(config.dataset.shares),
        "policy.checkpoint": checkpoint_digest(base) if base.is_dir() else config.policy.path,
        "seed": config.seed,
    }
    policy = shared | _settings(settings, "policy")
    policy["dataset.image_transforms"] = str(settings["dataset"]["image_transforms"])
    critic = shared | _settings(settings, "critic")
    critic |= flat(settings["features"]["pooling"], "features.pooling.")
    if config.trains_backbone:  # its features are of what the policy stage made
        critic |= {name: value for name, value in policy.items() if name != "policy.tokens"}
        critic["checkpoint.load_best_at_end"] = config.checkpoint.load_best_at_end
    elif config.critic_asks_policy:
        critic |= policy
    else:
        critic |= {f"policy.{name}": settings["policy"][name] for name in _BASE}
    found = {"policy": policy, "critic": critic}
    trains = {"policy": config.policy.steps > 0, "critic": True}
    return {name: found[name] for name in found if name in config.stages and trains[name]}


def _settings(settings: dict[str, Any], stage: str) -> dict[str, Any]:
    kept = {name: value for name, value in settings[stage].items() if name not in _MEMORY[stage]}
    return flat(kept, f"{stage}.")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Hyper-parameters as trackers take them: one level, scalars and strings."""
    out: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            out |= flat(value, f"{name}.")
        else:
            out[name] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return out
