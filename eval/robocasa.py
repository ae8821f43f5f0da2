"""Evaluate a policy in RoboCasa's kitchens: best-of-N against the base policy, paired.

python eval/robocasa.py --bundle=DIR --tasks='[CoffeeSetupMug,TurnOffStove]' \\
  --candidates='[1,16]' --episodes=50 --seeds='[0,1,2]' --split=target --output_dir=OUT

The same command goes on where an earlier one stopped; `accelerate launch eval/robocasa.py` shares
the episodes among processes and machines.
"""

import time
from dataclasses import dataclass

from deas_vla.cli import make_output_dir, run
from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.workers import SimulatorPool
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.evaluation.results.films import film
from deas_vla.evaluation.results.report import write_all
from deas_vla.evaluation.results.tables import text_table

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

    from deas_vla.evaluation.engine.agents import PolicyPlanner
    from deas_vla.evaluation.engine.launch import Launch

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
    record = write_all(
        f"Best-of-N {config.where()}", config, identity, outcomes, films, output, started
    )
    print(f"measured {config.where()}")
    print(text_table(record["rows"]))
    print(f"results in {output}")


if __name__ == "__main__":
    run(main, EvalConfig)
