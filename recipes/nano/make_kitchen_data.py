"""Frames of lite kitchens for pretraining the nano GR00T: where is the thing that is meant?

python recipes/nano/make_kitchen_data.py --workers=2 --output=outputs/nano_data/kitchens

Two kinds: scripted experts at work, whose commands are imitated too, as they were meant and without
the jitter that was executed (DART, pushes.py), and a robot that stands about in many more kitchens,
its arm anywhere, doors and drawers half open. A frame of a stove is asked for each of its knobs.
Varied kitchens are painted anew for every picture (painter.py); others are as they are.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from frames import HORIZON, Frames, chunk_at, in_processes
from painter import Painter
from pushes import Pushed
from robots import PANDA_OMRON
from tqdm import tqdm

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.env import Observation
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.landmarks import landmarks
from deas_vla.envs.robocasa.lite.catalogue import LITE_TASKS
from deas_vla.envs.robocasa.manipulation import ReachExpert, ReachExpertConfig, check_reach_expert
from deas_vla.envs.robocasa.reaching import from_base, hand
from deas_vla.envs.rollout import rollout
from deas_vla.evaluation.recording import ScriptedConfig


@dataclass
class DataConfig(ScriptedConfig):
    """What to look at; datasets and evaluations use other seeds.

    Attributes:
        episodes: Of experts, over all ``tasks``.
        tasks: What they do.
        horizons: Steps until truncation of each.
        push: How likely the arm is pushed aside at a step; the expert goes on from there.
        every: Keep a picture of every n-th step of an episode, from a random phase.
        split: Of lite kitchens: ``varied`` to train on, ``validation`` to look at misses.
        scenes: Kitchens that the robot stands about in, over all tasks of lite kitchens.
        poses: Pictures in each of them.
        output: Directory for one ``part_<k>.npz`` per worker.
    """

    episodes: int = 800
    sloppiness: float = 0.1
    first_seed: int = 1_500_000
    tasks: list[str] = field(
        default_factory=lambda: [
            "CloseDrawer",
            "CloseMicrowave",
            "OpenDrawer",
            "TurnOnStove",
            "TurnOffStove",
        ]
    )
    horizons: list[int] = field(default_factory=lambda: [200, 240, 200, 200, 240])
    push: float = 0.02
    every: int = 4
    split: str = "varied"
    scenes: int = 384
    poses: int = 12
    output: Path = Path("outputs/nano_data/kitchens")


class Collector:
    """Frames and the questions about them, as they come."""

    def __init__(self, env: KitchenEnv) -> None:
        self.env = env
        self.rows: list[dict[str, Any]] = []
        self.pairs: list[tuple[int, str, object]] = []

    def add(self, look: Observation | None, seed: int, asked: dict[str, Any]) -> None:
        """One frame; ``look`` and its chunk may follow, where it is of an episode."""
        self.pairs += [
            (len(self.rows), text, from_base(self.env, at)) for text, at in asked.items()
        ]
        still = {"actions": np.zeros((HORIZON, 12), np.float32), "valid": np.zeros(HORIZON, bool)}
        self.rows.append(
            {"text": next(iter(asked)), "hand": hand(self.env).at.astype(np.float32),
             "episode": seed, "imitate": False, **still}
        )  # fmt: skip
        if look is not None:
            self.see(self.rows[-1], look)

    @staticmethod
    def see(row: dict[str, Any], look: Observation) -> None:
        row |= {"images": np.stack(list(look.images.values())), "state": look.state}


def work(env: KitchenEnv, seed: int, config: DataConfig) -> Collector:
    """An expert's episode."""
    expert = Pushed(
        ReachExpert(ReachExpertConfig(sloppiness=config.sloppiness, jitter=0.1)), config.push
    )
    phase = int(np.random.default_rng(seed).integers(config.every))
    found = Collector(env)
    rng = np.random.default_rng((seed, 5))
    painter: Painter | None = None

    def keep(step: int) -> bool:
        nonlocal painter
        if step % config.every != phase:
            return False
        if config.split == "varied":
            painter = painter or Painter(env)
            painter.paint(rng)
        found.add(None, seed, landmarks(env))
        return True

    episode = rollout(env, expert, seed, record_images=keep)
    meant = np.stack(expert.meant[: episode.steps])
    for row, step in zip(found.rows, range(phase, episode.steps, config.every), strict=True):
        Collector.see(row, episode.observations[step])
        row |= {"imitate": not expert.pushed[step], **chunk_at(meant, step)}
        row["valid"][: episode.steps - step] &= expert.undisturbed(step, HORIZON)
    return found


