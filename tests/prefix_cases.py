"""SmolVLA, pi0 and pi0.5 with few random weights, saved as LeRobot saves them: no network."""

import json
from pathlib import Path
from typing import Any

import torch

from deas_vla.policies.config import VLAConfig

CAMERAS = ["observation.images.agentview", "observation.images.eye_in_hand"]
STATE, ACTION, HORIZON, PIXELS = 9, 7, 16, 64
SPECIAL = ["<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
STATS = {
    key: {
        "mean": torch.linspace(-0.5, 0.5, dim),
        "std": torch.linspace(0.5, 2.0, dim),
        "min": torch.full((dim,), -3.0),
        "max": torch.full((dim,), 3.0),
        "q01": torch.linspace(-2.5, -1.5, dim),
        "q99": torch.linspace(1.5, 2.5, dim),
    }
    for key, dim in (("observation.state", STATE), ("action", ACTION))
}


def config(path: Path, family: str, **changes: object) -> VLAConfig:
    values = {
        "path": str(path),
        "family": family,
        "embodiment": "checkpoint",
        "image_keys": CAMERAS,
        "state_dim": STATE,
        "action_dim": ACTION,
    }
    return VLAConfig(**(values | changes))


def observation(batch: int, seed: int = 0) -> dict[str, Any]:
    """Instructions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    pictures = {
        key: torch.randint(0, 255, (batch, 3, 48, 64), dtype=torch.uint8, generator=generator)
        for key in CAMERAS
    }
    tasks = ["lift the red cube", "put the red cube down on the table"] * batch
    state = torch.randn(batch, STATE, generator=generator)
    return {**pictures, "observation.state": state, "task": tasks[:batch]}


def features() -> dict[str, Any]:
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for key in CAMERAS}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
    return {"input_features": inputs, "output_features": outputs, "device": "cpu"}


def write_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["lift the red cube"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        extra_special_tokens={
            "fake_image_token": SPECIAL[2],
            "global_image_token": SPECIAL[3],
        },
    )
    fast.save_pretrained(folder)
    return fast


def save(policy: Any, processors: tuple[Any, Any], root: Path, tokenizer: str) -> Path:
    """As LeRobot's training saves it; the tokenizer is named relative to the checkpoint."""
    policy.save_pretrained(root)
    for processor in processors:
        processor.save_pretrained(root)
    file = root / "policy_preprocessor.json"
    said = json.loads(file.read_text())
    for step in said["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = tokenizer
    file.write_text(json.dumps(said))
    return root


def random_weights(policy: Any) -> Any:
    """Every weight that a class begins with zeros would hide what it multiplies."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(policy.named_parameters()):
            scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1
            drawn = torch.randn(weight.shape, generator=generator) * scale
            weight.copy_(drawn + (1.0 if "norm" in name and weight.ndim == 1 else 0.0))
    return policy


def write_smolvla(root: Path, **changes: Any) -> Path:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from transformers import Idefics3ImageProcessor, Idefics3Processor, SmolVLMConfig

    backbone = root / "backbone"
    tokenizer = write_tokenizer(backbone)
    Idefics3Processor(Idefics3ImageProcessor(), tokenizer).save_pretrained(backbone)
    SmolVLMConfig(
        image_token_id=1,
        pad_token_id=0,
        scale_factor=2,
        text_config={
            "model_type": "llama",
            "vocab_size": 280,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": PIXELS,
            "patch_size": 8,
        },
    ).save_pretrained(backbone)
    settings = {
        "vlm_model_name": str(backbone),
        "chunk_size": HORIZON,
        "n_action_steps": 8,
        "max_state_dim": 12,
        "max_action_dim": 10,
        "resize_imgs_with_padding": (PIXELS, PIXELS),
        "tokenizer_max_length": 48,
        "num_steps": 4,
        "num_vlm_layers": 4,
    }
    built = SmolVLAConfig(**(settings | features() | changes))
    processors = make_smolvla_pre_post_processors(built, STATS)
    policy = random_weights(SmolVLAPolicy(built))
    built.vlm_model_name = "backbone"
    return save(policy, processors, root, "backbone")


def write_pi(root: Path, family: str, **changes: Any) -> Path:
    """pi0 or pi0.5; LeRobot's processors would fetch PaliGemma's tokenizer by its name."""
    import lerobot.policies.pi0.processor_pi0 as pi0
    import lerobot.policies.pi05.processor_pi05 as pi05
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy, PI0Pytorch
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch
    from lerobot.processor import TokenizerProcessorStep, make_default_policy_processor_steps
    from lerobot.processor.factory import make_policy_processor_pipelines
    from lerobot.processor.relative_action_processor import (
        AbsoluteActionsProcessorStep,
        RelativeActionsProcessorStep,
    )

    from deas_vla.policies.pi0.sizes import FILE, Size, build

    classes = {
        "pi0": (PI0Config, PI0Policy, PI0Pytorch),
        "pi05": (PI05Config, PI05Policy, PI05Pytorch),
    }
    config_class, policy_class, network_class = classes[family]
    size = {
        "text": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "vocab_size": 280,
        },
        "expert": {"hidden_size": 24, "intermediate_size": 48},
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 16,
        },
    }
    settings = {
        "chunk_size": HORIZON,
        "n_action_steps": 8,
        "max_state_dim": 12,
        "max_action_dim": 10,
        "image_resolution": (PIXELS, PIXELS),
        "tokenizer_max_length": 48 if family == "pi0" else 100,
        "num_inference_steps": 4,
    }
    built = config_class(**(settings | features() | changes))
    write_tokenizer(root / "words")
    steps = make_default_policy_processor_steps(built, STATS)
    words = TokenizerProcessorStep(
        tokenizer_name=str(root / "words"),
        max_length=built.tokenizer_max_length,
        padding_side="right",
        padding="max_length",
    )
    relative = RelativeActionsProcessorStep(
        enabled=built.use_relative_actions,
        exclude_joints=built.relative_exclude_joints,
        action_names=built.action_feature_names,
    )
    absolute = AbsoluteActionsProcessorStep(built.use_relative_actions, relative)
    start = [steps.rename_observations, steps.add_batch_dim]
    if family == "pi0":
        own = [pi0.Pi0NewLineProcessor(), words, steps.to_device, relative, steps.normalize]
    else:
        prompt = pi05.Pi05PrepareStateTokenizerProcessorStep(max_state_dim=built.max_state_dim)
        own = [relative, steps.normalize, prompt, words, steps.to_device]
    processors = make_policy_processor_pipelines(
        input_steps=[*start, *own], output_steps=[steps.unnormalize, absolute, steps.to_cpu]
    )
    (root / FILE).write_text(json.dumps(size))
    policy = random_weights(build(policy_class, network_class, built, Size(**size)))
    return save(policy, processors, root, "words")
