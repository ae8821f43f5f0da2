"""The nano GR00T before pretraining: the raw N1.7 layout at 5 M parameters.

python recipes/nano/build.py --data=outputs/nano_data --output=outputs/nano_init

It takes what the public checkpoint takes: 132 state and 132 action dimensions, 40 steps, 32
embodiments.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architecture import (
    IMAGE_SIZE,
    MAX_HORIZON,
    backbone_config,
    head_config,
    write_processor,
)
from frames import Frames
from robots import FREE, FREE_NUMBER, HORIZON, ROBOTS, Robot

from deas_vla.cli import make_output_dir, run
from deas_vla.training.features import column_statistics

TOLD, LOUD = 6, 4.0


@dataclass
class BuildConfig:
    """Where the statistics come from and where the untrained checkpoint goes.

    Attributes:
        data: Directory of `make_lift_data.py` and `make_kitchen_data.py`; a robot without frames
            there gets no statistics, and is then one that its dataset has to normalise.
        output: The checkpoint.
        seed: Of its weights.
    """

    data: Path = Path("outputs/nano_data")
    output: Path = Path("outputs/nano_init")
    seed: int = 0


def robot_statistics(robot: Robot, frames: Frames) -> dict:
    """Isaac-GR00T's ``statistics.json`` entry of one embodiment."""
    out: dict[str, dict[str, dict[str, list[float]]]] = {}
    columns = {"state": frames.state, "action": frames.actions[frames.valid]}
    groups = {"state": robot.state_groups, "action": robot.action_groups}
    for modality, values in columns.items():
        out[modality], at = {}, 0
        for name, dim in groups[modality].items():
            found = column_statistics(values[:, at : at + dim])
            at += dim
            if (bounds := robot.ranges.get(f"{modality}.{name}")) is not None:
                for names, bound in zip((("min", "q01"), ("max", "q99")), bounds, strict=True):
                    found |= {key: [bound] * dim for key in names}
            out[modality][name] = found
    return out


def modalities(robot: Robot) -> dict:
    absolute = {"rep": "absolute", "type": "non_eef", "format": "default"}
    return {
        "video": {"delta_indices": [0], "modality_keys": list(robot.cameras)},
        "state": {"delta_indices": [0], "modality_keys": list(robot.state_groups)},
        "action": {
            "delta_indices": list(range(HORIZON)),
            "modality_keys": list(robot.action_groups),
            "action_configs": [absolute] * len(robot.action_groups),
        },
        "language": {"delta_indices": [0], "modality_keys": ["task"]},
    }


def processor_config(robots: list[Robot]) -> dict:
    return {
        "processor_class": "Gr00tN1d7Processor",
        "processor_kwargs": {
            "modality_configs": {robot.tag: modalities(robot) for robot in robots},
            "image_target_size": [IMAGE_SIZE, IMAGE_SIZE],
            "image_crop_size": [IMAGE_SIZE, IMAGE_SIZE],
            "max_action_horizon": MAX_HORIZON,
            "use_percentiles": False,
            "use_relative_action": False,
            "clip_outliers": True,
            "formalize_language": True,
            "state_dropout_prob": 0.0,
        },
    }


def save_checkpoint(model, output: Path) -> None:
    """Sharded, as the public checkpoint is; the backbone's path stays relative."""
    model.config.model_name = "backbone"
    model.save_pretrained(output, max_shard_size="2MB")


def listen(head: Any) -> None:
    """Make the numbers that tokens tell places by (grounding.py) loud among the others."""
    with torch.no_grad():
        head.vlln.weight[:TOLD] *= LOUD


def main(config: BuildConfig) -> None:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    torch.manual_seed(config.seed)
    output = make_output_dir(config.output)
    backbone = output / "backbone"
    backbone.mkdir(exist_ok=True)
    backbone_config(write_processor(backbone)).save_pretrained(backbone)
    seen = [robot for robot in ROBOTS if (config.data / robot.folder).is_dir()]
    numbers = {robot.tag: robot.number for robot in seen} | {FREE: FREE_NUMBER}
    found = {r.tag: robot_statistics(r, Frames.load(config.data / r.folder)) for r in seen}
    for name, content in {
        "statistics.json": found,
        "processor_config.json": processor_config(seen),
        "embodiment_id.json": numbers,
    }.items():
        (output / name).write_text(json.dumps(content, indent=1))
    settings = GR00TN17Config(
        architectures=["GR00TN17"],
        model_name=str(backbone.resolve()),
        dtype="float32",
        model_dtype="float32",
        num_inference_timesteps=4,
        image_target_size=[IMAGE_SIZE, IMAGE_SIZE],
        image_crop_size=[IMAGE_SIZE, IMAGE_SIZE],
        state_dropout_prob=0.0,
        **head_config(),
    )
    safe = {"trust_remote_code": False}
    model = GR00TN17(settings, transformers_loading_kwargs=safe, load_backbone_weights=False)
    listen(model.action_head)
    save_checkpoint(model, output)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.2f} M parameters for {', '.join(numbers)} in {output}")


if __name__ == "__main__":
    run(main, BuildConfig)
