"""Collect a policy's rollouts in RoboCasa's kitchens as a LeRobotDataset v3.

python recipes/collect_rollouts.py --bundle=DIR --tasks='[CloseDrawer]' --episodes=100 \\
  --split=pretrain --workers=8 --output_dir=ROLLOUTS

Flags as of eval/robocasa.py. The dataset is ROLLOUTS/dataset; a killed run goes on when the same
command is given again. With demonstrations it makes a critic's training set:

python -m deas_vla.data.merge --demos='[DEMOS]' --rollouts='[ROLLOUTS/dataset]' --output=MERGED
"""

from dataclasses import dataclass, field

from deas_vla.cli import run
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.evaluation.runs import PolicyRun

# Every simulator process imports this file: what needs LeRobot's policies is imported in main().


@dataclass
class CollectConfig(KitchenRolloutConfig):
    """What to collect.

    Attributes:
        repo_id: ``user/name`` of the dataset.
        robot_type: As in the demonstrations that it will be merged with.
    """

    candidates: list[int] | None = field(default_factory=lambda: [1])
    split: str = "pretrain"
    repo_id: str = "local/rollouts"
    robot_type: str = "PandaOmron"


def main(config: CollectConfig) -> None:
    specs = config.check()

    from deas_vla.evaluation.engine.launch import Launch

    launch = Launch()
    policy = config.open_policy(specs, launch.device)
    claimed = PolicyRun.claim(
        launch,
        policy,
        config.kitchen(specs[0].name),
        config.output_dir,
        make_env=config.make_env,
        trials=config.trials(specs, has_critic=policy.critic is not None),
        workers=config.workers,
        batch_size=config.batch_size,
        repo_id=config.repo_id,
        robot_type=config.robot_type,
    )
    claimed.collect(config.repo_id, config.robot_type)


if __name__ == "__main__":
    run(main, CollectConfig)
