"""Collect a policy's rollouts in RoboCasa's kitchens, or in Lift, as a LeRobotDataset v3.

python recipes/collect_rollouts.py --bundle=DIR --tasks='[CloseDrawer]' --episodes=100 \\
  --split=pretrain --workers=8 --output_dir=ROLLOUTS

Flags as of eval/robocasa.py; --tasks='[Lift]' is robosuite's task. The dataset is ROLLOUTS/dataset;
a killed run goes on when the same command is given again. With demonstrations it makes a critic's
training set:

python -m deas_vla.data.merge --demos='[DEMOS]' --rollouts='[ROLLOUTS/dataset]' --output=MERGED
"""

from dataclasses import dataclass, field

from deas_vla.cli import run
from deas_vla.envs.robocasa import kitchen
from deas_vla.envs.robosuite import lift
from deas_vla.errors import DeasError
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.evaluation.lift import TASK, lift_run, lift_trials, open_on_lift

# Every simulator process imports this file: what needs LeRobot's policies is imported in main().

KITCHEN_FLAGS = (
    "policy", "assets", "split", "layouts", "styles", "cameras", "image_size", "horizon",
)  # fmt: skip


@dataclass
class CollectConfig(KitchenRolloutConfig):
    """What to collect.

    Attributes:
        repo_id: ``user/name`` of the dataset.
        robot_type: As in the demonstrations that it will be merged with; of the task's robot when
            empty.
    """

    candidates: list[int] | None = field(default_factory=lambda: [1])
    split: str = "pretrain"
    repo_id: str = "local/rollouts"
    robot_type: str = ""


def main(config: CollectConfig) -> None:
    if config.tasks == [TASK]:
        collect_lift(config)
        return
    specs = config.check()

    from deas_vla.evaluation.engine.launch import Launch

    robot = config.robot_type or kitchen.ROBOT_TYPE
    claimed = config.claim(Launch(), specs, repo_id=config.repo_id, robot_type=robot)
    claimed.collect(config.repo_id, robot)


def collect_lift(config: CollectConfig) -> None:
    from deas_vla.evaluation.engine.launch import Launch

    if config.bundle is None:
        raise DeasError("Lift wants --bundle=DIR: it is no task of a checkpoint as it is")
    for name in KITCHEN_FLAGS:
        if getattr(config, name) != getattr(CollectConfig(), name):
            raise DeasError(f"--{name} is for RoboCasa's kitchens alone: leave it out with Lift")
    launch, robot = Launch(), config.robot_type or lift.ROBOT_TYPE
    policy = open_on_lift(
        config.bundle, launch.device, config.selection, config.guidance, config.n_action_steps
    )
    trials = lift_trials(config.seeds, config.episodes, config.candidates or [1])
    policy.check_candidates(max(config.candidates or [1]))
    claimed = lift_run(
        launch,
        policy,
        config.output_dir,
        trials,
        workers=config.workers,
        batch_size=config.batch_size,
        repo_id=config.repo_id,
        robot_type=robot,
    )
    claimed.collect(config.repo_id, robot)


if __name__ == "__main__":
    run(main, CollectConfig)
