"""How much faster are rollouts that render only where the policy looks?

python eval/bench_rendering.py --task=CloseDrawer --episodes=4 --output_dir=outputs/bench_rendering

A kitchen, three cameras, chunks of 16 steps. Each episode runs twice, with the cameras rendered at
planning steps and at every step. The stand-in for a policy draws each chunk from the pixels it was
shown, so one differing pixel would send the two runs apart: actions and outcomes are compared.
"""

import hashlib
import multiprocessing
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.env import SimEnv
from deas_vla.envs.gl import check_gl
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.tasks import choose_assets, resolve_tasks
from deas_vla.envs.rollout import Plan, rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.files import write_json
from deas_vla.provenance import run_record

PLANNED, EACH = "render at planning steps", "render at each step"


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        task: RoboCasa task.
        assets: Whose kitchens: ``robocasa``, ``lite`` or ``auto``.
        episodes: Episodes, each run both ways.
        steps: Time limit of an episode.
        chunk: Steps between two looks.
        image_size: Height and width of the three pictures, pixels.
        workers: Simulator processes at the same time.
        output_dir: Where results.json and report.html go.
    """

    task: str = "CloseDrawer"
    assets: str = "auto"
    episodes: int = 4
    steps: int = 96
    chunk: int = 16
    image_size: int = 128
    workers: int = 2
    output_dir: Path = Path("outputs/bench_rendering")

    def kitchen(self) -> KitchenConfig:
        return KitchenConfig(
            task=self.task, assets=self.assets, image_size=self.image_size, horizon=self.steps
        )


class PixelAgent:
    """Small motions that depend on every pixel."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def reset(self, seed: int) -> None:
        self.started = time.perf_counter()  # `rollout` has just reset the simulator

    def plan(self, env: SimEnv) -> Plan:
        pictures = b"".join(image.tobytes() for image in env.observe().images.values())
        rng = np.random.default_rng(zlib.crc32(pictures))
        actions = rng.normal(0, 0.3, (self.chunk, len(env.spec.action_names)))
        return Plan(np.clip(actions, -1, 1).astype(np.float32))


def measure(config: BenchConfig, seed: int) -> dict[str, dict[str, Any]]:
    """Both ways of running one episode: seconds per step, actions and outcome."""
    env, agent = KitchenEnv(config.kitchen()), PixelAgent(config.chunk)
    found = {}
    for way in (PLANNED, EACH):
        # The agent renders the planning steps itself.
        record = (lambda step: step % config.chunk > 0) if way == EACH else None
        episode = rollout(env, agent, seed, record_images=record)
        seconds = time.perf_counter() - agent.started
        digest = hashlib.sha256(episode.actions.tobytes()).hexdigest()
        found[way] = {
            "seconds": seconds,
            "steps": episode.steps,
            "decided": (digest, episode.success, episode.steps),
        }
    env.close()
    return found


def main(config: BenchConfig) -> None:
    started = time.time()
    (config.task,) = resolve_tasks([config.task])
    config.assets = choose_assets(config.assets, [config.task])
    check_gl()
    output = make_output_dir(config.output_dir)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(config.workers) as pool:
        ends = pool.imap_unordered(partial(measure, config), range(config.episodes))
        found = list(tqdm(ends, total=config.episodes, desc="episodes"))
    different = sum(each[PLANNED]["decided"] != each[EACH]["decided"] for each in found)
    if different:
        raise DeasError(f"{different} of {len(found)} episodes differ when rendered: do not trust")

    rows, steps_per_second = [], {}
    for way in (EACH, PLANNED):
        ms = [1000 * each[way]["seconds"] / each[way]["steps"] for each in found]
        steps = sum(each[way]["steps"] for each in found)
        steps_per_second[way] = steps / sum(each[way]["seconds"] for each in found)
        rows.append(
            {
                "what": way,
                "size": config.image_size,
                "median_ms": float(np.median(ms)),
                "p95_ms": float(np.percentile(ms, 95)),
                "steps_per_second": steps_per_second[way],
                "ratio_to": EACH,
                "ratio": steps_per_second[way] / steps_per_second[EACH],
            }
        )
    record = {
        **run_record(config, started),
        "identical_episodes": len(found),
        "rows": rows,
    }
    write_json(output / "results.json", record)
    table = [
        [row["what"], f"{row['median_ms']:.1f}", f"{row['steps_per_second']:.1f}",
         f"{row['ratio']:.2f}"]
        for row in rows
    ]  # fmt: skip
    header = ["", "ms a step (median)", "steps a second, each process", "ratio"]
    facts = (
        f"<p>{config.task}, 3 cameras of {config.image_size} pixels, chunks of {config.chunk} "
        f"steps, {config.workers} processes; actions and outcomes of all {len(found)} episodes "
        "identical.</p>"
    )
    write_page("Rendering where the policy looks", facts + html_table(header, table),
               output / "report.html")  # fmt: skip
    for line in [header, *table]:
        print(" | ".join(line))
    print(f"results in {output}")


if __name__ == "__main__":
    run(main, BenchConfig)
