"""Train a bundle's critic anew, on its demonstrations and on rollouts that are there already.

python recipes/retrain.py --bundle=outputs/mine --rollouts='[robot_1,robot_2]' \\
  --output_dir=outputs/mine_2

Rollouts are LeRobotDatasets of the bundle's robot with `next.success`: what a robot recorded while
the policy ran, or what recipes/collect_rollouts.py left. The policy stays what it is, and the
settings are the bundle's; with --clone=true the policy gets a new adapter, of all successes. Only
frames that are new go through the backbone. It leaves OUTPUT/bundle, a bundle like any other; the
next time give the first bundle again, and all rollouts so far. recipes/improve.py does the same
after collecting in simulation.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.bundle import read_manifest
from deas_vla.cli import make_output_dir, run
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.launch import Launch
from deas_vla.training.features import cache_of_run
from deas_vla.training.rounds import Retraining, check_retraining, is_retrained, retrain


@dataclass
class RetrainConfig:
    """What to train on what.

    Attributes:
        bundle: Where to start: policy, critic's settings and demonstrations.
        rollouts: Directories of LeRobotDatasets, all that are to be learned from.
        holdout: Share of the rollouts kept out of training.
        seed: Of the hold-out and of the critic.
        clone: Train a new adapter as well, on all successful episodes.
        policy_steps: The adapter's updates; the bundle's own number when 0.
        critic_steps: The critic's updates; the bundle's own number when 0.
        output_dir: Where the bundle goes, and where an interrupted run goes on.
    """

    bundle: Path = Path("outputs/mine")
    rollouts: list[Path] = field(default_factory=list)
    holdout: float = 0.1
    seed: int = 0
    clone: bool = False
    policy_steps: int = 0
    critic_steps: int = 0
    output_dir: Path = Path("outputs/retrained")

    def settings(self) -> Retraining:
        """What is trained; DeasError for a value without meaning."""
        if not self.rollouts or len(set(self.rollouts)) < len(self.rollouts):
            raise DeasError(
                f"rollouts {[str(place) for place in self.rollouts]}: give one dataset or more, "
                "each once, such as --rollouts='[robot_1]'"
            )
        if not 0 <= self.holdout < 1:
            raise DeasError(f"holdout {self.holdout}: use a share of at least 0 and below 1")
        return Retraining(
            holdout=self.holdout,
            seed=self.seed,
            round=len(self.rollouts),
            clone=self.clone,
            policy_steps=self.policy_steps,
            critic_steps=self.critic_steps,
        )


def main(config: RetrainConfig) -> None:
    settings, launch = config.settings(), Launch()
    if launch.world > 1:
        raise DeasError("recipes/retrain.py runs in one process: start it without accelerate")
    check_retraining(config.bundle, settings)
    output = make_output_dir(config.output_dir)
    if not is_retrained(config.bundle, config.rollouts, output, settings):
        cache = cache_of_run(config.bundle, read_manifest(config.bundle))
        retrain(config.bundle, config.rollouts, output, settings, launch.device, cache)
    print(f"bundle in {output / 'bundle'}")


if __name__ == "__main__":
    run(main, RetrainConfig)
