"""The protocol behind which every VLA family stands."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
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
        state_groups: Names and widths that the checkpoint gives to parts of the state, in order;
            empty where it has none.
        action_groups: The same of the action.
    """

    embodiment: str
    image_keys: tuple[str, ...]
    state_dim: int
    action_dim: int
    action_horizon: int
    noise_shape: tuple[int, int]
    token_dim: int
    tokens_per_image: tuple[int, int]
    state_groups: tuple[tuple[str, int], ...] = ()
    action_groups: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Encoding:
    """What the frozen backbone made of B observations: all that candidates and critic need.

    Attributes:
        tokens: (B, L, D), what the action head's half of the network begins with: kept of a frame,
            it is all that `VLA.encoding_from` needs of the pictures.
        attention_mask: bool (B, L), false on padding.
        image_mask: bool (B, L), true on image tokens.
        inputs: The action head's other inputs (normalised state, embodiment), as the family
            needs them.
        state: float32 (B, S), proprioception in environment units.
        context: (B, L, D), what the critic's feature is pooled from, where that is not ``tokens``;
            None too in an encoding of kept tokens.
    """

    tokens: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    inputs: dict[str, Tensor]
    state: Tensor
    context: Tensor | None = None


@dataclass(frozen=True)
class Tail:
    """The unexecuted rest of the last chunk, which new candidates go on from.

    Attributes:
        actions: float32 (B, T, A) environment units; row 0 belongs to the observation's own step.
        warm: bool (N,), the candidates that start from the tail with noise over it instead of from
            noise alone. Behind the tail's end they start from its last action.
        progress: Share of the denoising that counts as done for these: 0 is noise alone, 1 the
            tail alone; brought to a whole number of denoising steps, of which one is left at least.
        frozen: Steps of every candidate that stay the tail's, because they will have been executed
            by the time that the new chunk takes over.
        overlap: Steps, frozen ones among them, in which the others start from the tail and leave
            it the more the later; LeRobot's real-time chunking. At least ``frozen``, at most T.
    """

    actions: Tensor
    warm: Tensor
    progress: float = 0.5
    frozen: int = 0
    overlap: int = 0


class TrainingInputs(Protocol):
    """A policy's preprocessing of pictures and language, without its network.

    It works on the CPU and can be taken to another process by a fork.
    """

    def augment(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the checkpoint was trained with, of one observation's pictures (3, H, W) by key.

        Drawn from torch's global generator; nothing is done where no augmentation was asked for.
        """

    def __call__(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `VLA.encode_batch` needs of B observations; no state is looked at."""


class VLA(Protocol):
    """A flow-matching vision-language-action policy with a frozen backbone.

    All that training, guidance and evaluation ask of a family. B observations, N candidates, H
    steps of the policy's chunk, A action and S state dimensions of the environment, A_model and
    S_model those of the network, L tokens of width D.

    An ``observation`` is a LeRobot batch: ``observation.images.<camera>`` (B, C, H, W) uint8 or
    float in [0, 1], ``observation.state`` (B, S), ``task`` a list of B strings.

    Attributes:
        model: The network, of which an adapter is trained and saved; PEFT wraps it in place.
        name_or_path: Where the base checkpoint came from.
        lora_parts: Patterns of the layers that can be trained, by the name of their part; ``head``
            is the action head. `BACKBONE_PARTS` of `policies.lora` are what tokens depend on.
        projectors: Modules that are trained and kept whole, where the embodiment is new.
    """

    model: Any
    name_or_path: str
    lora_parts: Mapping[str, str]
    projectors: tuple[str, ...]

    @property
    def spec(self) -> VLASpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, and so of the tokens."""

    def for_embodiment(
        self,
        *,
        embodiment: str,
        image_keys: tuple[str, ...],
        state_dim: int,
        action_dim: int,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    ) -> "VLA":
        """The same network, not a copy, with processors and statistics of another robot."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that every picture is brought to, pixels."""

    def backbone_fingerprint(self) -> str:
        """SHA-256 over all that an observation's tokens depend on: weights and preprocessing."""

    def head_fingerprint(self) -> str:
        """SHA-256 over all that chunks depend on, given an encoding: weights, denoising steps."""

    def preprocess(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The network's inputs of an ``observation``, pictures, language and state."""

    def host_preprocessor(self) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
        """`preprocess` for processes that may not touch the device; its inputs stay on the CPU.

        None where the device resizes the pictures, which is faster than to have it done.
        """

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        """Preprocess and run the frozen backbone once; no gradient."""

    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        """The backbone's half of `encode`: `preprocess`'s output and the raw state (B, S)."""

    def training_inputs(self, augmented: bool) -> TrainingInputs:
        """Preprocessing for training on pictures, with the checkpoint's own augmentation or none.

        Raises:
            DeasError: A policy that is not trained here.
        """

    def encode_batch(self, batch: Mapping[str, Tensor]) -> Encoding:
        """Run the backbone, with gradients to what is trained of it and without where nothing is.

        Args:
            batch: What `training_inputs` makes, and what `preprocess_targets` says of the state.
        """

    def encoding_from(self, batch: Mapping[str, Tensor]) -> Encoding:
        """An encoding from what was kept of earlier ones; no backbone runs.

        Args:
            batch: ``tokens`` (B, L, D), ``token_mask`` and ``image_mask`` bool (B, L), and what
                `preprocess_targets` says of the state.
        """

    def sample(self, encoding: Encoding, noise: Tensor, tail: Tail | None = None) -> Tensor:
        """Denoise candidates from one encoding; no gradient.

        One candidate is the base policy's chunk to the last bit, unless `compile` was called.

        Args:
            encoding: Of B observations.
            noise: (B, N, *spec.noise_shape) standard normal.
            tail: What is left of the chunks under execution, to go on from.

        Returns:
            float32 (B, N, H, A) chunks in environment units.
        """

    def compile(self) -> None:
        """Compile what `sample` runs, once for each number of observations and candidates."""

    def preprocess_targets(self, state: Tensor, action: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Normalise and pad states and chunks without looking at any picture.

        Args:
            state: (B, S) environment units.
            action: (B, H, A) environment units.
            valid: bool (B, H), false on steps that were not executed.

        Returns:
            ``action`` and ``action_mask`` (B, *spec.noise_shape), the mask 1 where a value is
            real, and beside them what `encoding_from` needs of the state, B rows each.
        """

    def flow_matching_loss(self, encoding: Encoding, action: Tensor, action_mask: Tensor) -> Tensor:
        """The action head's training loss on given tokens, a scalar: a mean over real values.

        Args:
            encoding: Of B observations.
            action: (B, *spec.noise_shape), from `preprocess_targets`.
            action_mask: Likewise.
        """

    def gradient_checkpointing(self, enabled: bool) -> AbstractContextManager[None]:
        """Within it what is trained keeps few activations and computes them again instead."""
