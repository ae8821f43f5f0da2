"""What the rollout loop asks of a simulator, in LeRobot's observation keys."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"


@dataclass(frozen=True)
class EnvSpec:
    """The fixed facts of an environment.

    Attributes:
        name: Short name of the task, as it stands in result tables.
        instruction: Language instruction given to the policy.
        image_sizes: Camera name to (height, width) in pixels.
        state_names: One name per proprioceptive dimension.
        action_names: One name per action dimension; actions lie in [-1, 1].
        fps: Control steps per second.
        horizon: Steps until the time limit truncates an episode.
        embodiment: Embodiment tag of the robot in GR00T's sense.
        assets: Whose models the scenes are built from, where a simulator has several: ``lite`` or
            ``robocasa``; empty elsewhere. Datasets and bundles say it.
    """

    name: str
    instruction: str
    image_sizes: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: int
    horizon: int
    embodiment: str
    assets: str = ""

    @property
    def image_keys(self) -> tuple[str, ...]:
        return tuple(IMAGE_PREFIX + camera for camera in self.image_sizes)


@dataclass(frozen=True)
class Observation:
    """One look at the world.

    Attributes:
        images: ``observation.images.<camera>`` to uint8 (H, W, 3); empty when not rendered.
        state: float32 (S,), proprioception in environment units.
        task: Language instruction.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str


class SimEnv(Protocol):
    """A simulator of one task. Steps never render: looking is a separate, costly act."""

    spec: EnvSpec

    def reset(self, seed: int) -> None:
        """Start the episode that ``seed`` alone determines."""

    def observe(self, *, images: bool = True) -> Observation:
        """Proprioception, and the cameras' pictures where ``images`` is true."""

    def step(self, action: NDArray[np.float32]) -> bool:
        """Apply one action (A,) and tell whether the task now counts as done."""

    def save_state(self) -> Any:
        """Everything that the next steps depend on, for `restore_state`."""

    def restore_state(self, state: Any) -> None:
        """Go back to where `save_state` was called in the running episode."""

    def privileged(self) -> dict[str, NDArray[np.float64]]:
        """Simulator state for scripted experts and checks; never shown to a policy or a critic."""

    def close(self) -> None:
        """Free the simulator and its GL context."""
