"""A tiny dataset and the recipe in this process: what the stages need to run for real."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

from deas_vla.cli import parse
from deas_vla.data.recording import EpisodeRecorder
from deas_vla.envs.robosuite.lift import LiftConfig, lift_spec
from deas_vla.training.config import FinetuneConfig

ROOT = Path(__file__).parents[1]
NANO = ROOT / "deas_vla/assets/groot_nano"
KITCHEN_NANO = ROOT / "deas_vla/assets/groot_nano_kitchens"


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(dataset: Path, output: Path, *more: str) -> list[str]:
    return [
        f"--dataset.root={dataset}",
        "--dataset.holdout=0.34",
        f"--policy.path={NANO}",
        "--policy.embodiment=robosuite_panda",
        "--policy.steps=3",
        "--policy.batch_size=8",
        "--critic.steps=12",
        "--critic.batch_size=16",
        "--critic.hidden=[32,32]",
        "--critic.log_every=4",
        f"--output_dir={output}",
        "--tracker=none",
        *more,
    ]


def recipe(dataset: Path, output: Path, *more: str) -> Path:
    config = parse(FinetuneConfig, flags(dataset, output, *more))
    load_script("recipes/finetune_groot.py").main(config)
    return output


SPEC = lift_spec(LiftConfig())
CAMERAS = SPEC.image_keys


def record(
    root: Path, episodes: int = 6, state_dim: int = 9, action_dim: int = 7, seed: int = 0
) -> Path:
    """Episodes of 14 steps and more; even ones succeed. Success shows in pictures and actions."""
    rng = np.random.default_rng(seed)
    names = (SPEC.state_names * 4)[:state_dim], (SPEC.action_names * 4)[:action_dim]
    with EpisodeRecorder(
        root,
        "test/tiny",
        10,
        dict.fromkeys(CAMERAS, (64, 64)),
        *names,
        robot_type="panda",
        assets="lite",
    ) as recorder:
        for episode in range(episodes):
            steps, good = 14 + 2 * episode, episode % 2 == 0
            end = np.arange(steps) == steps - 1
            shade = 60 if good else 180
            recorder.add_episode(
                images={
                    key: rng.integers(shade, shade + 40, (steps, 64, 64, 3), dtype=np.uint8)
                    for key in CAMERAS
                },
                state=rng.normal(size=(steps, state_dim)).astype(np.float32),
                action=np.clip(rng.normal(0.3 if good else -0.3, 0.3, (steps, action_dim)), -1, 1),
                reward=(end & good).astype(np.float32),
                success=end & good,
                terminated=end & good,
                truncated=end & (not good),
                task="lift the red cube",
                seed=episode,
            )
    return root
