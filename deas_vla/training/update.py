"""One update of a critic: the home of loss, backward, clipping, optimizer step and EMA.

With ``critic.compile`` the loss is compiled. On one GPU the whole update is then also one CUDA
graph: some two hundred small kernels cost more to launch than to run.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from deas_vla.critic.base import Critic, Metrics
from deas_vla.critic.batch import ChunkBatch
from deas_vla.errors import DeasError
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.loop import warmup_cosine

# Updates that run before the capture: what they allocate and compile must not happen inside it.
_WARM_UP = 3


class CriticUpdate:
    """Trains a critic, one batch a call.

    Nothing in a call waits for the device: losses and metrics are tensors there.

    Args:
        critic: On its device already; trained in place.
        config: Learning rate, schedule, clipping, EMA rate and ``compile``.
        accelerator: One process or many. DistributedDataParallel holds the compiled critic; CUDA
            graphs are for one process, and for float32 or bfloat16.
        generator: On the critic's device; feeds what the algorithm samples (``evor`` alone).

    Attributes:
        wrapped: The critic as accelerate prepared it.
        optimizer: Adam as accelerate prepared it.
        done: Updates so far: the position in the schedule.

    Raises:
        DeasError: ``compile`` without a C++ compiler.
    """

    def __init__(
        self,
        critic: Critic,
        config: CriticTrainingConfig,
        accelerator: Accelerator,
        generator: torch.Generator | None = None,
    ) -> None:
        if config.compile:
            _check_compiler()
        self.done = 0
        self.critic = critic
        self.wrapped: Any
        self.optimizer: Any
        self._accelerator = accelerator
        self._generator = generator
        self._lr = config.lr
        self._clip = config.grad_clip
        self._steps = config.steps if config.schedule == "cosine" else None
        # A gradient scaler looks at its overflow flag on the host, which no graph can hold.
        self._captures = (
            config.compile
            and accelerator.device.type == "cuda"
            and accelerator.num_processes == 1
            and accelerator.scaler is None
        )
        self._captured: _CapturedStep | None = None
        self.wrapped, self.optimizer = accelerator.prepare(
            critic, critic.make_optimizer(capturable=self._captures)
        )
        if config.compile:
            critic.compile(dynamic=False)
        self.wrapped.train()

    def __call__(self, batch: ChunkBatch, want_metrics: bool = False) -> tuple[Tensor, Metrics]:
        """Train on one batch of this process.

        Args:
            batch: Of the same size in every call, on the critic's device.
            want_metrics: Whether this update is logged; otherwise gradient norms are only computed
                where clipping needs them.

        Returns:
            The loss, a detached scalar; and, if wanted, the algorithm's metrics, ``grad_norm`` and
            ``grad_norm_q``, ``grad_norm_v``, all before clipping, else an empty dict.
        """
        self._set_learning_rate()
        if self._captures:
            if self._captured is None:
                self._captured = _CapturedStep(lambda b: self._step(b, True), self._generator)
            loss, metrics = self._captured(batch)
        else:
            loss, metrics = self._step(batch, want_metrics)
        self.done += 1
        return loss, metrics if want_metrics else {}

    def resume(self, done: int) -> None:
        """Go on after ``done`` updates, with the optimizer's state already restored.

        The state may come from a run that could not capture its updates, or from one that could.
        """
        self.done = done
        for group in self.optimizer.param_groups:
            group["capturable"] = self._captures
        for moments in self.optimizer.state.values():
            if self._captures:
                moments["step"] = moments["step"].to(self._accelerator.device)

    def _step(self, batch: ChunkBatch, with_norms: bool) -> tuple[Tensor, Metrics]:
        loss, metrics = self.wrapped(batch, self._generator)
        # Gradient accumulation is the policy's: a critic's batch always fits. accelerate divides.
        self._accelerator.backward(loss * self._accelerator.gradient_accumulation_steps)
        if with_norms or self._clip > 0:
            self._accelerator.unscale_gradients(self.optimizer)
            norms = self._gradient_norms()
            metrics = {**metrics, **norms}
            if self._clip > 0:
                trained = self.critic.trainable_parameters()
                clip_grads_with_norm_(trained, self._clip, norms["grad_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.critic.update_target()
        return loss.detach(), metrics

    @torch.no_grad()
    def _gradient_norms(self) -> Metrics:
        """Euclidean norms over all that is trained, and over Q's and V's own parameters."""
        groups = {"grad_norm": self.critic.trainable_parameters()} | {
            f"grad_norm_{role}": list(network.parameters())
            for role, network in self.critic.networks().items()
        }
        return {
            name: get_total_norm([p.grad for p in parameters if p.grad is not None])
            for name, parameters in groups.items()
        }

    def _set_learning_rate(self) -> None:
        """Write the schedule's rate to the optimizer: a tensor where a graph reads it."""
        rate = self._lr * (warmup_cosine(self.done, self._steps) if self._steps else 1.0)
        for group in self.optimizer.param_groups:
            if not self._captures:
                group["lr"] = rate
            elif not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(rate, device=self._accelerator.device)
            elif self._steps or self._captured is None:
                group["lr"].fill_(rate)


class _CapturedStep:
    """A step as a CUDA graph that reads its batch from where the first captured one lay.

    The first `_WARM_UP` calls run the step as it is, on the stream of the later capture, so that
    compiling, workspaces and the optimizer's moments come before it.
    """

    def __init__(
        self,
        step: Callable[[ChunkBatch], tuple[Tensor, Metrics]],
        generator: torch.Generator | None,
    ) -> None:
        self._step = step
        self._generator = generator
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._outputs: tuple[Tensor, Metrics]

    def __call__(self, batch: ChunkBatch) -> tuple[Tensor, Metrics]:
        self._calls += 1
        if self._calls <= _WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                outputs = self._step(batch)
            torch.cuda.current_stream().wait_stream(self._stream)
            return outputs
        if self._graph is None:
            self._graph = self._capture(batch)
        for name, static in self._inputs.items():
            static.copy_(getattr(batch, name))
        self._graph.replay()
        loss, metrics = self._outputs  # the next replay overwrites them
        return loss.clone(), {name: value.clone() for name, value in metrics.items()}

    def _capture(self, batch: ChunkBatch) -> torch.cuda.CUDAGraph:
        present = {f.name: getattr(batch, f.name) for f in fields(batch)}
        self._inputs = {k: v.clone() for k, v in present.items() if v is not None}
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None and self._generator.device.type == "cuda":
            graph.register_generator_state(self._generator)  # each replay draws anew
        torch.cuda.synchronize()
        # Another thread may be reading batches ahead: its calls are no part of this capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._outputs = self._step(ChunkBatch(**self._inputs))
        return graph


def _check_compiler() -> None:
    """DeasError where torch.compile would fail for want of a C++ compiler."""
    names = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    if not any(name and shutil.which(name) for name in names):
        raise DeasError(
            "critic.compile=True: no C++ compiler is on PATH; install g++ or use "
            "--critic.compile=false"
        )
