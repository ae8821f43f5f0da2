"""Rehearse a run of recipes/finetune_groot.py before its machine is rented: all of it, on a handful
of frames.

python recipes/rehearse.py --dataset.root=DIR --output_dir=outputs/rehearsal

Takes the flags of the run itself. A checkpoint of GR00T N1.7's size is written with random weights
(6.3 GB in bfloat16, nothing is fetched), and the beginnings of two episodes go through features,
policy, critic, bundle and best-of-N on it. Printed are time, memory and disk of each stage, what
the whole dataset would take on such a machine, and of what does not fit, the flag that does.
``--size=nano`` takes seconds and shows that dataset and flags work; ``--base=DIR`` takes a
checkpoint that is there.
"""

import gc
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from deas_vla.bundle import open_bundle, write_bundle
from deas_vla.cli import make_output_dir, run
from deas_vla.critic.base import Critic
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import iter_frame_blocks
from deas_vla.errors import DeasError
from deas_vla.evaluation.timing import check_counts
from deas_vla.files import write_json
from deas_vla.guidance.configuration_guided import ValueGuidedConfig
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.config import VLAConfig, dtype_on, load_vla
from deas_vla.policies.groot.random_weights import SIZES, write_checkpoint
from deas_vla.policies.vla import VLA
from deas_vla.provenance import run_record
from deas_vla.training.checkpoints import CheckpointConfig
from deas_vla.training.config import STAGES, FinetuneConfig
from deas_vla.training.critic import train_critic
from deas_vla.training.datasets import load_dataset
from deas_vla.training.features import dataset_statistics, extract_features
from deas_vla.training.policy_inputs import CachedTokens, online_pictures
from deas_vla.training.preemption import Preemption
from deas_vla.training.projection import Costs, projection
from deas_vla.training.rehearsal import (
    Rehearsal,
    TimedRun,
    check_room,
    handful,
    record,
    rehearse_policy,
    tree_bytes,
)

_NONE = np.zeros(0, np.int64)  # no episode is held out