def stand_about(env: KitchenEnv, seed: int, config: DataConfig) -> Collector:
    """Pictures of one kitchen with the robot here and there."""
    rng = np.random.default_rng((seed, 4))
    env.reset(seed)
    half_open(env.kitchen, float(rng.uniform()))
    start = env.save_state()
    found, painter = Collector(env), Painter(env)
    for _ in range(config.poses):
        env.restore_state(start)
        if config.split == "varied":
            painter.paint(rng)
        scatter(env.kitchen, rng)
        env.step(np.zeros(12, np.float32))
        look, asked = env.observe(), landmarks(env)
        points = np.stack([from_base(env, at) for at in asked.values()])
        seen = PANDA_OMRON.seen(points, np.tile(look.state, (len(points), 1)))
        in_sight = np.isfinite(seen).all(axis=2).any(axis=1)  # something may be in front
        if in_sight.any():
            kept = zip(asked.items(), in_sight, strict=True)
            found.add(look, seed, dict(pair for pair, visible in kept if visible))
    return found


def half_open(kitchen: Any, share: float) -> None:
    """The task's drawer or door open by a share of its range."""
    if (drawer := getattr(kitchen, "drawer", None)) is not None:
        drawer.set_door_state(min=share, max=share, env=kitchen)
    elif (fixture := getattr(kitchen, "fxtr", None)) is not None:
        fixture.open_door(env=kitchen, min=share, max=share)
    kitchen.sim.forward()


def scatter(kitchen: Any, rng: np.random.Generator) -> None:
    """The base a hand's breadth from where it stood, each of the arm's joints 15 degrees off."""
    sim = kitchen.sim
    for name in sim.model.joint_names:
        spread = 0.25 if name.startswith("robot0_joint") else 0.0
        spread = 0.06 if name.startswith("mobilebase0_joint_mobile") else spread
        if spread and "torso" not in name:
            at = sim.model.get_joint_qpos_addr(name)
            sim.data.qpos[at] += rng.normal(0, spread)
    sim.forward()


def simulate(config: DataConfig, worker: int) -> None:
    """Write this worker's share: episodes, then scenes, of all their tasks in turn."""
    jobs = [
        (work, task, horizon) for task, horizon in zip(config.tasks, config.horizons, strict=True)
    ]
    jobs = [jobs[k % len(jobs)] for k in range(config.episodes)]
    jobs += [(stand_about, LITE_TASKS[k % len(LITE_TASKS)], 1) for k in range(config.scenes)]
    mine = list(enumerate(jobs, config.first_seed))[worker :: config.workers]
    rows: list[dict[str, object]] = []
    pairs: list[tuple[int, str, object]] = []
    envs: dict[tuple[str, int], KitchenEnv] = {}
    for seed, (look, task, horizon) in tqdm(mine, disable=worker > 0):
        if (task, horizon) not in envs:
            kitchen = KitchenConfig(
                task=task,
                assets="lite",
                split=config.split,
                image_size=64,
                horizon=horizon,
            )
            envs[task, horizon] = KitchenEnv(kitchen)
        found = look(envs[task, horizon], seed, config)
        pairs += [(len(rows) + frame, text, at) for frame, text, at in found.pairs]
        rows += found.rows
    for env in envs.values():
        env.close()
    Frames.of(rows, pairs).save(config.output, worker)


def main(config: DataConfig) -> None:
    for task in config.tasks:
        check_reach_expert(task)
    make_output_dir(config.output)
    in_processes(simulate, config)


if __name__ == "__main__":
    run(main, DataConfig)
