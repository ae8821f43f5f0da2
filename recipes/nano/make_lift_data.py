"""Frames of robosuite's Lift for pretraining the nano GR00T: where is the cube, what to do next?

python recipes/nano/make_lift_data.py --workers=2 --output=outputs/nano_data/lift
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from frames import Frames, chunk_at, in_processes
from tqdm import tqdm

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv
from deas_vla.envs.robosuite.lift_expert import LiftExpert, LiftExpertConfig
from deas_vla.envs.rollout import rollout
from deas_vla.evaluation.recording import ScriptedConfig


@dataclass
class DataConfig(ScriptedConfig):
    """What to roll out; the demonstrations that ship and evaluations use other seeds.

    Attributes:
        every: Keep a picture of every n-th step, from a random phase.
        output: Directory for one ``part_<k>.npz`` per worker.
    """

    episodes: int = 400
    first_seed: int = 1_000_000
    every: int = 3
    output: Path = Path("outputs/nano_data/lift")


def simulate(config: DataConfig, worker: int) -> None:
    """Write this worker's share of the episodes."""
    env = LiftEnv(LiftConfig())
    expert = LiftExpert(LiftExpertConfig(sloppiness=config.sloppiness))
    rows: list[dict[str, object]] = []
    pairs: list[tuple[int, str, object]] = []
    for seed in tqdm(config.seeds[worker :: config.workers], disable=worker > 0):
        phase = int(np.random.default_rng(seed).integers(config.every))
        worlds: list[dict[str, np.ndarray]] = []

        def keep(step: int, phase: int = phase, worlds: list = worlds) -> bool:
            worlds.append(env.privileged())
            return step % config.every == phase

        episode = rollout(env, expert, seed, record_images=keep)
        for step in range(phase, episode.steps, config.every):
            look = episode.observations[step]
            pairs.append((len(rows), episode.instruction, worlds[step]["cube_pos"]))
            rows.append(
                {
                    "images": np.stack(list(look.images.values())),
                    "state": look.state,
                    **chunk_at(episode.actions, step),
                    "imitate": True,
                    "text": episode.instruction,
                    "hand": worlds[step]["eef_pos"].astype(np.float32),
                    "episode": seed,
                }
            )
    Frames.of(rows, pairs).save(config.output, worker)
    env.close()


def main(config: DataConfig) -> None:
    make_output_dir(config.output)
    in_processes(simulate, config)


if __name__ == "__main__":
    run(main, DataConfig)
