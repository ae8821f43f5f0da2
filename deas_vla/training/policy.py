"""The ``policy`` stage: the parts that ``policy.train`` names, by GR00T's own loss."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import tee
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from torch import Tensor, nn

from deas_vla.data.dataset import Draw
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.sampling import row_weights
from deas_vla.data.transitions import gather_chunks
from deas_vla.errors import DeasError
from deas_vla.policies.lora import PROJECTORS, training_targets
from deas_vla.policies.vla import VLA
from deas_vla.training.config import PolicyConfig
from deas_vla.training.divergence import LossWatch
from deas_vla.training.encodings import Encodings
from deas_vla.training.loop import warmup_cosine
from deas_vla.training.memory import told_memory, told_workers
from deas_vla.training.policy_inputs import CachedTokens, Part, PolicyInputs
from deas_vla.training.precision import mixed, to_float32
from deas_vla.training.run import Run

_LOG_EVERY = 50  # updates
_METRIC_CHUNKS, _METRIC_PART = 256, 32  # that the offline metric looks at, and at once


class FlowMatching(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees it.

    A batch holds tokens, or pictures that go through the backbone first.
    """

    def __init__(self, vla: VLA) -> None:
        super().__init__()
        self.model = vla.model
        self._vla = vla

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        vla = self._vla
        with mixed(vla.device, vla.dtype):
            encoding = vla.encoding_from(batch) if "tokens" in batch else vla.encode_batch(batch)
            return vla.flow_matching_loss(encoding, batch["action"], batch["action_mask"])


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
    return table.frames_of(chosen)


def policy_targets(vla: VLA, table: EpisodeTable, starts: NDArray[np.int64]) -> dict[str, Tensor]:
    """Normalised states and action chunks of ``starts``, by the policy's own preprocessor.

    Returns:
        ``state`` (M, 1, S_model), ``action`` and ``action_mask`` (M, H, A_model), ``embodiment_id``
        (M,); steps after the episode's end are masked.
    """
    horizon = vla.spec.action_horizon
    ends = np.repeat(table.episode_end, table.episode_lengths)
    valid_steps = np.minimum(ends[starts] - starts, horizon)
    action = gather_chunks(torch.from_numpy(table.action), torch.from_numpy(starts), horizon)
    valid = torch.arange(horizon) < torch.from_numpy(valid_steps).unsqueeze(1)  # (M, H)
    action[~valid] = 0.0
    return vla.preprocess_targets(torch.from_numpy(table.state[starts]), action, valid)