@dataclass
class RehearsalConfig(FinetuneConfig):
    """The run's own flags, and how it is rehearsed.

    Attributes:
        size: Of the checkpoint: ``full`` is GR00T N1.7's, ``nano`` the smallest that works.
        base: A checkpoint that is there, instead of random weights.
        device: ``cpu``, ``cuda``, or ``auto`` for the GPU where there is one.
        frames: Of each of two episodes; half as many again as critic.horizon, and 12 at least, when
            0.
        chunks: In an update of the policy; 2 on a CPU and what the run would take at once on a GPU
            when left out.
        updates: Of the policy.
        critic_updates: Of the critic, at the run's own batch.
        keep: Leave checkpoint, cache and bundle there.
    """

    size: str = "full"
    base: str | None = None
    device: str = "auto"
    frames: int = 0
    chunks: int | None = None
    updates: int = 3
    critic_updates: int = 50
    keep: bool = False
    output_dir: Path = Path("outputs/rehearsal")

    def prepare(self) -> torch.device:
        """Check it, settle what depends on the machine, and say where it runs."""
        if self.size not in ("full", "nano"):
            raise DeasError(f"size '{self.size}' is unknown: use full or nano")
        self.frames = self.frames or max(12, 3 * self.critic.horizon // 2)
        check_counts(self, "frames", "updates", "critic_updates")
        if self.frames <= self.critic.horizon:
            raise DeasError(
                f"frames {self.frames}: use more than critic.horizon={self.critic.horizon}, the "
                "length of a chunk"
            )
        self.check()
        if list(self.stages) != list(STAGES) or self.critic.algorithm == "qc":
            raise DeasError(
                f"stages {self.stages}, critic.algorithm={self.critic.algorithm}: all stages are "
                "rehearsed, with a critic that asks no policy; leave --stages and qc out"
            )
        gpu = torch.cuda.is_available() if self.device == "auto" else self.device == "cuda"
        device = Accelerator(cpu=not gpu).device
        # What a GPU would train in, here too: its memory is what is asked about.
        half = self.policy.dtype == "auto" and self.size == "full"
        self.policy.dtype = "bfloat16" if half else dtype_on(self.policy.dtype, str(device))
        if self.base is None:
            self.policy.embodiment = "new_embodiment"
        share = self.policy.batch_size // self.policy.gradient_accumulation_steps
        self.chunks = self.chunks or (share if device.type == "cuda" else 2)
        return device


def main(config: RehearsalConfig) -> None:
    started = time.time()
    device = config.prepare()
    table = load_dataset(config.dataset)
    few = handful(table.sources[0], config.frames)
    output = make_output_dir(config.output_dir)
    if config.base is None:
        check_room(output, config.size)
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    rehearsal = Rehearsal(device)
    print(
        f"{few.num_episodes} episodes, {few.num_frames} of {table.num_frames} frames, on {device}"
    )
    try:
        costs = rehearse(config, few, rehearsal, work)
    finally:
        if not config.keep:
            shutil.rmtree(work, ignore_errors=True)
    lines = projection(costs, table, config, output, device)
    print("\nThe whole:")
    for line in lines:
        print(f"  {line}")
    found: dict[str, Any] = {"costs": vars(costs), "projection": lines, "rows": record(rehearsal)}
    write_json(output / "results.json", run_record(config, started) | found)
    print(f"results in {output}")


def rehearse(config: RehearsalConfig, few: EpisodeTable, rehearsal: Rehearsal, work: Path) -> Costs:
    """All stages on a few frames, measured."""
    checkpoint, every = work / "checkpoint", np.arange(few.num_episodes)
    if config.base is None:
        with rehearsal.stage("checkpoint", left=checkpoint):
            write_checkpoint(checkpoint, SIZES[config.size], seed=config.seed)
        gc.collect()
    config.policy.path = config.base or str(checkpoint)
    dims = few.state.shape[1], few.action.shape[1]
    vla_config = config.policy.vla(few.image_keys, *dims)
    statistics, device = dataset_statistics(few, every), str(rehearsal.device)
    with rehearsal.stage("load"):
        vla = load_vla(vla_config, dataset_stats=statistics, device=device)
    config.check_fits(vla.spec)

    accelerator = Accelerator(cpu=rehearsal.device.type == "cpu")
    with rehearsal.stage("fingerprint"):
        vla.backbone_fingerprint()
    online = config.policy.tokens == "online" or config.needs_pictures is not None
    with rehearsal.stage("features", few.num_frames, "frame", left=work / "cache"):
        encodings = extract_features(
            vla, few, config.features, work / "cache", accelerator, keep_tokens=not online
        )
    inputs = online_pictures(config, vla, few) if online else CachedTokens(encodings)
    with Preemption(accelerator) as preemption:
        log = lambda *_: None  # noqa: E731
        told = TimedRun(work, accelerator, preemption, CheckpointConfig(), config.seed, log)
        chunk, kept, weights = rehearse_policy(
            rehearsal, told, vla, inputs, few, config.policy, config.updates, config.chunks or 1
        )
        critic_config = replace(config.critic, steps=config.critic_updates)
        with rehearsal.stage("critic", critic_config.steps, "update", left=work / "checkpoints"):
            critic = train_critic(few, encodings.pooled, every, _NONE, critic_config, told)
    accelerator.free_memory()  # it holds the network, too
    rehearse_robot(config, vla_config, vla, critic, few, rehearsal, work / "bundle")
    stages = rehearsal.stages
    return Costs(
        frame=(stages["features"].seconds - stages["fingerprint"].seconds) / few.num_frames,
        chunk=chunk,
        update=told.update_seconds(),
        decision=stages["decision"].each,
        candidates=config.guidance.candidates,
        token_bytes=0 if encodings.tokens is None else 2 * encodings.tokens.shape[1],
        pooled_bytes=2 * encodings.pooled.shape[1],
        checkpoint_bytes=tree_bytes(work / "checkpoints"),
        kept_bytes=kept,
        weight_bytes=weights,
    )


def rehearse_robot(
    config: RehearsalConfig,
    vla_config: VLAConfig,
    vla: VLA,
    critic: Critic,
    few: EpisodeTable,
    rehearsal: Rehearsal,
    bundle: Path,
) -> None:
    """The bundle, written and opened again, and decisions among N on an observation of the data."""
    guided = ValueGuidedConfig(
        vla=vla_config,
        pooling=config.features.pooling,
        candidates=config.guidance.candidates,
        selection=config.guidance.selection,
        speed=config.guidance.speed(),
        n_action_steps=config.critic.horizon,
        adapter=True,
        seed=config.seed,
        device=rehearsal.device.type,
    )
    statistics = dataset_statistics(few, np.arange(few.num_episodes))
    with rehearsal.stage("bundle", left=bundle):
        write_bundle(ValueGuidedPolicy(guided, vla, critic, statistics), bundle, {})
    vla.model = None  # the robot's machine holds one policy
    gc.collect()
    with rehearsal.stage("open"):
        policy = open_bundle(bundle, device=rehearsal.device.type)
    block = next(iter_frame_blocks(few.root, few, few.image_keys, 1))
    observation: dict[str, Any] = {
        key: torch.from_numpy(pictures).permute(0, 3, 1, 2)
        for key, pictures in block.images.items()
    }
    observation["observation.state"] = torch.from_numpy(few.state[:1])
    observation["task"] = [few.task(0)]
    for stage in ("first", "decision"):
        with rehearsal.stage(stage, 1, "decision"):
            policy.decide(observation, CandidateNoise([config.seed]), config.guidance.candidates)


if __name__ == "__main__":
    run(main, RehearsalConfig)
