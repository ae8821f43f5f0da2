"""Evaluate a policy in RoboCasa's kitchens: best-of-N against the base policy, paired.

python eval/robocasa.py --bundle=DIR --tasks='[CoffeeSetupMug,TurnOffStove]' \\
  --candidates='[1,16]' --episodes=50 --seeds='[0,1,2]' --split=target --output_dir=OUT

The same command goes on where an earlier one stopped; `accelerate launch eval/robocasa.py` shares
the episodes among processes and machines.
"""

import time
from dataclasses import dataclass

from deas_vla.cli import run
from deas_vla.evaluation.kitchens import KitchenRolloutConfig

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

    from deas_vla.evaluation.engine.launch import Launch

    claimed = config.claim(Launch(), specs)
    claimed.evaluate(f"Best-of-N {config.where()}", config, config.videos, started)


if __name__ == "__main__":
    run(main, EvalConfig)
