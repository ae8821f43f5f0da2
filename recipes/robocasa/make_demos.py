"""Record good and bad scripted demonstrations in RoboCasa's kitchens, as LeRobotDataset v3.

python recipes/robocasa/make_demos.py --config_path recipes/configs/kitchen_demos.yaml

makes those of lite kitchens; without a configuration, two tasks in RoboCasa's own kitchens. All
tasks go into one dataset, told apart by the instruction alone.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from deas_vla.cli import run
from deas_vla.envs.gl import check_gl
from deas_vla.envs.robocasa.experts import SweepExpert, SweepExpertConfig, check_expert
from deas_vla.envs.robocasa.kitchen import (
    ROBOT_TYPE,
    KitchenConfig,
    KitchenEnv,
    kitchen_spec,
    scenes,
)
from deas_vla.envs.robocasa.manipulation import PLANNERS, ReachExpert, ReachExpertConfig
from deas_vla.envs.robocasa.tasks import choose_assets, resolve_tasks
from deas_vla.envs.rollout import Agent, Episode, rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.workers import every_step
from deas_vla.evaluation.recording import ScriptedConfig, episode_recorder, record_in_processes


@dataclass(frozen=True)
class DemoKitchenConfig(KitchenConfig):
    """The kitchens, with small pictures: what one CPU can train on."""

    split: str = "pretrain"
    image_size: int = 64


@dataclass
class RecordConfig(ScriptedConfig):
    """What to record.

    Attributes:
        tasks: Tasks in which a hinged part is to be closed, or that `ReachExpert` does.
        horizons: Steps until truncation of each; a sloppy episode lasts as long.
        kitchen: Kitchens and cameras; its task and horizon are set from the above.
    """

    tasks: list[str] = field(
        default_factory=lambda: ["CloseElectricKettleLid", "CloseStandMixerHead"]
    )
    horizons: list[int] = field(default_factory=lambda: [90, 140])
    episodes: int = 50
    first_seed: int = 3_000_000
    kitchen: DemoKitchenConfig = field(default_factory=DemoKitchenConfig)
    output: Path = Path("outputs/kettle_demos")


def expert_of(task: str, sloppiness: float) -> Agent:
    """The scripted expert for ``task``; DeasError where there is none."""
    if task in PLANNERS:
        return ReachExpert(ReachExpertConfig(sloppiness=sloppiness))
    check_expert(task)
    return SweepExpert(SweepExpertConfig(sloppiness=sloppiness))


def record(sloppiness: float, job: tuple[KitchenConfig, int]) -> Episode:
    kitchen, seed = job
    env = KitchenEnv(kitchen)
    try:
        expert = expert_of(env.spec.name, sloppiness)
        return rollout(env, expert, seed, record_images=every_step)
    finally:
        env.close()


def main(config: RecordConfig) -> None:
    tasks = resolve_tasks(config.tasks)
    if len(tasks) != len(config.horizons):
        raise DeasError(f"horizons {config.horizons}: give one for each task of {tasks}")
    for task in tasks:
        expert_of(task, config.sloppiness)
    assets = choose_assets(config.kitchen.assets, tasks, config.kitchen.object_registries)
    check_gl()
    kitchens = [
        replace(config.kitchen, task=task, assets=assets, horizon=horizon)
        for task, horizon in zip(tasks, config.horizons, strict=True)
    ]
    for kitchen in kitchens:
        scenes(kitchen)
    spec = kitchen_spec(kitchens[0])
    recorder = episode_recorder(config.output, "deas_vla/kitchen_demos", spec, ROBOT_TYPE)
    jobs = [(kitchen, seed) for seed in config.seeds for kitchen in kitchens]
    one = partial(record, config.sloppiness)
    successes = record_in_processes(recorder, one, jobs, config.workers)
    for number, task in enumerate(tasks):
        count = sum(successes[number :: len(tasks)])
        print(f"{task}: {count} of {config.episodes} episodes successful, in {config.output}")


if __name__ == "__main__":
    run(main, RecordConfig)
