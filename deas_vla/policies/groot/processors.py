"""LeRobot's GR00T processors: built from a checkpoint, offline, and looked into."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deas_vla.policies.groot.checkpoint import NO_REMOTE_CODE
from deas_vla.policies.on_cpu import on_cpu


def build_processors(
    root: Path,
    backbone: str,
    model_config: Any,
    *,
    embodiment: str,
    image_keys: tuple[str, ...],
    state_dim: int,
    action_dim: int,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    device: str,
) -> tuple[Any, Any]:
    """LeRobot's pre- and postprocessor of one checkpoint and embodiment.

    Args:
        root: The checkpoint's directory.
        backbone: Directory or Hub id that tokenizer and image processor come from.
        model_config: LeRobot's ``GR00TN17Config`` of the loaded model.
        embodiment: Tag whose statistics and modalities are used.
        image_keys: The dataset's or environment's cameras.
        state_dim: Proprioceptive dimensions S.
        action_dim: Action dimensions A.
        dataset_stats: For an embodiment new to the checkpoint.
        device: Where tensors are put.
    """
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.groot.configuration_groot import GrootConfig
    from lerobot.policies.groot.processor_groot import make_groot_pre_post_processors

    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, 0, 0)) for key in image_keys}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (state_dim,))
    config = GrootConfig(
        base_model_path=str(root),
        embodiment_tag=embodiment,
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        max_state_dim=model_config.max_state_dim,
        max_action_dim=model_config.max_action_dim,
        chunk_size=model_config.action_horizon,
        n_action_steps=model_config.action_horizon,
        device=device if device.startswith("cuda") else torch.device(device).type,
    )
    preprocessor, postprocessor = make_groot_pre_post_processors(config, dataset_stats)
    _use_local_processor(preprocessor, backbone)
    return preprocessor, postprocessor


def image_size(preprocessor: Any) -> tuple[int, int]:
    """(height, width) that every picture is brought to, pixels."""
    height, width = encode_step(preprocessor).image_target_size
    return int(height), int(width)


def processor_settings(preprocessor: Any) -> dict[str, Any]:
    """What the backbone's inputs depend on: everything but where things are."""
    step = encode_step(preprocessor)
    settings = {k: v for k, v in step.get_config().items() if k not in ("model_name", "device")}
    return settings | {
        "image": step.proc.image_processor.to_dict(),
        "chat": step.proc.chat_template,
    }


def on_host(
    preprocessor: Any, dtype: torch.dtype
) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    """What a preprocessor does, on the CPU alone; None where the accelerator resizes the pictures.

    Pixels come in the network's ``dtype``, as the backbone takes them: less to hand over.
    """
    where = encode_step(preprocessor)._target_device()
    if where is not None and where.type != "cpu":
        return None
    own = on_cpu(preprocessor)

    def preprocess(batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = own(dict(batch))
        return inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}

    return preprocess


def _use_local_processor(preprocessor: Any, backbone: str) -> None:
    """Give LeRobot's encode step a processor built from ``backbone`` without remote code."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(backbone, **NO_REMOTE_CODE)
    tokenizer.padding_side = "left"
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor.from_pretrained(backbone),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor.from_pretrained(backbone),
        chat_template=tokenizer.chat_template,
    )
    step = encode_step(preprocessor)
    step.model_name, step._proc = backbone, processor


def encode_step(preprocessor: Any) -> Any:
    """LeRobot's tokenizing step of a GR00T preprocessor."""
    from lerobot.policies.groot.processor_groot import GrootN17VLMEncodeStep

    (step,) = (s for s in preprocessor.steps if isinstance(s, GrootN17VLMEncodeStep))
    return step


@contextmanager
def reference_state(postprocessor: Any, state: Tensor) -> Iterator[None]:
    """Within it relative actions are decoded against ``state`` (M, S), a row per chunk.

    LeRobot's step takes the state of the preprocessor's last call, whichever observation that was.
    """
    from lerobot.policies.groot.processor_groot import GrootN17ActionDecodeStep

    steps = [s for s in postprocessor.steps if isinstance(s, GrootN17ActionDecodeStep)]
    packs = [step.pack_step for step in steps if step.use_relative_action]
    before = [pack._last_raw_state for pack in packs]
    for pack in packs:
        groups = pack._state_groups_from_tensor(state.detach().cpu().float())
        pack._last_raw_state = {name: values.numpy() for name, values in groups.items()}
    try:
        yield
    finally:
        for pack, kept in zip(packs, before, strict=True):
            pack._last_raw_state = kept


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and remarks on an unused language head or on missing cameras."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
