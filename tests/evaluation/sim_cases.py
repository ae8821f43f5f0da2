"""A simulator and a planner of a few lines: what the engine must cope with, in milliseconds."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import EnvSpec, Observation, SimEnv
from deas_vla.envs.rollout import Plan
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.planning import Look


class ToyEnv:
    """A point on a line with a camera; solved at the step after which x passes 1.5.

    Its task says what goes wrong: ``Breaks`` (every fifth seed raises), ``BreaksOnce`` and
    ``DiesOnce`` (the first time in ``scratch``), ``Dies`` (every fifth seed), ``Refuses``,
    ``Slow``; ``Closes`` leaves a file where it was closed.
    """

    def __init__(self, task: str, scratch: Path) -> None:
        self.spec = EnvSpec(
            name=task,
            instruction="go",
            image_sizes={"front": (16, 16)},
            state_names=("x",),
            action_names=("dx",),
            fps=10,
            horizon=6,
            embodiment="toy",
        )
        self.scratch = scratch
        self.looks = 0

    def reset(self, seed: int) -> None:
        self.seed, self.x, self.steps = seed, np.random.default_rng(seed).uniform(-0.3, 0.3), 0

    def observe(self, *, images: bool = True) -> Observation:
        picture = np.full((16, 16, 3), int(100 + 50 * self.x), np.uint8)
        pictures = {"observation.images.front": picture} if images else {}
        return Observation(pictures, np.array([self.x], np.float32), f"go from {self.seed}")

    def step(self, action: NDArray[np.float32]) -> bool:
        self.steps += 1
        task = self.spec.name
        if task == "Breaks" and self.seed % 5 == 0:
            raise RuntimeError("simulator\nexploded")
        if task == "BreaksOnce" and self.steps == 2 and self._first_time():
            raise RuntimeError("simulator exploded once")
        if (task == "DiesOnce" and self.steps == 2 and self._first_time()) or (
            task == "Dies" and self.seed % 5 == 0
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "Refuses":
            raise DeasError("asset 'mug' is missing: download it")
        if task == "Slow":
            time.sleep(0.05)
        self.x += float(action[0])
        return self.x > 1.5

    def _first_time(self) -> bool:
        try:
            (self.scratch / self.spec.name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def save_state(self) -> tuple[float, int]:
        return self.x, self.steps

    def restore_state(self, state: tuple[float, int]) -> None:
        self.x, self.steps = state

    def privileged(self) -> dict[str, NDArray[np.float64]]:
        return {}

    def close(self) -> None:
        if self.spec.name == "Closes":
            (self.scratch / f"closed.{os.getpid()}").touch()


class ToyMaker:
    """Makes a task's `ToyEnv`, in any process."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def __call__(self, task: str) -> ToyEnv:
        return ToyEnv(task, self.scratch)


class ToyPlanner:
    """More candidates, longer strides; shorter ones where the picture is bright."""

    def __init__(self, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.calls: list[int] = []

    def plan(self, looks: Sequence[Look]) -> list[Plan]:
        assert len({look.candidates for look in looks}) == 1 and len(looks) <= self.batch_size
        self.calls.append(len(looks))
        return [self._plan(look) for look in looks]

    def _plan(self, look: Look) -> Plan:
        rng = np.random.default_rng((look.seed, look.plan))
        bright = look.observation.images["observation.images.front"].mean() / 1000
        stride = rng.uniform(0, 0.5, (2, 1)) + 0.2 * (look.candidates > 1) - bright
        scores = [round(float(s), 4) for s in rng.normal(size=look.candidates)]
        info = {"chosen": 0, "scores": scores} if look.candidates > 1 else {"chosen": 0}
        return Plan(stride.astype(np.float32), info)


class LocalAgent:
    """The planner's decisions without any process in between."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    def reset(self, seed: int) -> None:
        self.seed, self.plans = seed, 0

    def plan(self, env: SimEnv) -> Plan:
        (plan,) = ToyPlanner().plan([Look(env.observe(), self.seed, self.plans, self.candidates)])
        self.plans += 1
        return plan
