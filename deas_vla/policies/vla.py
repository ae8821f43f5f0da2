"""The small protocol behind which every VLA family stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class VLASpec:
    """The fixed facts of a loaded VLA.

    Attributes:
        embodiment: Embodiment tag whose projectors and statistics are in use.
        image_keys: Cameras the policy looks at, in its order.
        state_dim: Proprioceptive dimensions S, environment layout.
        action_dim: Action dimensions A, environment layout.
        action_horizon: Steps H of a predicted chunk.
        noise_shape: Shape of the flow's noise for one candidate.
        token_dim: Width D of the backbone's tokens.
        tokens_per_image: (height, width) of the token grid of one picture.
    """

    embodiment: str
    image_keys: tuple[str, ...]
    state_dim: int
    action_dim: int
    action_horizon: int
    noise_shape: tuple[int, int]
    token_dim: int
    tokens_per_image: tuple[int, int]


@dataclass(frozen=True)
class Encoding:
    """What the frozen backbone made of B observations: all that candidates and critic need.

    Attributes:
        tokens: (B, L, D) backbone output.
        attention_mask: bool (B, L), false on padding.
        image_mask: bool (B, L), true on image tokens.
        inputs: The action head's other inputs (normalised state, embodiment), as the family
            needs them.
        state: float32 (B, S), proprioception in environment units.
    """

    tokens: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    inputs: dict[str, Tensor]
    state: Tensor


class VLA(Protocol):
    """A flow-matching vision-language-action policy with a frozen backbone.

    An ``observation`` is a LeRobot batch: ``observation.images.<camera>`` (B, C, H, W) uint8 or
    float in [0, 1], ``observation.state`` (B, S), ``task`` a list of B strings.
    """

    @property
    def spec(self) -> VLASpec: ...

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        """Run the frozen backbone once; no gradient."""

    def sample(self, encoding: Encoding, noise: Tensor) -> Tensor:
        """Denoise candidates from one encoding.

        Args:
            encoding: Of B observations.
            noise: (B, N, *spec.noise_shape) standard normal.

        Returns:
            float32 (B, N, H, A) chunks in environment units.
        """
