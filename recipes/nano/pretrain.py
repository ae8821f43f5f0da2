"""Pretrain the nano GR00T: ground the backbone in the scene, then train the flow head on it.

python recipes/nano/pretrain.py --data=outputs/nano_data --output=outputs/nano
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import draccus
import numpy as np
import torch
from build import CAMERAS, EMBODIMENT, load_parts, save_checkpoint
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.vla import Encoding

INSTRUCTION = "lift the red cube"


@dataclass
class PretrainConfig:
    """Two phases.

    Attributes:
        init: Untrained checkpoint from build.py.
        data: Directory from make_data.py.
        output: Where the trained checkpoint goes, bfloat16.
        grounding_steps: Backbone updates: where is the cube, seen from robot and gripper?
        flow_steps: Action-head updates on the then frozen backbone's tokens.
        batch_size: Of both phases.
        lr: Peak learning rate of both phases, one-cycle.
        holdout: Share of the frames kept for the reported errors.
        seed: Of everything random.
    """

    init: Path = Path("outputs/nano_init")
    data: Path = Path("outputs/nano_data")
    output: Path = Path("outputs/nano")
    grounding_steps: int = 1200
    flow_steps: int = 2500
    batch_size: int = 64
    lr: float = 1e-3
    holdout: float = 0.05
    seed: int = 0


def preprocess(vla: GrootVLA, data: dict[str, np.ndarray], size: int = 256) -> dict[str, Tensor]:
    """Everything through LeRobot's processor once; pictures kept as float16 patches."""
    out: dict[str, list[Tensor]] = {}
    for at in tqdm(range(0, len(data["state"]), size), desc="preprocess"):
        part = slice(at, at + size)
        images = torch.from_numpy(data["images"][part]).permute(0, 1, 4, 2, 3)
        count = len(images)
        batch = {
            **{f"observation.images.{name}": images[:, k] for k, name in enumerate(CAMERAS)},
            "observation.state": torch.from_numpy(data["state"][part]),
            "task": [INSTRUCTION] * count,
            "action": torch.from_numpy(data["actions"][part]),
            "action_is_pad": torch.from_numpy(~data["valid"][part]),
        }
        inputs = vla.preprocess(batch)
        inputs["pixel_values"] = inputs["pixel_values"].half().unflatten(0, (count, -1))
        inputs["image_grid_thw"] = inputs["image_grid_thw"].unflatten(0, (count, -1))
        for key in ("pixel_values", "image_grid_thw", "input_ids", "attention_mask", "state",
                    "embodiment_id", "action", "action_mask"):  # fmt: skip
            out.setdefault(key, []).append(inputs[key])
    return {key: torch.cat(parts) for key, parts in out.items()}


def backbone(vla: GrootVLA, inputs: dict[str, Tensor], index: Tensor, noise: float = 0.0) -> dict:
    """Tokens of the chosen frames, with gradient."""
    pixels = inputs["pixel_values"][index].float()
    if noise:
        brightness = torch.randn(len(index), 1, 1) * noise
        pixels = pixels + brightness + noise / 2 * torch.randn_like(pixels)
    batch = {
        "input_ids": inputs["input_ids"][index],
        "attention_mask": inputs["attention_mask"][index],
        "pixel_values": pixels.flatten(0, 1),
        "image_grid_thw": inputs["image_grid_thw"][index].flatten(0, 1),
    }
    return vla.model.backbone(vla.model.backbone.prepare_input(batch))


def one_cycle(parameters: list[nn.Parameter], lr: float, steps: int):
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1
    )


