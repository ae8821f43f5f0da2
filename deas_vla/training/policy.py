"""The ``policy`` stage: LoRA on the flow-matching action head, by GR00T's own loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.transitions import gather_actions
from deas_vla.errors import DeasError
from deas_vla.policies.groot import GrootVLA
from deas_vla.training.config import PolicyConfig
from deas_vla.training.features import Encodings
from deas_vla.training.loop import index_batches, warmup_cosine

Log = Callable[[dict[str, float], int], None]


class FlowMatching(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees it."""

    def __init__(self, vla: GrootVLA) -> None:
        super().__init__()
        self.model = vla.model
        self._vla = vla

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self._vla.flow_matching_loss(
            self._vla.encoding_from(batch), batch["action"], batch["action_mask"]
        )


def chunk_starts(table: EpisodeTable, episodes: NDArray[np.int64], which: str) -> NDArray[np.int64]:
    """Frames to clone from: every frame of the chosen episodes, up to the step that succeeds.

    Args:
        table: The dataset.
        episodes: Episode rows to use.
        which: ``all`` or ``successful`` (filtered behaviour cloning, algorithms: extraction).

    Raises:
        DeasError: No episode is left.
    """
    chosen = episodes if which == "all" else episodes[table.episode_success[episodes]]
    if len(chosen) == 0:
        raise DeasError(
            f"policy.episodes={which} leaves no episode of dataset {table.root}: "
            "record successful ones or use --policy.episodes=all"
        )
    return np.concatenate([np.arange(table.num_frames)[table.frames(int(row))] for row in chosen])


def policy_targets(
    vla: GrootVLA, table: EpisodeTable, starts: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Normalised states and action chunks of ``starts``, by the policy's own preprocessor.

    Returns:
        ``state`` (M, 1, S_model), ``action`` and ``action_mask`` (M, H, A_model), ``embodiment_id``
        (M,); steps after the episode's end are masked.
    """
    horizon = vla.spec.action_horizon
    ends = np.repeat(table.episode_end, table.episode_lengths)
    valid_steps = np.minimum(ends[starts] - starts, horizon)
    action, valid = gather_actions(table.action, starts, valid_steps, horizon)
    return vla.preprocess_targets(
        torch.from_numpy(table.state[starts]), torch.from_numpy(action), torch.from_numpy(valid)
    )


def add_lora(vla: GrootVLA, config: PolicyConfig) -> None:
    """Wrap the model by PEFT: adapters on the flow head, everything else frozen."""
    from peft import LoraConfig, get_peft_model

    vla.model = get_peft_model(
        vla.model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=vla.lora_targets,
            modules_to_save=list(vla.projectors) if config.train_projectors else None,
        ),
    )
    vla.model.peft_config["default"].base_model_name_or_path = vla.name_or_path


def finetune_policy(
    vla: GrootVLA,
    encodings: Encodings,
    table: EpisodeTable,
    episodes: NDArray[np.int64],
    config: PolicyConfig,
    accelerator: Accelerator,
    seed: int,
    log: Log,
) -> float:
    """Train the adapter in place; returns the mean loss of the last tenth of the updates.

    The backbone is frozen, so its tokens come from the cache: a step runs the action head alone.
    """
    starts = chunk_starts(table, episodes, config.episodes)
    targets = policy_targets(vla, table, starts)
    add_lora(vla, config)
    module: Any = FlowMatching(vla)
    module.train()
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(config.steps))
    module, optimizer = accelerator.prepare(module, optimizer)
    batches = index_batches(
        len(starts),
        config.batch_size,
        config.steps,
        seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    losses = []
    bar = tqdm(batches, "policy", config.steps, disable=not accelerator.is_local_main_process)
    for step, rows in enumerate(bar):
        batch = encodings.batch(starts[rows.numpy()], accelerator.device)
        batch |= {key: value[rows].to(accelerator.device) for key, value in targets.items()}
        with accelerator.autocast():
            loss = module(batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(trainable, config.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % 50 == 0:
            value = loss.item()
            log({"policy/loss": value, "policy/grad_norm": float(norm)}, step)
            bar.set_postfix(loss=f"{value:.3f}")
            if not np.isfinite(value):
                raise DeasError(
                    f"policy loss is {value} at step {step}: lower --policy.lr ({config.lr}) or "
                    "check the dataset's actions"
                )
    vla.model.eval()
    last = torch.stack(losses[-max(1, len(losses) // 10) :])
    return float(accelerator.gather(last.mean()[None]).mean())
