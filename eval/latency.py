"""Milliseconds of a decision by number of candidates, fused against replication.

python eval/latency.py --size=nano --candidates='[1,2,4,8,16,32,64]' --device=cpu

Three ways, all in turn in every round: the fused head that guidance uses; LeRobot's own head on N
copies of one encoding; and N copies of the observation through backbone and head. Of the two
replicating ways, and of the backbone, nothing is done N times that need not be: pictures are
preprocessed once. One candidate is the base policy, without a critic.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deas_vla.cli import make_output_dir, run
from deas_vla.errors import DeasError
from deas_vla.evaluation.counting import count
from deas_vla.evaluation.decisions import COPIES, FUSED, NAIVE, STAGES, StagedDecisions
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page
from deas_vla.evaluation.timing import Arm, interleave, timing_row
from deas_vla.files import write_json
from deas_vla.policies.config import VLAConfig, load_vla
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.groot.flow import Flow
from deas_vla.policies.groot.random_weights import SIZES, head_on_meta, random_vla
from deas_vla.provenance import provenance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NANO = "deas_vla/assets/groot_nano"


@dataclass
class LatencyConfig:
    """What to time.

    Attributes:
        size: ``nano``, the bundled checkpoint; ``medium``, a backbone that costs ten heads; or
            ``full``, GR00T N1.7's own shape. The last two have random weights.
        candidates: Numbers of candidates.
        naive: Those that replication is timed with too.
        device: ``cpu`` or ``cuda``.
        dtype: Of the weights: float32 or bfloat16; bfloat16 at full size when left out.
        batch: Observations in a call.
        compile: Time the fused head compiled, for one candidate as well.
        rounds: Timed rounds, after one to warm up.
        counting: Also count operations and bytes; takes a few more decisions.
        count_only: Instead of timing, count what the head of ``medium`` or ``full`` computes, reads
            and writes in bfloat16 for each number of candidates, without weights or a device.
        threads: Of PyTorch on a CPU.
        output_dir: Where results go; outputs/latency/<size> when left out.
    """

    size: str = "nano"
    candidates: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    naive: list[int] = field(default_factory=lambda: [16])
    device: str = "cpu"
    dtype: str = ""
    batch: int = 1
    compile: bool = False
    rounds: int = 20
    counting: bool = True
    count_only: bool = False
    threads: int = 2
    output_dir: Path | None = None


def main(config: LatencyConfig) -> None:
    started = time.time()
    check(config)
    output = make_output_dir(config.output_dir or Path("outputs/latency") / config.size)
    torch.set_num_threads(config.threads)
    if config.count_only:
        record = {**provenance(), "config": plain(config), "counted": count_heads(config)}
        write_json(output / "results.json", record)
        print(f"results in {output}")
        return
    vla = open_vla(config)
    own = GrootVLA(vla.model, vla.preprocessor, vla.postprocessor, vla.spec, vla.name_or_path)
    own.flow = Flow(fuse=False)
    if config.compile:
        vla.compile()
    decider = StagedDecisions(vla, own, config.batch)
    arms: dict[tuple[str, int], Callable[[int], object]] = {}
    for n in sorted({*config.candidates, 1}):
        ways = [FUSED, COPIES, NAIVE] if n in config.naive else [FUSED, COPIES]
        arms |= {(way, n): partial(decider.decide, way, n) for way in (ways if n > 1 else [FUSED])}
    named = {f"{way} {n}": Arm(call) for (way, n), call in arms.items()}
    seconds = interleave(named, config.rounds)
    base = seconds[f"{FUSED} 1"]
    rows = []
    for way, n in arms:
        parts = np.median(decider.milliseconds[way, n][1:], axis=0)
        row = timing_row(way, n, seconds[f"{way} {n}"], "base policy", base)
        row["candidates"] = row.pop("size")
        row["times_base"] = float(np.median(seconds[f"{way} {n}"] / base))
        faster = seconds.get(f"{NAIVE} {n}") if way == FUSED else None
        row["faster_than_naive"] = (
            None if faster is None else float(np.median(faster / seconds[f"{way} {n}"]))
        )
        row |= {"cpu_ms": float(parts[-1]), "peak_mb": decider.peak_mb(way, n)}
        row["split_ms"] = dict(zip(STAGES, parts.tolist(), strict=False))
        rows.append(row)
    record = {
        "config": plain(config),
        **provenance(),
        "weights_mb": sum(p.numel() * p.element_size() for p in vla.model.parameters()) / 1e6,
        "wall_seconds": time.time() - started,
        "rows": rows,
        "counted": counted(decider, config) if config.counting else [],
    }
    write_json(output / "results.json", record)
    draw(rows, output / "latency.png")
    header, cells = table(rows)
    body = html_table(header, cells) + html_picture(output / "latency.png", "latency by N")
    write_page(f"Milliseconds of a decision, {config.size}", body, output / "report.html")
    for line in [header, *cells]:
        print("  ".join(cell.rjust(13) for cell in line))
    print(f"results in {output}")


def check(config: LatencyConfig) -> None:
    if config.size not in ("nano", *SIZES):
        raise DeasError(f"size '{config.size}' is unknown: use nano, {' or '.join(SIZES)}")
    if config.dtype and config.dtype not in DTYPES:
        raise DeasError(f"dtype '{config.dtype}' is unknown: use {' or '.join(DTYPES)}")
    if min(*config.candidates, config.batch, config.rounds) < 1:
        raise DeasError(
            f"candidates {config.candidates}, batch {config.batch}, rounds {config.rounds}: use 1 "
            "or more of each"
        )


def open_vla(config: LatencyConfig) -> GrootVLA:
    dtype = config.dtype or ("bfloat16" if config.size == "full" else "float32")
    if config.size != "nano":
        return random_vla(SIZES[config.size], device=config.device, dtype=DTYPES[dtype])
    keys = [f"observation.images.{name}" for name in ("agentview", "eye_in_hand")]
    vla: Any = load_vla(
        VLAConfig(NANO, embodiment="robosuite_panda", image_keys=keys, state_dim=9, action_dim=7,
                  dtype=dtype),
        device=config.device,
    )  # fmt: skip
    return vla


def counted(decider: StagedDecisions, config: LatencyConfig) -> list[dict[str, Any]]:
    """Operations and bytes of a whole decision: of one candidate, and of several each way."""
    most = max([n for n in config.naive if n in config.candidates] or config.candidates)
    rows = [{"what": FUSED, "candidates": 1, **asdict(count(lambda: decider.decide(FUSED, 1)))}]
    for way in (FUSED, COPIES, NAIVE) if most in config.naive else (FUSED, COPIES):
        found = count(partial(decider.decide, way, most))
        rows.append({"what": way, "candidates": most, **asdict(found)})
    return rows


def count_heads(config: LatencyConfig) -> list[dict[str, Any]]:
    """Operations and bytes of one call of the head alone, with 16 tokens of text."""
    if config.size not in SIZES:
        raise DeasError(f"size '{config.size}' is not counted: use {' or '.join(SIZES)}")
    size = SIZES[config.size]
    tokens = size.cameras * (size.pixels // 32) ** 2 + 16
    head, fused, copies = head_on_meta(size, tokens)
    print(f"weights {sum(p.numel() for p in head.parameters()) / 1e6:.0f} M, {tokens} tokens")
    print("  ".join(name.rjust(19) for name in ("N", "way", "GFLOP", "GB moved", "MB at the peak")))
    rows = []
    for n in sorted({*config.candidates, 1}):
        for way, call in ((FUSED, fused), (COPIES, copies)):
            if n == 1 and way == FUSED:
                continue  # one candidate is LeRobot's own path
            found = count(partial(call, n))
            rows.append({"what": way, "candidates": n, **asdict(found)})
            cells = [n, way, f"{found.operations / 1e9:.4g}", f"{found.traffic / 1e9:.4g}"]
            print("  ".join(str(c).rjust(19) for c in [*cells, f"{found.peak / 1e6:.4g}"]))
    return rows


def plain(config: LatencyConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return values


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["way", "N", "median ms", "p95 ms", "CPU ms", "of base", "naive/this", *STAGES]
    cells = [
        [row["what"][:13], str(row["candidates"]), f"{row['median_ms']:.4g}",
         f"{row['p95_ms']:.4g}", f"{row['cpu_ms']:.4g}", f"{row['times_base']:.2f}",
         "" if row["faster_than_naive"] is None else f"{row['faster_than_naive']:.1f}",
         *[f"{row['split_ms'][stage]:.3g}" for stage in STAGES]]
        for row in rows
    ]  # fmt: skip
    return header, cells


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    for way in (FUSED, COPIES, NAIVE):
        line = [(r["candidates"], r["times_base"]) for r in rows if r["what"] == way]
        if line:
            axes.plot(*zip(*line, strict=True), "o-", label=way)
    axes.set(xlabel="candidates N", ylabel="times the base policy", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, LatencyConfig)