def ground(
    vla, inputs, target: Tensor, train: Tensor, test: Tensor, config: PretrainConfig
) -> float:
    """Regress cube positions from the mean of the tokens; returns the held-out error in metres."""
    scale, centre = 0.05, target[train].mean(0)
    head = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 6))
    parameters = [*vla.model.backbone.parameters(), *head.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, schedule = one_cycle(parameters, config.lr, config.grounding_steps)

    def predict(index: Tensor, noise: float) -> Tensor:
        out = backbone(vla, inputs, index, noise)
        valid = out["backbone_attention_mask"].unsqueeze(-1).float()  # (B, L, 1)
        return head((out["backbone_features"] * valid).sum(1) / valid.sum(1))

    progress = tqdm(range(config.grounding_steps), desc="grounding")
    for step in progress:
        index = train[torch.randint(len(train), (config.batch_size,))]
        loss = (predict(index, 0.04) - (target[index] - centre) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(rmse_mm=f"{1e3 * scale * loss.sqrt().item():.1f}")
    vla.model.requires_grad_(False)
    with torch.no_grad():
        errors = [predict(part, 0.0) * scale + centre - target[part] for part in test.split(256)]
    return torch.cat(errors).square().mean().sqrt().item()


def flow(vla, inputs, train: Tensor, test: Tensor, config: PretrainConfig) -> float:
    """GR00T's flow-matching loss on cached tokens; returns the held-out loss."""
    with torch.no_grad():
        everything = torch.arange(len(inputs["state"]))
        outs = [backbone(vla, inputs, part) for part in tqdm(everything.split(256), desc="tokens")]
    tokens = torch.cat([out["backbone_features"] for out in outs])
    attention = torch.cat([out["backbone_attention_mask"] for out in outs])
    images = torch.cat([out["image_mask"] for out in outs])
    head = vla.model.action_head
    head.requires_grad_(True)
    head.train()

    def loss_of(index: Tensor) -> Tensor:
        chosen = {key: inputs[key][index] for key in ("state", "embodiment_id")}
        encoding = Encoding(tokens[index], attention[index], images[index], chosen, chosen["state"])
        return vla.flow_matching_loss(
            encoding, inputs["action"][index], inputs["action_mask"][index]
        )

    optimizer, schedule = one_cycle(list(head.parameters()), config.lr, config.flow_steps)
    progress = tqdm(range(config.flow_steps), desc="flow matching")
    for step in progress:
        loss = loss_of(train[torch.randint(len(train), (config.batch_size,))])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    head.eval()
    with torch.no_grad():
        return float(np.mean([loss_of(part).item() for part in test.split(256)]))


def main() -> None:
    config = draccus.parse(PretrainConfig)
    started = time.time()
    torch.manual_seed(config.seed)
    data = load_parts(config.data)
    vla = GrootVLA.from_pretrained(
        config.init,
        embodiment=EMBODIMENT,
        image_keys=tuple(f"observation.images.{name}" for name in CAMERAS),
        state_dim=data["state"].shape[1],
        action_dim=data["actions"].shape[2],
    )
    inputs = preprocess(vla, data)
    cube = torch.from_numpy(data["cube"]).float()
    gripper = torch.from_numpy(data["state"][:, :3]).float()
    target = torch.cat([cube, cube - gripper], dim=1)  # (n, 6) metres
    # Frames of one episode are neighbours: the held-out ones come from the end, unshuffled.
    held_out = int(len(cube) * config.holdout)
    index = torch.arange(len(cube))
    train, test = index[:-held_out], index[-held_out:]
    error = ground(vla, inputs, target, train, test, config)
    print(f"grounding: held-out RMSE {1e3 * error:.1f} mm")
    loss = flow(vla, inputs, train, test, config)
    print(f"flow matching: held-out loss {loss:.4f}")
    shutil.copytree(config.init, config.output, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))  # fmt: skip
    model = vla.model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    save_checkpoint(model, config.output)
    report = {
        "frames": len(cube),
        "grounding_rmse_mm": 1e3 * error,
        "flow_loss": loss,
        "grounding_steps": config.grounding_steps,
        "flow_steps": config.flow_steps,
        "wall_minutes": (time.time() - started) / 60,
    }
    (config.output / "pretraining.json").write_text(json.dumps(report, indent=1))
    print(report)


if __name__ == "__main__":
    main()
