"""Give the nano GR00T room for robots with more action dimensions than its Panda arm.

python recipes/nano/widen.py --action_dim=16 --output=outputs/groot_nano_wide

The public 3 B checkpoint takes 132 and needs no such step. The new dimensions' weights are zero
at first: what the checkpoint does with the old ones stays as it is.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deas_vla.cli import make_output_dir, run
from deas_vla.errors import DeasError
from deas_vla.policies.groot import checkpoint_directory

# Tensors that hold one slice per action dimension, and along which axis.
ACTION_AXES = {
    "action_head.action_encoder.W1.W": 1,
    "action_head.action_decoder.layer2.W": 2,
    "action_head.action_decoder.layer2.b": 1,
}


@dataclass
class WidenConfig:
    """What to widen, and to what.

    Attributes:
        path: Nano checkpoint.
        action_dim: Most action dimensions that the result takes.
        output: Where it goes.
    """

    path: str = "deas_vla/assets/groot_nano"
    action_dim: int = 16
    output: Path = Path("outputs/groot_nano_wide")


def main(config: WidenConfig) -> None:
    root, output = checkpoint_directory(config.path), make_output_dir(config.output)
    settings = json.loads((root / "config.json").read_text())
    old = settings["max_action_dim"]
    if config.action_dim <= old:
        raise DeasError(f"action_dim {config.action_dim}: use more than the checkpoint's {old}")
    shutil.copytree(root, output, dirs_exist_ok=True)
    settings["max_action_dim"] = config.action_dim
    (output / "config.json").write_text(json.dumps(settings, indent=2))
    for shard in output.glob("*.safetensors"):
        weights = load_file(shard)
        for name in ACTION_AXES.keys() & weights.keys():
            weights[name] = widen(weights[name], ACTION_AXES[name], config.action_dim)
        save_file(weights, shard, metadata={"format": "pt"})
    print(f"{old} action dimensions widened to {config.action_dim} in {output}")


def widen(weight: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    shape = list(weight.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([weight, weight.new_zeros(shape)], dim=axis)


if __name__ == "__main__":
    run(main, WidenConfig)
