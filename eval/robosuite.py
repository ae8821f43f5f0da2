"""Evaluate a bundle on robosuite's Lift: best-of-N against the base policy, paired.

python eval/robosuite.py --bundle outputs/lift --candidates='[1,16]' --episodes=100 --seed=0
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.cli import run
from deas_vla.evaluation.lift import lift_run, lift_trials, open_on_lift
from deas_vla.guidance.config import SelectionOverride
from deas_vla.guidance.speed import SpeedOverride

# Every simulator process imports this file: what needs LeRobot (12 s) is imported in main().


@dataclass
class EvalConfig:
    """What to evaluate.

    Attributes:
        bundle: Bundle directory from recipes/finetune_groot.py.
        candidates: Numbers of candidates to compare, over the same episodes.
        episodes: Episodes for each.
        seed: Of the set of episodes; every seed has its own episodes and noise.
        selection: How one of the candidates is chosen, where not as the bundle says.
        guidance: Compilation, latency budget and warm starts, likewise.
        n_action_steps: Steps executed of a chunk; the bundle's own number when 0.
        workers: Simulator processes, of each process of `accelerate launch`.
        batch_size: Observations per policy call; 1 on a CPU and 8 on a GPU when 0.
        video: Write mp4s of a success and of a failure with the most candidates.
        output_dir: Where results go, and where an interrupted run goes on; <bundle>/eval when left
            out.
    """

    bundle: Path = Path("outputs/lift")
    candidates: list[int] = field(default_factory=lambda: [1, 16])
    episodes: int = 100
    seed: int = 0
    selection: SelectionOverride = field(default_factory=SelectionOverride)
    guidance: SpeedOverride = field(default_factory=SpeedOverride)
    n_action_steps: int = 0
    workers: int = 2
    batch_size: int = 0
    video: bool = True
    output_dir: Path | None = None


def main(config: EvalConfig) -> None:
    from deas_vla.evaluation.engine.launch import Launch

    started = time.time()
    launch = Launch()
    trials = lift_trials([config.seed], config.episodes, config.candidates)
    policy = open_on_lift(
        config.bundle, launch.device, config.selection, config.guidance, config.n_action_steps
    )
    output = config.output_dir or config.bundle / "eval"
    claimed = lift_run(
        launch, policy, output, trials, workers=config.workers, batch_size=config.batch_size
    )
    claimed.evaluate("Best-of-N on Lift", config, int(config.video), started)


if __name__ == "__main__":
    run(main, EvalConfig)