def add_lora(vla: VLA, config: PolicyConfig) -> None:
    """Wrap the model by PEFT: what ``config.train`` names gets LoRA or a copy, the rest is frozen.

    Raises:
        DeasError: As `check_parts`.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import DUMMY_TARGET_MODULES

    pattern, whole = check_parts(vla, config)
    vla.model = get_peft_model(
        vla.model,
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=pattern or DUMMY_TARGET_MODULES,
            modules_to_save=whole or None,
        ),
    )
    vla.model.peft_config["default"].base_model_name_or_path = vla.name_or_path


def check_parts(vla: VLA, config: PolicyConfig) -> tuple[str | None, list[str]]:
    """`training_targets` of a policy whose model PEFT has not wrapped yet.

    Raises:
        DeasError: Parts that the policy does not have or that cannot be trained that way, or none.
    """
    projectors = config.train_projectors or PROJECTORS in config.train  # whole in any case
    parts = [part for part in config.train if part != PROJECTORS]
    whole = [part for part in config.train_whole if part != PROJECTORS or not projectors]
    pattern, modules = training_targets(vla.model, vla.lora_parts, parts, whole)
    if projectors:
        modules += vla.projectors
    if pattern is None and not modules:
        raise DeasError("policy.train is empty: name a part, or use --policy.steps=0")
    return pattern, modules


def finetune_policy(
    vla: VLA,
    inputs: PolicyInputs | Encodings,
    table: EpisodeTable,
    episodes: NDArray[np.int64],
    held_out: NDArray[np.int64],
    config: PolicyConfig,
    run: Run,
    *,
    shares: Sequence[float] | None = None,
) -> dict[str, Tensor] | None:
    """Train the adapter in place, from the last checkpoint on.

    With cached tokens a step runs the action head alone; what the backbone is trained of needs
    pictures (`OnlinePictures`).

    Args:
        vla: Gets an adapter.
        inputs: Where the observations of a batch come from; encodings with tokens stand for
            `CachedTokens`.
        table: The dataset.
        episodes: Episode rows to train on.
        held_out: Episode rows that the offline metric is measured on; may be none.
        config: Adapter and training.
        run: Processes, seed, checkpoints.
        shares: What part of a batch comes from each of ``table.sources``; by size when left out.

    Returns:
        None, but under FSDP, which leaves every process with shards: then the trained tensors by
        name, whole, on the main process, for `restore_policy`.

    Raises:
        DeasError: No episode left, a loss not finite, or a checkpoint that cannot be written or
            read.
        Preempted: SIGTERM came; everything is saved.
    """
    accelerator = run.accelerator
    if isinstance(inputs, Encodings):
        inputs = CachedTokens(inputs)
    starts = chunk_starts(table, episodes, config.episodes)
    with torch.random.fork_rng([]):  # the same first weights on every process: FSDP shards its own
        torch.manual_seed(run.seed)
        add_lora(vla, config)
    module: Any = FlowMatching(vla)
    restore_types = to_float32(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer: Any = torch.optim.AdamW(
        trainable.values(), lr=config.lr, weight_decay=config.weight_decay
    )
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    if config.batch_size // accelerator.num_processes < config.gradient_accumulation_steps:
        raise DeasError(
            f"policy.gradient_accumulation_steps {config.gradient_accumulation_steps} exceeds the "
            f"{config.batch_size // accelerator.num_processes} chunks of a process: use fewer"
        )
    checkpoints = run.checkpoints(
        "policy",
        names=set(trainable),
        metric=lambda: -held_out_loss(wrapped, vla, inputs, table, held_out, config, run.seed),
    )
    watch = LossWatch(
        "policy",
        module,
        starts,
        checkpoints,
        run.output,
        accelerator,
        f"lower --policy.lr ({config.lr}) or check the dataset's actions",
    )
    start = checkpoints.resume()
    weights = row_weights(table, starts, shares)
    draws, ahead = tee(
        run.batches(len(starts), config.batch_size, range(start, config.steps), weights)
    )
    accumulated = config.gradient_accumulation_steps
    observed = inputs.stream(_parts(ahead, starts, accumulated), accelerator.device)
    bar = run.bar(draws, "policy", start, config.steps)
    vla.model.train()
    with (
        told_workers("policy.workers", config.workers, _fewer_workers(config)),
        closing(observed),
        _told_memory(config, accelerator.num_processes),
        run.preemption.deferred(),
        vla.gradient_checkpointing(config.gradient_checkpointing),
    ):
        for step, draw in enumerate(bar, start):
            rows = draw.rows
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warmup_cosine(step, config.steps)
            # Of this batch alone: a chunk of a large VLA's is 42 kB, of a million starts 42 GB.
            chosen = starts[rows.numpy()]
            targets = policy_targets(vla, table, chosen)
            parts = torch.arange(len(rows)).tensor_split(accumulated)
            weight = targets["action_mask"].sum()  # the loss is a mean over real values
            loss = torch.zeros((), device=accelerator.device)
            for index, part in enumerate(parts):
                batch = joined_batch(next(observed), targets, part)
                last = index == len(parts) - 1
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    with accelerator.autocast():
                        share = wrapped(batch) * (batch["action_mask"].sum() / weight)
                    accelerator.backward(share)
                loss += share.detach()
            largest = config.grad_clip or float("inf")
            norm = accelerator.clip_grad_norm_(trainable.values(), largest)
            optimizer.step()
            optimizer.zero_grad()
            watch.record(step, rows, loss)
            if step % _LOG_EVERY == 0 or step == config.steps - 1:
                watch.check()
                run.log(
                    {
                        "policy/loss": loss.item(),
                        "policy/grad_norm": float(norm),
                        "policy/lr": optimizer.param_groups[0]["lr"],
                    },
                    step,
                )
                bar.set_postfix(loss=f"{loss.item():.3f}")
            checkpoints.after(step + 1, config.steps, watch.check_weights)
    vla.model.eval()
    checkpoints.load_best()  # of FSDP's shards, before they are gathered
    whole = None
    if accelerator.distributed_type == DistributedType.FSDP:
        state = accelerator.get_state_dict(wrapped)  # together; empty but on the main process
        whole = {name: tensor for name, tensor in state.items() if name in trainable}
    else:
        restore_types()
    accelerator.free_memory()
    return whole


def _told_memory(config: PolicyConfig, processes: int) -> AbstractContextManager[None]:
    share, parts = config.batch_size // processes, config.gradient_accumulation_steps
    remedy = "use --policy.gradient_checkpointing=true"
    if 2 * parts <= share:
        remedy = (
            f"use --policy.gradient_accumulation_steps={2 * parts} (parts of {share // parts // 2})"
        )
        remedy += (
            "" if config.gradient_checkpointing else " or --policy.gradient_checkpointing=true"
        )
    return told_memory(f"a part of {share // parts} chunks of policy.batch_size", remedy)


def _fewer_workers(config: PolicyConfig) -> str:
    parts = f"--policy.gradient_accumulation_steps={2 * config.gradient_accumulation_steps}"
    return f"use --policy.workers={config.workers // 2} or {parts}"


def restore_policy(vla: VLA, config: PolicyConfig, trained: dict[str, Tensor]) -> None:
    """Give a freshly loaded policy the adapter that `finetune_policy` returned."""
    add_lora(vla, config)
    FlowMatching(vla).load_state_dict(trained, strict=False)
    vla.model.eval()


def joined_batch(
    observed: dict[str, Tensor], targets: dict[str, Tensor], rows: Tensor
) -> dict[str, Tensor]:
    """What `FlowMatching` trains on: observations, and state and chunk of the same ``rows``.

    Rows whose pictures could not be read have no real value left in their chunk.
    """
    device = next(iter(observed.values())).device
    batch = observed | {key: value[rows].to(device) for key, value in targets.items()}
    readable = batch.pop("readable", None)
    if readable is not None:
        batch["action_mask"] = batch["action_mask"] * readable[:, None, None]
    return batch


def _parts(draws: Iterable[Draw], starts: NDArray[np.int64], parts: int) -> Iterator[Part]:
    """The forward passes that a process' draws are split into, in their order."""
    for draw in draws:
        split = zip(draw.rows.tensor_split(parts), draw.seeds.tensor_split(parts), strict=True)
        for rows, seeds in split:
            yield Part(starts[rows.numpy()], seeds)


