"""Record demonstrations of Lift, good and bad scripted ones, as LeRobotDataset v3.

python recipes/make_lift_demos.py --episodes=250 --output=deas_vla/assets/lift_demos
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deas_vla.cli import run
from deas_vla.envs.robosuite.lift import ROBOT_TYPE, LiftConfig, LiftEnv, lift_spec
from deas_vla.envs.robosuite.lift_expert import LiftExpert, LiftExpertConfig
from deas_vla.envs.rollout import Episode, rollout
from deas_vla.evaluation.engine.workers import every_step
from deas_vla.evaluation.recording import ScriptedConfig, episode_recorder, record_in_processes


@dataclass
class RecordConfig(ScriptedConfig):
    """What to record."""

    first_seed: int = 2_000_000
    output: Path = Path("outputs/lift_demos")


def record(sloppiness: float, seed: int) -> Episode:
    env = LiftEnv(LiftConfig())
    try:
        expert = LiftExpert(LiftExpertConfig(sloppiness=sloppiness))
        return rollout(env, expert, seed, record_images=every_step)
    finally:
        env.close()


def main(config: RecordConfig) -> None:
    spec = lift_spec(LiftConfig())
    recorder = episode_recorder(config.output, "deas_vla/lift_demos", spec, ROBOT_TYPE)
    one = partial(record, config.sloppiness)
    successes = record_in_processes(recorder, one, config.seeds, config.workers)
    print(f"{sum(successes)} of {config.episodes} episodes successful, in {config.output}")


if __name__ == "__main__":
    run(main, RecordConfig)
