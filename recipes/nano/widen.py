"""Give the nano GR00T room for robots with more action dimensions than its Panda arm.

python recipes/nano/widen.py --action_dim=16 --output=outputs/groot_nano_wide

The public 3 B checkpoint takes 132 and needs no such step. Everything is kept but the projectors
from and to actions: these keep what they know of the first dimensions, and the new ones start
untrained.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from build import save_checkpoint
from safetensors.torch import load_file

from deas_vla.cli import make_output_dir, run
from deas_vla.policies.groot import checkpoint_directory


@dataclass
class WidenConfig:
    """What to widen, and to what.

    Attributes:
        path: Nano checkpoint.
        action_dim: Most action dimensions that the result takes.
        output: Where it goes.
        seed: Of the untrained part.
    """

    path: str = "deas_vla/assets/groot_nano"
    action_dim: int = 16
    output: Path = Path("outputs/groot_nano_wide")
    seed: int = 0


def main(config: WidenConfig) -> None:
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    root = checkpoint_directory(config.path)
    make_output_dir(config.output)
    shutil.copytree(
        root, config.output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*")
    )
    settings = json.loads((root / "config.json").read_text())
    settings |= {"max_action_dim": config.action_dim, "model_name": str(root / "backbone")}
    torch.manual_seed(config.seed)
    model = GR00TN17(
        GR00TN17Config(**settings),
        transformers_loading_kwargs={"trust_remote_code": False},
        load_backbone_weights=False,
    ).to(torch.bfloat16)
    trained = {k: v for file in root.glob("*.safetensors") for k, v in load_file(file).items()}
    weights = model.state_dict()
    widened = []
    for name, value in trained.items():
        weights[name][tuple(slice(size) for size in value.shape)] = value
        if weights[name].shape != value.shape:
            widened.append(name)
    model.load_state_dict(weights)
    save_checkpoint(model, config.output)
    print(f"{len(widened)} tensors widened to {config.action_dim} actions in {config.output}:")
    print(", ".join(widened))


if __name__ == "__main__":
    run(main, WidenConfig)
