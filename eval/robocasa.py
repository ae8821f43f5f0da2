"""Evaluate a policy in RoboCasa's kitchens: best-of-N against the base policy, paired.

python eval/robocasa.py --bundle=DIR --tasks='[CoffeeSetupMug,TurnOffStove]' \\
  --candidates='[1,16]' --episodes=50 --seeds='[0,1,2]' --split=target --output_dir=OUT

The same command goes on where an earlier one stopped; `accelerate launch eval/robocasa.py` shares
the episodes among processes and machines.
"""

import sys
from pathlib import Path

# This file must not stand in the way of the package it is named after.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402

from deas_vla.cli import make_output_dir, run  # noqa: E402
from deas_vla.sim import journal, results  # noqa: E402
from deas_vla.sim.kitchen_rollouts import KitchenRolloutConfig  # noqa: E402
from deas_vla.sim.video import film  # noqa: E402
from deas_vla.sim.workers import SimulatorPool  # noqa: E402

# Every simulator process imports this file: what needs LeRobot (12 s) is imported in main().


@dataclass
class EvalConfig(KitchenRolloutConfig):
    """What to evaluate.

    Attributes:
        videos: Films of as many successes and as many failures of each task, with the most
            candidates.
    """

    videos: int = 1


def main(config: EvalConfig) -> None:
    started = time.time()
    specs = config.check()

    from deas_vla.sim.agents import PolicyPlanner
    from deas_vla.sim.launch import Launch

    launch = Launch()
    policy = config.open_policy(specs, launch.device)
    trials = config.trials(specs, has_critic=policy.critic is not None)
    planner = PolicyPlanner(policy, config.batch_size or None)
    output = make_output_dir(config.output_dir)
    identity = journal.identity(policy, config.kitchen(specs[0].name))
    launch.claim(output, identity)

    with SimulatorPool(config.workers, config.make_env, planner) as pool:
        journal.run_missing(pool, trials, output, launch.rank, launch.world)
        launch.wait()
        if launch.rank > 0:
            return
        outcomes = journal.merge(output, trials)
        films = film(pool, outcomes, output / "videos", config.videos)
    record = results.write_all(
        "Best-of-N in RoboCasa's kitchens", config, identity, outcomes, films, output, started
    )
    print(results.text_table(record["rows"]))
    print(f"results in {output}")


if __name__ == "__main__":
    run(main, EvalConfig)
