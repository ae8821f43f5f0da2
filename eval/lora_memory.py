"""Memory of LoRA finetuning of GR00T N1.7's action head, counted on torch's meta device.

python eval/lora_memory.py --output_dir outputs/lora_memory

The public model is built at its own size without weights, PEFT puts the adapters on it, and one
training step's forward pass runs on tensors without data: what autograd keeps for the backward
pass is added up. PEFT's float32 adapters see float32 copies here, where autocast would keep
bfloat16 ones: an upper bound, by a third or so. Nothing is measured on a GPU: allocator, kernels'
workspaces and CUDA itself come on top.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deas_vla.cli import make_output_dir, run
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.files import write_json
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.vla import VLASpec
from deas_vla.provenance import run_record
from deas_vla.training.config import PolicyConfig
from deas_vla.training.memory import BYTES_PER_TRAINED, saved_bytes
from deas_vla.training.policy import FlowMatching, add_lora


@dataclass
class MemoryConfig:
    """What to count.

    Attributes:
        batch_sizes: Chunks per forward pass on one GPU.
        cameras: Pictures per observation, 64 tokens each.
        text_tokens: Of the chat template and the instruction.
        policy: Rank of the adapters, and whether the projectors are trained.
        output_dir: Where results go.
    """

    batch_sizes: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256])
    cameras: int = 3
    text_tokens: int = 32
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    output_dir: Path = Path("outputs/lora_memory")


def main(config: MemoryConfig) -> None:
    started = time.time()
    output = make_output_dir(config.output_dir)
    vla = meta_vla(config)
    groot = vla.model  # LeRobot's class; the adapter goes into it in place
    weights = {"backbone": size(groot.backbone), "head": size(groot.action_head)}
    add_lora(vla, config.policy)
    vla.model.train()
    module = FlowMatching(vla)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    blocks = len(groot.action_head.model.transformer_blocks)

    rows = []
    for batch in config.batch_sizes:
        kept = saved_bytes(module, head_inputs(groot.config, config, batch))
        # Checkpointed: each block's input, and one block at a time in full.
        width = groot.config.input_embedding_dim
        inputs = 2 * batch * (1 + vla.spec.action_horizon) * width
        rows.append(
            {
                "batch": batch,
                "head_gb": 2 * weights["head"] / 1e9,
                "backbone_gb": 2 * weights["backbone"] / 1e9,
                "trained_gb": BYTES_PER_TRAINED * trained / 1e9,
                "activations_gb": kept / 1e9,
                "activations_checkpointed_gb": (blocks * inputs + kept / blocks) / 1e9,
            }
        )
    record = {
        **run_record(config, started),
        "parameters": {**weights, "trained": trained},
        "rows": rows,
    }
    write_json(output / "results.json", record)
    header = list(rows[0])
    cells = [[f"{row[name]:.2f}" if name != "batch" else str(row[name]) for name in header]
             for row in rows]  # fmt: skip
    write_page("LoRA memory, by counting", html_table(header, cells), output / "report.html")
    print({name: f"{count / 1e6:.1f} M" for name, count in record["parameters"].items()})
    print("  ".join(header))
    for line in cells:
        print("  ".join(cell.rjust(len(name)) for cell, name in zip(line, header, strict=True)))


def meta_vla(config: MemoryConfig) -> GrootVLA:
    """The public architecture without weights and without processors."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    settings = GR00TN17Config()
    with torch.device("meta"):
        model = GR00TN17(
            settings,
            load_backbone_weights=False,
            transformers_loading_kwargs={"trust_remote_code": False},
        )
    spec = VLASpec(
        embodiment="new_embodiment",
        image_keys=tuple(f"observation.images.{k}" for k in range(config.cameras)),
        state_dim=settings.max_state_dim,
        action_dim=settings.max_action_dim,
        action_horizon=settings.action_horizon,
        noise_shape=(settings.action_horizon, settings.max_action_dim),
        token_dim=settings.backbone_embedding_dim,
        tokens_per_image=(8, 8),
    )
    model = model.to(torch.bfloat16).requires_grad_(False)
    return GrootVLA(model, None, None, spec, settings.model_name)


def head_inputs(settings: Any, config: MemoryConfig, batch: int) -> dict[str, Tensor]:
    """What the policy stage trains on: cached tokens, state and chunk."""
    length = 64 * config.cameras + config.text_tokens
    chunk = (batch, settings.action_horizon, settings.max_action_dim)
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    return {
        "tokens": torch.empty(batch, length, settings.backbone_embedding_dim, **meta),
        "token_mask": torch.empty(batch, length, device="meta", dtype=torch.bool),
        "image_mask": torch.empty(batch, length, device="meta", dtype=torch.bool),
        "state": torch.empty(batch, 1, settings.max_state_dim, **meta),
        "raw_state": torch.empty(batch, settings.max_state_dim, **meta),
        "embodiment_id": torch.empty(batch, device="meta", dtype=torch.long),
        "action": torch.empty(chunk, **meta),
        "action_mask": torch.empty(chunk, **meta),
    }


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    run(main, MemoryConfig)