@torch.no_grad()
def held_out_loss(
    module: nn.Module,
    vla: VLA,
    inputs: PolicyInputs,
    table: EpisodeTable,
    held_out: NDArray[np.int64],
    config: PolicyConfig,
    seed: int,
) -> float:
    """`FlowMatching` over at most 256 chunks of held-out episodes, always the same ones.

    Noise and time are the same at every call, and the run's own random stream is left where it
    was. NaN where no episode is held out that ``config.episodes`` allows.
    """
    if config.episodes == "successful":
        held_out = held_out[table.episode_success[held_out]]
    if len(held_out) == 0:
        return float("nan")
    starts = chunk_starts(table, held_out, "all")
    starts = starts[np.linspace(0, len(starts) - 1, min(_METRIC_CHUNKS, len(starts))).astype(int)]
    targets = policy_targets(vla, table, starts)
    parts = torch.arange(len(starts)).split(_METRIC_PART)
    wanted = (Part(starts[part.numpy()], None) for part in parts)
    training = vla.model.training
    vla.model.eval()
    devices = [vla.device] if vla.device.type == "cuda" else []
    total = weight = 0.0
    observed = inputs.stream(wanted, vla.device)
    with closing(observed), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for part in parts:
            batch = joined_batch(next(observed), targets, part)
            real = float(batch["action_mask"].sum())
            total += float(module(batch)) * real
            weight += real
    vla.model.train(training)
    return total / weight if weight else float("nan")
