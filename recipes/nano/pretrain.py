"""Pretrain the nano GR00T: ground the backbone in its scenes, then train the flow head on it.

python recipes/nano/pretrain.py --data=outputs/nano_data --output=outputs/nano

Frames of both robots where there are both: each has projectors of its own, all else is shared.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import all_pictures_at_once
from build import save_checkpoint
from flow import imitate, imitated
from frames import Frames
from grounding import ground, missed
from robots import ROBOTS
from sources import Chunks, Source
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deas_vla.cli import run
from deas_vla.errors import DeasError


@dataclass
class PretrainConfig:
    """Two phases.

    Attributes:
        init: Untrained checkpoint from build.py, made with the same frames.
        data: Directory of `make_lift_data.py` and `make_kitchen_data.py`.
        output: Where the trained checkpoint goes, bfloat16.
        validation: Like ``data``, of kitchens to choose settings in (``make_kitchen_data.py
            --split=validation``); grounding's misses there are reported, nothing is learned there.
        grounding_steps: Backbone updates: where is what the instruction names? None where 0.
        flow_steps: Action-head updates on the then frozen backbone's tokens. None where 0.
        kitchens: Share of the updates, and of each batch of the second phase, that is of kitchens.
        grounding_batch: Questions of an update of the backbone, of one robot.
        at_work: Share of them that is of an expert's frames.
        batch_size: Chunks of an update of the action head.
        lr: Peak learning rate of both phases, one-cycle.
        mixed_precision: ``bf16``, or ``no``: what the updates are computed in.
        holdout: Share of the episodes kept for the reported errors.
        seed: Of everything random.
    """

    init: Path = Path("outputs/nano_init")
    data: Path = Path("outputs/nano_data")
    output: Path = Path("outputs/nano")
    validation: Path | None = None
    grounding_steps: int = 6000
    flow_steps: int = 4500
    kitchens: float = 0.75
    grounding_batch: int = 32
    at_work: float = 0.7
    batch_size: int = 64
    lr: float = 1e-3
    mixed_precision: str = "bf16"
    holdout: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("bf16", "no"):
            raise DeasError(f"mixed_precision '{self.mixed_precision}' is unknown: use bf16 or no")

    def shares(self, sources: list[Source]) -> list[float]:
        """What of the updates each source gets."""
        if len(sources) == 1:
            return [1.0]
        return [self.kitchens if s.robot.folder == "kitchens" else 1 - self.kitchens
                for s in sources]  # fmt: skip


@contextmanager
def fast(mixed_precision: str) -> Iterator[None]:
    """Products in ``mixed_precision``, and attention without the fused kernel.

    On CPUs its backward pass is slower than plain products are at these sizes. Weights are cast
    anew each time: autocast would keep its first copies for as long as the context lasts, and
    updates would change nothing.
    """
    enabled = mixed_precision == "bf16"
    lower = torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)
    with lower, sdpa_kernel(SDPBackend.MATH):
        yield


def one_cycle(parameters: list[nn.Parameter], lr: float, steps: int):
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1 if steps > 20 else 0.3
    )


def grounded(model, sources: list[Source], config: PretrainConfig) -> dict[str, dict[str, Any]]:
    """The first phase; returns what it misses of each robot's held-out episodes, and elsewhere."""

    def drawn() -> Iterator[tuple[int, Tensor]]:
        shares = torch.tensor(config.shares(sources))
        while True:
            chosen = int(torch.multinomial(shares, 1))
            yield chosen, sources[chosen].drawn(config.grounding_batch, config.at_work)

    schedule = partial(one_cycle, lr=config.lr, steps=config.grounding_steps)
    answers = ground(model, sources, drawn(), schedule, config.grounding_steps)
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        found[source.robot.tag] = dict(missed(model, answers, source))
        folder = config.validation and config.validation / source.robot.folder
        if folder and folder.is_dir():
            there = missed(model, answers, source.elsewhere(Frames.load(folder)))
            found[source.robot.tag]["validation"] = there
    return found


def after(
    earlier: Path, report: dict[str, dict[str, Any]], spent: dict[str, float]
) -> dict[str, Any]:
    """The record of all pretraining so far: what was spent in all, and figures that still hold.

    A backbone that was left as it is keeps its figures.
    """
    before = json.loads(earlier.read_text()) if earlier.is_file() else {}
    if not spent["grounding_steps"]:
        report = {tag: before.get(tag, {}) | found for tag, found in report.items()}
    return report | {name: before.get(name, 0) + more for name, more in spent.items()}


def main(config: PretrainConfig) -> None:
    started = time.time()
    torch.manual_seed(config.seed)
    seen = [robot for robot in ROBOTS if (config.data / robot.folder).is_dir()]
    if not seen:
        raise DeasError(f"no frames in {config.data}: run recipes/nano/make_*_data.py first")
    sources = Source.load_all(seen, config.init, config.data, config.holdout, config.seed)
    model = sources[0].vla.model
    all_pictures_at_once(model)
    report: dict[str, dict[str, Any]] = {source.robot.tag: {} for source in sources}
    if config.grounding_steps:
        with fast(config.mixed_precision):
            report = grounded(model, sources, config)
        print(f"grounding, held out: {report}", flush=True)
    if config.flow_steps:
        every = [Chunks(model, source) for source in sources]
        with fast(config.mixed_precision):
            sizes = [round(config.batch_size * share) for share in config.shares(sources)]
            schedule = partial(one_cycle, lr=config.lr, steps=config.flow_steps)
            imitate(model, sources, every, sizes, schedule, config.flow_steps)
        found = {s.robot.tag: imitated(s, c) for s, c in zip(sources, every, strict=True)}
        print(f"flow matching: {found}")
        report = {tag: figures | found[tag] for tag, figures in report.items()}
    shutil.copytree(config.init, config.output, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))  # fmt: skip
    model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    save_checkpoint(model, config.output)
    for source in sources:
        report[source.robot.tag]["frames"] = len(source.frames.state)
    spent = {
        "grounding_steps": config.grounding_steps,
        "flow_steps": config.flow_steps,
        "wall_minutes": (time.time() - started) / 60,
    }
    record = after(config.init / "pretraining.json", report, spent)
    (config.output / "pretraining.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


if __name__ == "__main__":
    run(main, PretrainConfig)
