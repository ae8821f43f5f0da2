"""Roll the scripted expert out and keep what pretraining the nano GR00T needs.

python recipes/nano/make_data.py --episodes=1600 --workers=2 --output=outputs/nano_data
"""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv
from deas_vla.envs.robosuite.lift_expert import LiftExpert, LiftExpertConfig
from deas_vla.envs.rollout import rollout
from deas_vla.errors import DeasError
from deas_vla.evaluation.recording import ScriptedConfig


@dataclass
class DataConfig(ScriptedConfig):
    """What to roll out; the quickstart dataset and evaluations use other seeds.

    Attributes:
        every: Keep a picture of every n-th step, from a random phase.
        horizon: Length of the action chunk kept with each picture.
        output: Directory for one ``part_<k>.npz`` per worker.
    """

    episodes: int = 1600
    first_seed: int = 1_000_000
    every: int = 3
    horizon: int = 16
    output: Path = Path("outputs/nano_data")


def simulate(config: DataConfig, worker: int) -> None:
    """Write this worker's share: images (n, 2, H, W, 3), state, chunks, cube and gripper poses."""
    env = LiftEnv(LiftConfig())
    expert = LiftExpert(LiftExpertConfig(sloppiness=config.sloppiness))
    rows: dict[str, list] = {"images": [], "state": [], "actions": [], "valid": [], "cube": []}
    for seed in tqdm(config.seeds[worker :: config.workers], disable=worker > 0):
        phase = int(np.random.default_rng(seed).integers(config.every))
        cubes: list[np.ndarray] = []

        def keep(step: int, phase: int = phase, cubes: list = cubes) -> bool:
            cubes.append(env.privileged()["cube_pos"])
            return step % config.every == phase

        episode = rollout(env, expert, seed, record_images=keep)
        for step in range(phase, episode.steps, config.every):
            observation = episode.observations[step]
            chunk = episode.actions[step : step + config.horizon]
            padded = np.zeros((config.horizon, chunk.shape[1]), np.float32)
            padded[: len(chunk)] = chunk
            rows["images"].append(np.stack(list(observation.images.values())))
            rows["state"].append(observation.state)
            rows["actions"].append(padded)
            rows["valid"].append(np.arange(config.horizon) < len(chunk))
            rows["cube"].append(cubes[step])
    np.savez(config.output / f"part_{worker}.npz", **{k: np.stack(v) for k, v in rows.items()})
    env.close()


def main(config: DataConfig) -> None:
    make_output_dir(config.output)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=simulate, args=(config, k)) for k in range(config.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise DeasError("a simulator process failed: see its error above")


if __name__ == "__main__":
    run(main, DataConfig)
