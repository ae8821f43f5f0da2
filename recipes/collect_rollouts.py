"""Collect a policy's rollouts in RoboCasa's kitchens as a LeRobotDataset v3.

python recipes/collect_rollouts.py --bundle=DIR --tasks='[CloseDrawer]' --episodes=100 \\
  --split=pretrain --workers=8 --output_dir=ROLLOUTS

Flags as of eval/robocasa.py. The dataset is ROLLOUTS/dataset; a killed run goes on when the same
command is given again. With demonstrations it makes a critic's training set:

python -m deas_vla.data.merge --demos='[DEMOS]' --rollouts='[ROLLOUTS/dataset]' --output=MERGED
"""

from dataclasses import dataclass, field

from deas_vla.cli import make_output_dir, run
from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.workers import SimulatorPool, every_step
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.evaluation.recording import STAGED, Stage, assemble, recover

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

    from deas_vla.evaluation.engine.agents import PolicyPlanner
    from deas_vla.evaluation.engine.launch import Launch

    launch = Launch()
    policy = config.open_policy(specs, launch.device)
    trials = config.trials(specs, has_critic=policy.critic is not None)
    planner = PolicyPlanner(policy, config.batch_size or None)
    output = make_output_dir(config.output_dir)
    identity = journal.identity(policy, config.kitchen(specs[0].name))
    launch.claim(output, identity | {"repo_id": config.repo_id, "robot_type": config.robot_type})
    if launch.rank == 0:
        recover(output, list(journal.finished(output).values()))
        (output / STAGED).mkdir(exist_ok=True)
    launch.wait()

    stage = Stage(output, config.repo_id, config.robot_type, identity["policy_revision"][:12])
    with SimulatorPool(config.workers, config.make_env, planner) as pool:
        journal.run_missing(
            pool, trials, output, launch.rank, launch.world, deliver=stage, record=every_step
        )
    launch.wait()
    if launch.rank == 0:
        outcomes = journal.merge(output, trials)
        every = list(journal.finished(output).values())  # also of an earlier, larger run
        dataset = assemble(output, every, config.repo_id)
        print(f"{journal.running_rates(outcomes)}; dataset in {dataset}")


if __name__ == "__main__":
    run(main, CollectConfig)
