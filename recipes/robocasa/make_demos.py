"""Record good and bad scripted demonstrations in RoboCasa's kitchens, as LeRobotDataset v3.

python recipes/robocasa/make_demos.py --output=outputs/kitchen_demos
"""

import multiprocessing
import multiprocessing.pool
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from deas_vla.cli import run
from deas_vla.envs.gl import check_gl
from deas_vla.envs.robocasa.experts import SweepExpert, SweepExpertConfig, check_expert
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv, kitchen_spec
from deas_vla.envs.robocasa.tasks import check_assets, resolve_tasks
from deas_vla.envs.rollout import Episode, rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.recording import episode_recorder, record_episode


@dataclass(frozen=True)
class DemoKitchenConfig(KitchenConfig):
    """The kitchens, with two small pictures: what one CPU can train on."""

    split: str = "pretrain"
    cameras: tuple[str, ...] = ("robot0_agentview_left", "robot0_eye_in_hand")
    image_size: int = 64


@dataclass
class RecordConfig:
    """What to record.

    Attributes:
        tasks: Tasks in which a hinged part is to be closed.
        horizons: Steps until truncation of each; a sloppy episode lasts as long.
        episodes: Episodes of each.
        sloppiness: Share of them that passes beside the part.
        first_seed: Seed of the first episode of each task.
        kitchen: Kitchens and cameras; its task and horizon are set from the above.
        workers: Simulator processes.
        output: New dataset directory.
    """

    tasks: list[str] = field(
        default_factory=lambda: ["CloseElectricKettleLid", "CloseStandMixerHead"]
    )
    horizons: list[int] = field(default_factory=lambda: [90, 140])
    episodes: int = 50
    sloppiness: float = 0.5
    first_seed: int = 3_000_000
    kitchen: DemoKitchenConfig = field(default_factory=DemoKitchenConfig)
    workers: int = 2
    output: Path = Path("outputs/kitchen_demos")


def record(kitchen: KitchenConfig, sloppiness: float, seed: int) -> Episode:
    env = KitchenEnv(kitchen)
    try:
        expert = SweepExpert(SweepExpertConfig(sloppiness=sloppiness))
        return rollout(env, expert, seed, record_images=lambda step: True)
    finally:
        env.close()


def main(config: RecordConfig) -> None:
    tasks = resolve_tasks(config.tasks)
    if len(tasks) != len(config.horizons):
        raise DeasError(f"horizons {config.horizons}: give one for each task of {tasks}")
    for task in tasks:
        check_expert(task)
    check_assets(tasks, config.kitchen.object_registries)
    check_gl()
    kitchens = [
        replace(config.kitchen, task=task, horizon=horizon)
        for task, horizon in zip(tasks, config.horizons, strict=True)
    ]
    recorder = episode_recorder(
        config.output, "deas_vla/kitchen_demos", kitchen_spec(kitchens[0]), "PandaOmron"
    )
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    jobs = [(kitchen, config.sloppiness, seed) for seed in seeds for kitchen in kitchens]
    successes = dict.fromkeys(tasks, 0)
    spawn = multiprocessing.get_context("spawn")
    with recorder, spawn.Pool(config.workers) as pool:
        running = [pool.apply_async(record, job) for job in jobs]
        for (kitchen, _, _), episode in zip(jobs, tqdm(running, desc="episodes"), strict=True):
            finished = episode.get()
            record_episode(recorder, finished)
            successes[kitchen.task] += finished.success
    for task, count in successes.items():
        print(f"{task}: {count} of {config.episodes} episodes successful, in {config.output}")


if __name__ == "__main__":
    run(main, RecordConfig)
