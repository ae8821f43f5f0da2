"""Atomic checkpoints of a stage, and the way back into it.

``<output_dir>/checkpoints/<stage>/step-00001000/`` is what accelerate's ``save_state`` writes
(weights, optimizer, random state of every process) and ``checkpoint.json``. The number of updates
is the place in the data and in the schedule, too: both follow from it alone. A checkpoint is
written under a name that nobody reads and renamed when it is whole, so a run killed at any moment
leaves checkpoints that can be loaded, and only such.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deas_vla.errors import DeasError
from deas_vla.files import discard
from deas_vla.training.preemption import Preempted, Preemption

RECORD = "checkpoint.json"
WEIGHTS = "weights.safetensors"


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
        every: Updates between two of them; the last update of a stage always has one.
        keep: How many of the newest are kept, besides the best by the offline metric.
        load_best_at_end: Whether the bundle takes the best instead of the last.
    """

    every: int = 1000
    keep: int = 2
    load_best_at_end: bool = False


class Checkpoints:
    """The checkpoints of one stage.

    Everything of the stage that accelerate has prepared is saved and restored, so prepare first
    and `resume` next. On DDP and on one process only the tensors that `names` lists are written,
    without wrappers' prefixes: such a checkpoint fits any number of processes. FSDP writes its own
    shards.

    Args:
        directory: Of this stage's checkpoints.
        accelerator: All processes call every method at the same step.
        config: When and how many.
        preemption: Asked after each step whether the run has to stop.
        names: The tensors of the module's state that training changes; None for all.
        generator: This process' own generator, if the stage has one.
        metric: Offline metric of the present weights, the larger the better, NaN where there is
            none.
        log: Receives the metric as ``<stage>/offline_metric``, and the step.
        poll: Updates between two questions whether to stop, which processes answer together.
    """

    def __init__(
        self,
        directory: Path,
        accelerator: Accelerator,
        config: CheckpointConfig,
        preemption: Preemption,
        *,
        names: set[str] | None = None,
        generator: torch.Generator | None = None,
        metric: Callable[[], float] | None = None,
        log: Callable[[dict[str, float], int], None] | None = None,
        poll: int = 1,
    ) -> None:
        self._directory = directory
        self._accelerator = accelerator
        self._config = config
        self._preemption = preemption
        self._names = names
        self._generator = generator
        self._metric = metric
        self._log = log
        self._poll = poll

    def resume(self) -> int:
        """Load the newest checkpoint; returns the updates behind it, 0 where there is none.

        Raises:
            DeasError: It cannot be loaded.
        """
        found = self._all()
        if not found:
            return 0
        newest = max(found)
        self._load(self._path(newest))
        self._accelerator.print(f"resuming {self._directory.name} after update {newest}")
        return newest

    def after(self, step: int, last: int, before_save: Callable[[], None]) -> None:
        """To be called after each update: saves where one is due, and stops where told to.

        Args:
            step: Updates behind.
            last: Updates in all.
            before_save: Raises where the present weights are not worth keeping.

        Raises:
            DeasError: A checkpoint cannot be written.
            Preempted: SIGTERM came; everything is saved.
        """
        stop = step % self._poll == 0 and self._preemption.requested()
        if not stop and step % self._config.every and step != last:
            return
        before_save()
        metric = None if stop or self._metric is None else self._metric()
        if metric is not None and self._log is not None:
            self._log({f"{self._directory.name}/offline_metric": metric}, step)
        self._save(step, metric)
        if stop:
            raise Preempted

    def load_best(self) -> None:
        """Leave the best weights in the module, if so configured and if there are any."""
        if not self._config.load_best_at_end:
            return
        stage, best = self._directory.name, self._best()
        if best is None:
            self._accelerator.print(
                f"{stage}: the last weights, for no checkpoint has an offline metric (no held-out "
                "chunk)"
            )
            return
        self._load(self._path(best))
        self._accelerator.print(f"{stage}: weights of update {best}, the best")

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint on disk."""
        found = self._all()
        return self._path(max(found)) if found else None

    def _save(self, step: int, metric: float | None) -> None:
        place = self._path(step)
        beside = place.with_name(f".{place.name}")
        accelerator = self._accelerator
        failure: Exception | None = None
        try:
            if accelerator.is_main_process:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
        except OSError as error:
            failure = error
        accelerator.wait_for_everyone()
        try:
            if failure is None:
                self._write(beside)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch wraps a full disk
            failure = error
        failed = torch.tensor(int(failure is not None), device=accelerator.device)
        if accelerator.num_processes > 1:
            failed = accelerator.reduce(failed, "sum")
        if int(failed) == 0 and accelerator.is_main_process:
            try:
                record = {"step": step, "metric": metric, "processes": accelerator.num_processes}
                (beside / RECORD).write_text(json.dumps(record), encoding="utf-8")
                _sync(beside)
                discard(place)
                os.replace(beside, place)
                self._prune()
            except OSError as error:
                failure = error
        if failure is not None or int(failed):
            if accelerator.is_main_process:
                shutil.rmtree(beside, ignore_errors=True)
            raise DeasError(self._cannot_write(place, failure))
        accelerator.wait_for_everyone()

    def _write(self, directory: Path) -> None:
        accelerator = self._accelerator
        hook = accelerator.register_save_state_pre_hook(self._save_weights)
        try:
            accelerator.save_state(str(directory))
        finally:
            hook.remove()
        if self._generator is not None:
            file = directory / f"generator_{accelerator.process_index}.safetensors"
            save_file({"generator": self._generator.get_state()}, file)

    def _load(self, directory: Path) -> None:
        accelerator = self._accelerator
        hook = accelerator.register_load_state_pre_hook(self._load_weights)
        try:
            accelerator.load_state(str(directory))
            file = directory / f"generator_{accelerator.process_index}.safetensors"
            if self._generator is not None and file.is_file():
                self._generator.set_state(load_file(file)["generator"])
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            cause = " ".join(str(error).split())[:200]
            raise DeasError(
                f"checkpoint {directory} cannot be loaded ({cause}): remove it to go on from the "
                "one before, or start over with --resume=false"
            ) from error
        finally:
            hook.remove()

    def _save_weights(
        self, models: list[nn.Module], weights: list[dict[str, Tensor]], directory: str
    ) -> None:
        """accelerate's hook: what it would write in ``weights`` is written here instead."""
        if not weights:  # FSDP has written its shards
            return
        weights.clear()
        if not self._accelerator.is_main_process:
            return
        (model,) = models
        state = self._accelerator.unwrap_model(model).state_dict()
        kept = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in state.items()
            if self._names is None or name in self._names
        }
        save_file(kept, Path(directory) / WEIGHTS)

    def _load_weights(self, models: list[nn.Module], directory: str) -> None:
        """accelerate's hook: models that are loaded here leave its list."""
        if not models:
            return
        model = self._accelerator.unwrap_model(models.pop())
        state = load_file(Path(directory) / WEIGHTS)
        expected = set(model.state_dict()) if self._names is None else self._names
        if set(state) != expected:
            odd = sorted(set(state) ^ expected)[0]
            raise ValueError(f"{odd} is in only one of checkpoint and module")
        model.load_state_dict(state, strict=False)

    def _all(self) -> dict[int, float | None]:
        """Step to metric of every checkpoint on disk."""
        records = [json.loads(f.read_text()) for f in self._directory.glob(f"step-*/{RECORD}")]
        return {record["step"]: record["metric"] for record in records}

    def _best(self) -> int | None:
        """Of equal ones the earliest."""
        measured = {
            step: metric
            for step, metric in sorted(self._all().items())
            if metric is not None and not math.isnan(metric)
        }
        return max(measured, key=lambda step: measured[step]) if measured else None

    def _prune(self) -> None:
        steps = sorted(self._all())
        for step in steps[: -self._config.keep]:
            if step != self._best():
                discard(self._path(step))

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}"

    def _cannot_write(self, place: Path, failure: Exception | None) -> str:
        cause = "another process failed" if failure is None else _cause(failure)
        kept = "no checkpoint before it" if self.newest is None else f"{self.newest} is intact"
        return (
            f"checkpoint {place} cannot be written ({cause}): {kept}; free disk space or use a "
            "smaller --checkpoint.keep, then run the same command to go on"
        )


def _sync(directory: Path) -> None:
    """Bring every file to the disk before the directory gets its name."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
