"""How fast are lite kitchens, and how much faster than RoboCasa's own?

python eval/bench_kitchens.py --tasks='[CloseDrawer,CoffeeSetupMug]' --output_dir=OUT

Three things are timed: a reset (a new kitchen each time), a control step, and one picture. Where
RoboCasa's assets are, both kinds of kitchens take turns, so that whatever else the machine does
hits both; elsewhere lite kitchens are timed alone. On a busy machine ``cpu_ms`` says more than
``median_ms``: the processor time of one call, all threads together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.gl import check_gl
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.tasks import choose_assets, resolve_tasks
from deas_vla.evaluation.results.pages import html_table, write_page
from deas_vla.evaluation.timing import Arm, interleave, timing_row
from deas_vla.files import write_json
from deas_vla.provenance import run_record

CAMERA = "robot0_agentview_left"
RESET, STEP, PICTURE = "reset", "control step", "picture"
Cpu = dict[tuple[str, str], list[float]]  # of a kind of timing and of kitchens: seconds a call


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        tasks: Tasks, in turn; a round is one episode of one of them.
        rounds: Episodes of each kind of kitchens.
        steps: Control steps and pictures of an episode.
        image_size: Height and width of a picture, pixels.
        layouts: RoboCasa's layouts to draw from; a few keep its file cache warm.
        output_dir: Where results.json and report.html go.
    """

    tasks: list[str] = field(default_factory=lambda: ["CloseDrawer", "CoffeeSetupMug"])
    rounds: int = 6
    steps: int = 40
    image_size: int = 128
    layouts: list[int] = field(default_factory=list)
    output_dir: Path = Path("outputs/bench_kitchens")

    def kitchens(self, assets: str) -> list[KitchenEnv]:
        layouts = tuple(self.layouts) if assets == "robocasa" else ()
        return [
            KitchenEnv(
                KitchenConfig(
                    task=task,
                    assets=assets,
                    layouts=layouts,
                    cameras=(CAMERA,),
                    image_size=self.image_size,
                )
            )
            for task in self.tasks
        ]


def arms(kitchens: dict[str, list[KitchenEnv]], steps: int, cpu: Cpu) -> dict[str, dict[str, Arm]]:
    """What to time, by kind of kitchens; steps and pictures are of the last reset's episode."""
    rng = np.random.default_rng(0)

    def at(
        assets: str, what: str, act: Callable[[KitchenEnv, int], object], units: int
    ) -> Callable[[int], object]:
        def call(turn: int) -> None:
            env = kitchens[assets][turn % len(kitchens[assets])]
            began = time.process_time()
            act(env, turn)
            cpu.setdefault((what, assets), []).append((time.process_time() - began) / units)

        return call

    def step(env: KitchenEnv, turn: int) -> None:
        for _ in range(steps):
            env.step(rng.uniform(-0.3, 0.3, 12).astype(np.float32))

    def look(env: KitchenEnv, turn: int) -> None:
        for _ in range(steps):
            env.observe()

    def first_look(env: KitchenEnv, turn: int) -> None:
        env.reset(turn)
        env.observe()  # so that no picture pays for starting the renderer

    timed: dict[str, dict[str, Arm]] = {RESET: {}, STEP: {}, PICTURE: {}}
    for assets in kitchens:
        new = at(assets, RESET, lambda env, turn: env.reset(1000 + turn), 1)
        timed[RESET][assets] = Arm(new)
        timed[STEP][assets] = Arm(at(assets, STEP, step, steps), lambda turn: steps)
        timed[PICTURE][assets] = Arm(at(assets, PICTURE, look, steps), lambda turn: steps)
        for turn, env in enumerate(kitchens[assets]):
            first_look(env, turn)
    return timed


def main(config: BenchConfig) -> None:
    started = time.time()
    config.tasks = resolve_tasks(config.tasks)
    check_gl()
    output = make_output_dir(config.output_dir)
    kinds = ["lite"]
    if choose_assets("auto", config.tasks) == "robocasa":
        kinds.append("robocasa")
    kitchens = {assets: config.kitchens(assets) for assets in kinds}
    rows: list[dict[str, Any]] = []
    cpu: Cpu = {}
    try:
        timed = arms(kitchens, config.steps, cpu)
        for what in (STEP, PICTURE, RESET):  # resets last: they take the renderer away
            found = interleave(timed[what], config.rounds, label=what)
            size = config.image_size if what == PICTURE else 0
            base = f"{what}, robocasa" if "robocasa" in found else None
            for assets, seconds in found.items():
                row = timing_row(f"{what}, {assets}", size, seconds, base, found.get("robocasa"))
                spent = 1000 * float(np.median(cpu[what, assets][1:]))  # the first warms up
                rows.append({**row, "assets": assets, "cpu_ms": spent})
    finally:
        for env in [env for envs in kitchens.values() for env in envs]:
            env.close()
    record = {
        **run_record(config, started),
        "rows": rows,
    }
    write_json(output / "results.json", record)
    table = [[row["what"], f"{row['median_ms']:.1f}", f"{row['p95_ms']:.1f}",
              f"{row['cpu_ms']:.1f}", f"{row['ratio']:.2f}" if row["ratio"] else "-"]
             for row in rows]  # fmt: skip
    header = ["", "ms (median)", "ms (95 %)", "CPU ms", "times faster than RoboCasa's"]
    facts = (
        f"<p>{', '.join(config.tasks)}; pictures of {config.image_size} pixels; "
        f"{config.rounds} rounds of {config.steps} steps.</p>"
    )
    write_page("Lite kitchens beside RoboCasa's", facts + html_table(header, table),
               output / "report.html")  # fmt: skip
    for line in [header, *table]:
        print(" | ".join(line))
    print(f"results in {output}")


if __name__ == "__main__":
    run(main, BenchConfig)
