"""LeRobot's ``lerobot-rollout`` runs a bundle on a robot that LeRobot finds by itself."""

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_robot

from deas_vla.bundle import open_bundle
from deas_vla.guidance.guided import ValueGuidedPolicy

pytestmark = pytest.mark.slow


@pytest.fixture
def _as_before() -> Iterator[None]:
    """The command sets up logging and signals of its process, which is the tests' here."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers, logger = {name: signal.getsignal(name) for name in names}, logging.getLogger()
    kept, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:], logger.level = kept, level
    for name, handler in handlers.items():
        signal.signal(name, handler)


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """What the robot saw and what it was told; somebody stops it after twenty actions."""
    seen: list[dict[str, Any]] = []
    told: list[dict[str, float]] = []
    look = toy_robot.ToyRobot.get_observation

    def get_observation(self: toy_robot.ToyRobot) -> dict[str, Any]:
        seen.append(look(self))
        return seen[-1]

    def send_action(self: toy_robot.ToyRobot, action: dict[str, float]) -> dict[str, float]:
        told.append(action)
        if len(told) == 20:
            raise KeyboardInterrupt
        return action

    monkeypatch.setattr(toy_robot.ToyRobot, "get_observation", get_observation)
    monkeypatch.setattr(toy_robot.ToyRobot, "send_action", send_action)
    return seen, told


def run(bundle: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    from lerobot.scripts import lerobot_rollout

    import deas_vla.plugin.lerobot_policy_deas_vla  # noqa: F401  # as an installed one would be

    flags = [
        f"--policy.path={bundle}",
        "--policy.candidates=2",
        "--policy.seed=7",
        "--robot.discover_packages_path=toy_robot",
        "--robot.type=toy_of_deas_vla_tests",
        "--task=lift the red cube",
        "--device=cpu",
        "--fps=50",
        "--duration=120",
        "--return_to_initial_position=false",
        "--play_sounds=false",
    ]
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", *flags, *more])
    lerobot_rollout.main()


def numbers(actions: list[dict[str, float]]) -> torch.Tensor:
    return torch.tensor([[float(action[name]) for name in toy_robot.MOTORS] for action in actions])


@pytest.mark.usefixtures("_as_before")
def test_sync(bundle: Path, robot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The robot does what the bundle decides for what it saw, and decides anew in time."""
    run(bundle, monkeypatch)
    seen, told = robot
    ours = open_bundle(bundle)
    ours.config.candidates, ours.config.seed = 2, 7
    steps = ours.config.n_action_steps
    assert steps < 20
    ours.reset()
    expected = []
    for first in (1, 1 + steps):  # one look comes before the first step
        look = seen[first]
        batch: dict[str, Any] = {
            f"observation.images.{eye}": torch.from_numpy(look[eye]).permute(2, 0, 1)[None] / 255
            for eye in ("agentview", "eye_in_hand")
        }
        joints = np.array([[look[name] for name in toy_robot.JOINTS]], np.float32)
        batch |= {"observation.state": torch.from_numpy(joints), "task": ["lift the red cube"]}
        expected += [ours.select_action(batch)[0] for _ in range(steps)]
    shown = min(20, len(expected))
    torch.testing.assert_close(
        numbers(told)[:shown], torch.stack(expected)[:shown], atol=1e-5, rtol=1e-5
    )


@pytest.mark.usefixtures("_as_before")
def test_rtc(bundle: Path, robot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are decided in a thread beside the robot's loop, each going on from the last."""
    asked: list[dict[str, Any]] = []
    predict = ValueGuidedPolicy.predict_action_chunk

    def recorded(self: ValueGuidedPolicy, batch: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(kwargs)
        return predict(self, batch, **kwargs)

    monkeypatch.setattr(ValueGuidedPolicy, "predict_action_chunk", recorded)
    run(bundle, monkeypatch, "--inference.type=rtc", "--inference.rtc.execution_horizon=8")
    _, told = robot
    assert len(told) == 20 and bool(numbers(told).isfinite().all())
    assert asked[0]["prev_chunk_left_over"] is None
    assert any(each["prev_chunk_left_over"] is not None for each in asked[1:])
