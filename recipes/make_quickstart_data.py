"""Record the quickstart dataset: good and bad scripted demonstrations, as LeRobotDataset v3.

python recipes/make_quickstart_data.py --episodes=250 --output=deas_vla/assets/lift_demos
"""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.cli import run
from deas_vla.data.recording import EpisodeRecorder
from deas_vla.sim.experts import LiftExpert, LiftExpertConfig
from deas_vla.sim.robosuite_lift import LiftConfig, LiftEnv
from deas_vla.sim.rollout import Episode, rollout


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
    spec = LiftEnv(LiftConfig()).spec
    recorder = EpisodeRecorder(
        config.output,
        repo_id="deas_vla/lift_demos",
        fps=spec.fps,
        image_shapes=dict(zip(spec.image_keys, spec.image_sizes.values(), strict=True)),
        state_names=spec.state_names,
        action_names=spec.action_names,
        robot_type="panda",
    )
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    spawn = multiprocessing.get_context("spawn")
    successes = 0
    with recorder, spawn.Pool(config.workers, start, (config.sloppiness,)) as pool:
        for episode in tqdm(pool.imap(record, seeds), total=config.episodes, desc="episodes"):
            success = np.zeros(episode.steps, dtype=bool)
            success[-1] = episode.success
            truncated = np.zeros(episode.steps, dtype=bool)
            truncated[-1] = episode.truncated
            looks = episode.observations
            recorder.add_episode(
                images={key: np.stack([o.images[key] for o in looks]) for key in spec.image_keys},
                state=np.stack([o.state for o in looks]),
                action=episode.actions,
                reward=success.astype(np.float32),
                success=success,
                terminated=success,
                truncated=truncated,
                task=spec.instruction,
                seed=episode.seed,
            )
            successes += episode.success
    print(f"{successes} of {config.episodes} episodes successful, in {config.output}")


if __name__ == "__main__":
    run(main, RecordConfig)
