"""Record the quickstart dataset: good and bad scripted demonstrations, as LeRobotDataset v3.

python recipes/make_quickstart_data.py --episodes=250 --output=deas_vla/assets/lift_demos
"""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from deas_vla.cli import run
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv, lift_spec
from deas_vla.envs.robosuite.lift_expert import LiftExpert, LiftExpertConfig
from deas_vla.envs.rollout import Episode, rollout
from deas_vla.evaluation.recording import episode_recorder, record_episode


@dataclass
class RecordConfig:
    """What to record.

    Attributes:
        episodes: Episodes in all.
        sloppiness: Share of them that aims beside the cube.
        first_seed: Seed of the first episode.
        workers: Simulator processes.
        output: New dataset directory.
    """

    episodes: int = 250
    sloppiness: float = 0.5
    first_seed: int = 2_000_000
    workers: int = 2
    output: Path = Path("outputs/lift_demos")


def start(sloppiness: float) -> None:
    global env, expert  # one simulator per worker process
    env = LiftEnv(LiftConfig())
    expert = LiftExpert(LiftExpertConfig(sloppiness=sloppiness))


def record(seed: int) -> Episode:
    return rollout(env, expert, seed, record_images=lambda step: True)


def main(config: RecordConfig) -> None:
    recorder = episode_recorder(
        config.output, "deas_vla/lift_demos", lift_spec(LiftConfig()), "panda"
    )
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    spawn = multiprocessing.get_context("spawn")
    successes = 0
    with recorder, spawn.Pool(config.workers, start, (config.sloppiness,)) as pool:
        for episode in tqdm(pool.imap(record, seeds), total=config.episodes, desc="episodes"):
            record_episode(recorder, episode)
            successes += episode.success
    print(f"{successes} of {config.episodes} episodes successful, in {config.output}")


if __name__ == "__main__":
    run(main, RecordConfig)
