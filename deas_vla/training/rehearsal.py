"""A run in small, measured: what each stage costs on this machine."""

import resource
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.feature_cache import size
from deas_vla.errors import DeasError
from deas_vla.policies.vla import VLA
from deas_vla.training.config import PolicyConfig
from deas_vla.training.memory import BYTES_PER_TRAINED, saved_bytes
from deas_vla.training.policy import FlowMatching, finetune_policy, joined_batch, policy_targets
from deas_vla.training.policy_inputs import Part, PolicyInputs
from deas_vla.training.run import Run

_ROOM = {"full": (int(9e9), int(8e9)), "nano": (int(1e8), int(1e8))}  # disk and memory, bytes


@dataclass
class Measured:
    """What a stage cost.

    Attributes:
        stage: Its name.
        seconds: Of the wall.
        units: What was done: frames, chunks, transitions.
        of: What a unit is.
        memory: Peak of resident memory within it, bytes, the process' own included.
        device: The most that was allocated on a GPU within it, bytes; 0 on a CPU.
        disk: What it left, bytes.
    """

    stage: str
    seconds: float = 0.0
    units: int = 1
    of: str = ""
    memory: int = 0
    device: int = 0
    disk: int = 0

    @property
    def each(self) -> float:
        """Seconds a unit."""
        return self.seconds / self.units


@dataclass
class Rehearsal:
    """Measures stages one after the other.

    Attributes:
        device: Where they run.
        stages: What was measured.
    """

    device: torch.device
    stages: dict[str, Measured] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, units: int = 1, of: str = "", left: Path | None = None) -> Iterator:
        """Measure what is done within it, and print it.

        Args:
            name: Of the stage.
            units: What it is divided by.
            of: What they are.
            left: Directory that it writes to.
        """
        before = tree_bytes(left)
        _forget_peaks(self.device)
        began = time.perf_counter()
        yield
        found = Measured(name, time.perf_counter() - began, units, of)
        found.memory, found.device = _peaks(self.device)
        found.disk = max(0, tree_bytes(left) - before)
        self.stages[name] = found
        print(line(found), flush=True)


@dataclass(frozen=True)
class TimedRun(Run):
    """A run that notes when updates begin: a stage's setup and its checkpoint are no part of them.

    Attributes:
        marks: When each update began, and when there was none left, seconds.
    """

    marks: list[float] = field(default_factory=list)

    def bar[T](self, steps: Iterable[T], stage: str, start: int, stop: int) -> "tqdm[T]":
        return super().bar(self._marked(steps), stage, start, stop)

    def _marked[T](self, steps: Iterable[T]) -> Iterator[T]:
        # Not where batches are drawn: workers draw them ahead.
        self.marks.clear()
        for step in steps:
            self.marks.append(time.perf_counter())
            yield step
        self.marks.append(time.perf_counter())

    def update_seconds(self) -> float:
        """Of the last stage's updates, the median; the first, which warms up, left out."""
        seconds = np.diff(self.marks)
        return float(np.median(seconds[1:] if len(seconds) > 1 else seconds))


