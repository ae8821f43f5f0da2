"""LeRobot's pre- and postprocessor of a checkpoint: loaded for a robot, and looked into."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.policies.places import shipped
from deas_vla.policies.prefix.checkpoint import NEW, Robot

_PREPROCESSOR = "policy_preprocessor.json"


def load_processors(root: Path, config: Any, robot: Robot, path: str | Path) -> tuple[Any, Any]:
    """The checkpoint's own pipelines, for a new robot with its features and statistics.

    Args:
        root: Directory of the checkpoint.
        config: LeRobot's configuration with the robot's features.
        robot: Whose observations and actions.
        path: What the user called the checkpoint.

    Raises:
        DeasError: The checkpoint has none, or its tokenizer is not there.
    """
    from lerobot.policies.factory import make_pre_post_processors

    tokenizer = _tokenizer_name(root, path)
    before: dict[str, Any] = {
        "device_processor": {"device": config.device},
        "tokenizer_processor": {"tokenizer_name": tokenizer},
    }
    after: dict[str, Any] = {}
    if robot.embodiment == NEW:
        assert robot.dataset_stats is not None
        shared = {
            "norm_map": config.normalization_mapping,
            "stats": {
                key: {name: torch.as_tensor(row) for name, row in rows.items()}
                for key, rows in robot.dataset_stats.items()
            },
        }
        everything = {**config.input_features, **config.output_features}
        before["normalizer_processor"] = shared | {"features": everything}
        after["unnormalizer_processor"] = shared | {"features": config.output_features}
    try:
        return make_pre_post_processors(
            config,
            pretrained_path=str(root),
            preprocessor_overrides=before,
            postprocessor_overrides=after,
        )
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise DeasError(
            f"processors of policy checkpoint '{path}' cannot be loaded ({said}): its tokenizer is "
            f"'{tokenizer}', which may need the network and `hf auth login`"
        ) from error


def _tokenizer_name(root: Path, path: str | Path) -> str:
    file = root / _PREPROCESSOR
    if not file.is_file():
        raise DeasError(
            f"policy checkpoint '{path}' has no {_PREPROCESSOR}: bring it to LeRobot 0.6's layout "
            "(lerobot/processor/migrate_policy_normalization.py)"
        )
    steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
    named = {step.get("registry_name"): step.get("config", {}) for step in steps}
    name = named.get("tokenizer_processor", {}).get("tokenizer_name")
    if name is None:
        raise DeasError(f"{_PREPROCESSOR} of policy checkpoint '{path}' names no tokenizer")
    return shipped(root, str(name))


def word_settings(preprocessor: Any) -> dict[str, Any]:
    """What the tokens of an instruction depend on: everything but where things are."""
    from lerobot.processor import TokenizerProcessorStep

    (step,) = (s for s in preprocessor.steps if isinstance(s, TokenizerProcessorStep))
    words = json.dumps(step.input_tokenizer.get_vocab(), sort_keys=True)
    settings = {k: v for k, v in step.get_config().items() if k != "tokenizer_name"}
    return settings | {"words": hashlib.sha256(words.encode()).hexdigest()}


def state_statistics(preprocessor: Any) -> dict[str, list[float]]:
    """By which the state is normalised."""
    from lerobot.processor import NormalizerProcessorStep

    (step,) = (s for s in preprocessor.steps if isinstance(s, NormalizerProcessorStep))
    rows = {k: v for k, v in step.state_dict().items() if k.startswith("observation.state.")}
    return {name: row.tolist() for name, row in rows.items()}


def missing_statistics(preprocessor: Any) -> str | None:
    """``state`` or ``action`` where the preprocessor has nothing to normalise it by."""
    from lerobot.processor import NormalizerProcessorStep

    (step,) = (s for s in preprocessor.steps if isinstance(s, NormalizerProcessorStep))
    known = {name.rsplit(".", 1)[0] for name in step.state_dict()}
    names = {"observation.state": "state", "action": "action"}
    return next((name for key, name in names.items() if key not in known), None)


@contextmanager
def reference_state(preprocessor: Any, state: Tensor) -> Iterator[None]:
    """Within it relative actions are decoded against ``state`` (M, S), a row per chunk.

    LeRobot's step takes the state of the preprocessor's last call, whichever observation that was.
    """
    from lerobot.processor import RelativeActionsProcessorStep

    steps = [s for s in preprocessor.steps if isinstance(s, RelativeActionsProcessorStep)]
    before = [step._last_state for step in steps]
    for step in steps:
        step._last_state = state
    try:
        yield
    finally:
        for step, kept in zip(steps, before, strict=True):
            step._last_state = kept


def unit_pictures(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures as LeRobot's policies take them, float32 in [0, 1]; all else as it is."""
    return {
        key: value.float() / 255 if getattr(value, "dtype", None) == torch.uint8 else value
        for key, value in batch.items()
    }


@contextmanager
def silent() -> Iterator[None]:
    """Without what LeRobot prints and remarks while it builds a network."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
