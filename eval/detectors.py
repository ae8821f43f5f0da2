"""Measure "done", "stuck" and "out of data" as detectors, on recorded episodes.

python eval/detectors.py --bundle outputs/lift --dataset.root ROLLOUTS/dataset \\
  --output_dir outputs/lift/eval_detectors

The policy decides on each episode's pictures as the server would, and on the same pictures
disturbed: dark, noisy, in other colours, from a moved camera, or of another dataset. Thresholds
are set on one half of the episodes and measured on the other.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import make_output_dir, run
from deas_vla.data.episodes import check_dimensions
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.alarms import (
    detect_outside,
    detect_stuck,
    outside_for,
    stall_for,
)
from deas_vla.evaluation.offline.detection import Recorded, detect_done, threshold_for
from deas_vla.evaluation.offline.episodes import held_out_episodes
from deas_vla.evaluation.offline.report import text
from deas_vla.evaluation.offline.watching import Watched, disturbances, pictures_of, watch
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.files import write_json
from deas_vla.provenance import run_record
from deas_vla.training.config import DatasetConfig
from deas_vla.training.datasets import load_dataset

UNDISTURBED = "undisturbed"


@dataclass
class Source:
    """A LeRobotDataset v3.

    Attributes:
        repo_id: ``user/name``; fetched from the Hub where ``root`` is not given.
        root: Its directory.
    """

    repo_id: str = "local/dataset"
    root: str | None = None


@dataclass
class DetectorsConfig:
    """What to measure.

    Attributes:
        bundle: Bundle directory from recipes/finetune_groot.py.
        dataset: Episodes that the bundle was not trained on, successes and failures.
        other: Directory of a dataset of another scene, whose pictures are one more disturbance.
        most_episodes: Episodes at most, drawn at random.
        candidates: N of each decision; the bundle's own when 0.
        false: Share of ordinary episodes that may raise an alarm where a threshold is set.
        patience: Decisions in a row that "done" and "out of data" need.
        resamples: Of the bootstrap behind every interval.
        seed: Of the draw, the halves, the candidates' noise and the resamples.
        output_dir: Where results go; <bundle>/eval_detectors when left out.
    """

    bundle: Path = Path("outputs/lift")
    dataset: Source = field(default_factory=Source)
    other: Path | None = None
    most_episodes: int = 100
    candidates: int = 0
    false: float = 0.05
    patience: int = 2
    resamples: int = 1000
    seed: int = 0
    output_dir: Path | None = None

    def check(self) -> None:
        """DeasError for a value that has no meaning."""
        least = {"most_episodes": 4, "candidates": 0, "patience": 1, "resamples": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise DeasError(f"{name} {getattr(self, name)}: use {number} or more")
        if not 0 <= self.false < 1:
            raise DeasError(f"false {self.false}: use a share from 0 to below 1")


def main(config: DetectorsConfig) -> None:
    started = time.time()
    config.check()
    manifest = read_manifest(config.bundle)
    table = load_dataset(DatasetConfig(config.dataset.repo_id, config.dataset.root))
    generator = np.random.default_rng(config.seed)
    episodes = held_out_episodes(manifest, table)
    episodes = np.sort(generator.permutation(episodes)[: config.most_episodes])
    output = make_output_dir(config.output_dir or config.bundle / "eval_detectors")
    policy = open_bundle(config.bundle, device="cuda" if torch.cuda.is_available() else "cpu")
    spec = policy.vla.spec
    check_dimensions(table, spec.state_dim, spec.action_dim, spec.image_keys)

    changes = disturbances(config.seed)
    if config.other is not None:
        other = load_dataset(DatasetConfig("local/other", str(config.other)))
        changes["another dataset"] = pictures_of(other)
    candidates = config.candidates or policy.config.candidates
    seen = watch(policy, table, episodes, changes, candidates=candidates, seed=config.seed)
    chunk = -(-manifest["config"]["critic"]["horizon"] // policy.config.n_action_steps)
    rows, thresholds = measure(seen, config, chunk, generator)

    record = {
        **run_record(config, started),
        "data": {
            "repo_id": table.repo_id,
            "fingerprint": table.fingerprint,
            "episodes": table.episode_ids[episodes].tolist(),
            "successes": int(table.episode_success[episodes].sum()),
            "decisions": int(sum(len(values) for values in seen[UNDISTURBED].values)),
        },
        "thresholds": thresholds,
        "rows": rows,
    }
    write_json(output / "results.json", record)
    cells = [[row["metric"].removeprefix("detection."), text(row)] for row in rows]
    asked = [f"{name}: {value:.4g}" for name, value in thresholds.items()]
    body = f"<p>Thresholds: {', '.join(asked)}</p>" + html_table(["detector", "value"], cells)
    write_page("Done, stuck, out of data", body, output / "report.html")
    print("\n".join(f"{row['metric']:48s} {text(row)}" for row in rows))
    print(f"thresholds {', '.join(asked)}\nresults in {output}")


def measure(
    seen: dict[str, Watched], config: DetectorsConfig, chunk: int, generator: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of ``results.json``, and the thresholds that the first half set.

    Args:
        seen: By disturbance.
        config: The flags.
        chunk: The critic's chunk in decisions, which is how near to being solved counts as it.
        generator: Of halves and resamples.

    Raises:
        DeasError: A half without a success or without a failure.
    """
    ordinary = seen[UNDISTURBED]
    outcome = ordinary.solved_at >= 0
    halves = [np.array([], dtype=np.int64)] * 2
    for kind in (True, False):  # each half has its share of both outcomes
        of_kind = generator.permutation(np.flatnonzero(outcome == kind))
        if len(of_kind) < 2:
            raise DeasError(
                f"{len(of_kind)} {'success' if kind else 'failure'} among the episodes: two are "
                "the least, one to set thresholds and one to measure"
            )
        parts = np.array_split(of_kind, 2)
        halves = [np.concatenate(pair) for pair in zip(halves, parts, strict=True)]
    setting, measured = (ordinary.part(np.sort(half)) for half in halves)
    at, patience = np.sort(halves[1]), config.patience
    recorded = [Recorded(half.values, half.solved_at) for half in (setting, measured)]
    thresholds = {
        "done": threshold_for(recorded[0], false=config.false, patience=patience),
        "stuck_after": float(stall_for(setting, false=config.false)),
        "far": outside_for(setting.distance, false=config.false, patience=patience),
        "novel": outside_for(setting.disagreement, false=config.false, patience=patience),
    }
    rest = (generator, config.resamples)
    done = detect_done(recorded[1], thresholds["done"], *rest, margin=chunk, patience=patience)
    rows = done.rows()
    rows += detect_stuck(measured, int(thresholds["stuck_after"]), *rest).rows("stuck")
    for name, watched in seen.items():
        if name == UNDISTURBED:
            continue
        disturbed = watched.part(at)
        for signal, threshold in (("distance", "far"), ("disagreement", "novel")):
            found = detect_outside(
                getattr(measured, signal),
                getattr(disturbed, signal),
                thresholds[threshold],
                *rest,
                patience=patience,
            )
            rows += found.rows(f"out_of_data.{signal}.{name.replace(' ', '_')}")
    return rows, thresholds


if __name__ == "__main__":
    run(main, DetectorsConfig)