def check_room(output: Path, scale: str) -> None:
    """DeasError where memory or disk are too small for a checkpoint of random weights."""
    disk, memory = _ROOM[scale]
    free = shutil.disk_usage(output).free
    if free < disk:
        raise DeasError(
            f"a rehearsal of size {scale} takes {size(disk)} of disk, {size(free)} are free at "
            f"{output}: give another --output_dir, or --size=nano"
        )
    told = Path("/proc/meminfo")
    if told.is_file():
        fields = dict(row.split(":", 1) for row in told.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        if available < memory:
            raise DeasError(
                f"a rehearsal of size {scale} takes {size(memory)} of memory, {size(available)} "
                "are free: end other programs, take another machine, or --size=nano"
            )


def line(stage: Measured) -> str:
    """A stage as a line of text."""
    text = f"{stage.stage:12s} {stage.seconds:8.1f} s  {size(stage.memory):>9s} of memory"
    if stage.device:
        text += f"  {size(stage.device):>9s} of the GPU's"
    if stage.disk:
        text += f"  {size(stage.disk):>9s} of disk"
    if stage.of:
        text += f"  {stage.each:8.3f} s a {stage.of} ({stage.units})"
    return text


def handful(table: EpisodeTable, frames: int) -> EpisodeTable:
    """The beginnings of two episodes, one that succeeds and one that does not where there are both.

    An outcome happens at the last frame that is left, so that every stage has what it needs.

    Args:
        table: Of one dataset.
        frames: Of each at most.

    Raises:
        DeasError: No success, which a critic needs.
    """
    order = np.argsort(table.episode_lengths, kind="stable")[::-1]
    good, bad = (order[table.episode_success[order] == success] for success in (True, False))
    if len(good) == 0:
        raise DeasError(f"dataset {table.root} has no success: a critic cannot learn from it")
    rows = np.sort([good[0], bad[0] if len(bad) else good[-1]])
    if len(good) + len(bad) == 1:
        rows = rows[:1]
    lengths = np.minimum(table.episode_lengths[rows], frames)
    kept = np.concatenate(
        [
            np.arange(begin, begin + n)
            for begin, n in zip(table.episode_start[rows], lengths, strict=True)
        ]
    )
    end = np.cumsum(lengths)
    last = np.zeros(len(kept), dtype=bool)
    last[end - 1] = True
    success = np.zeros(len(kept), dtype=bool)
    success[end - 1] = table.episode_success[rows]
    reward = table.dataset_reward
    return replace(
        table,
        state=table.state[kept],
        action=table.action[kept],
        dataset_reward=None if reward is None else reward[kept],
        done=last,
        success=success,
        terminated=success,
        truncated=last & ~success,
        episode_index=table.episode_index[kept],
        episode_start=end - lengths,
        episode_end=end,
        episode_ids=table.episode_ids[rows],
        episode_success=table.episode_success[rows],
        task_index=table.task_index[kept],
    )


def rehearse_policy(
    rehearsal: Rehearsal,
    told: TimedRun,
    vla: VLA,
    inputs: PolicyInputs,
    few: EpisodeTable,
    config: PolicyConfig,
    updates: int,
    chunks: int,
) -> tuple[float, int, int]:
    """A few updates of the policy, with ``chunks`` at once.

    Returns:
        Seconds a chunk takes; `saved_bytes` of a chunk; and what the weights take, with
        gradient and moments of those that are trained; bytes.
    """
    every, none = np.arange(few.num_episodes), np.zeros(0, np.int64)
    settings = replace(
        config, steps=updates, batch_size=chunks, gradient_accumulation_steps=1, episodes="all"
    )
    with rehearsal.stage("policy", updates * chunks, "chunk", left=told.output / "checkpoints"):
        finetune_policy(vla, inputs, few, every, none, settings, told)
    seconds = told.update_seconds() / chunks
    starts, rows = np.zeros(chunks, np.int64), torch.arange(chunks)
    with closing(inputs.stream([Part(starts, None)], rehearsal.device)) as observed:
        batch = joined_batch(next(observed), policy_targets(vla, few, starts), rows)
    vla.model.train()
    with vla.gradient_checkpointing(config.gradient_checkpointing):
        kept = saved_bytes(FlowMatching(vla), batch) // chunks
    vla.model.eval()
    print(f"  an update: {seconds:.3f} s a chunk, {kept / 1e6:.1f} MB for its backward pass")
    weights = sum(
        p.numel() * (BYTES_PER_TRAINED if p.requires_grad else p.element_size())
        for p in vla.model.parameters()
    )
    return seconds, kept, weights


def record(rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """The stages as rows of ``results.json``."""
    return [
        {
            "what": stage.stage,
            "size": stage.units,
            "unit": stage.of,
            "seconds": stage.seconds,
            "memory_gb": stage.memory / 1e9,
            "device_gb": stage.device / 1e9,
            "disk_gb": stage.disk / 1e9,
        }
        for stage in rehearsal.stages.values()
    ]


def tree_bytes(directory: Path | None) -> int:
    """What a directory takes of its disk, 0 where there is none."""
    if directory is None or not directory.is_dir():
        return 0
    # Blocks, not lengths: a file with holes takes no room for them.
    return sum(512 * path.stat().st_blocks for path in directory.rglob("*") if path.is_file())


def _forget_peaks(device: torch.device) -> None:
    with suppress(OSError):  # no Linux: the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> tuple[int, int]:
    """The most of this process' resident memory, and of what it had on a GPU, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(row.split(":", 1) for row in status.read_text().splitlines() if ":" in row)
        peak = int(fields["VmHWM"].split()[0]) * 1024
    return peak, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
