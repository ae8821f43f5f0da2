"""SmolVLA, pi0 and pi0.5 through LeRobot's own classes, behind the ``VLA`` protocol."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deas_vla.digests import update_with_weights
from deas_vla.errors import DeasError
from deas_vla.policies.continuing import continued, held
from deas_vla.policies.lora import active_weights, unwrapped
from deas_vla.policies.places import checkpoint_directory
from deas_vla.policies.prefix.checkpoint import (
    OWN,
    Robot,
    cameras,
    check_fit,
    load_weights,
    read_config,
    read_weights,
    robot_config,
)
from deas_vla.policies.prefix.network import STATE, Prefix, PrefixNetwork, not_padding
from deas_vla.policies.prefix.processors import (
    load_processors,
    missing_statistics,
    reference_state,
    silent,
    unit_pictures,
    word_settings,
)
from deas_vla.policies.prefix.training_inputs import PrefixTrainingInputs
from deas_vla.policies.vla import Encoding, Tail, VLASpec

_RAMP_RATE = 6.0  # of steps blended into the last chunk, as GR00T has it


class PrefixVLA(ABC):
    """One checkpoint in LeRobot's layout behind the ``VLA`` protocol.

    Use :meth:`from_pretrained`. ``model`` is LeRobot's policy, wrapped by PEFT in place when an
    adapter is loaded or trained, so that PEFT alone loads an adapter over a plain LeRobot policy.

    Attributes:
        family: LeRobot's type.
        example: A checkpoint of it on the Hub.
        network_class: Its computation.
        state_in_words: Whether the prompt spells the state out.
    """

    family: ClassVar[str]
    example: ClassVar[str]
    network_class: ClassVar[type[PrefixNetwork]]
    lora_parts: Mapping[str, str] = {}
    projectors: tuple[str, ...] = ()
    state_in_words: ClassVar[bool] = False

    def __init__(
        self, model: Any, processors: tuple[Any, Any], config: Any, robot: Robot, name: str
    ) -> None:
        self.model = model
        self.name_or_path = name
        self.network = self.network_class(unwrapped(model))
        self.preprocessor, self.postprocessor = processors
        self._reader = copy.copy(unwrapped(model))  # the same modules, with this robot's cameras
        self._reader.config = config
        self._robot = robot

    @classmethod
    @abstractmethod
    def build(cls, config: Any, root: Path, dtype: torch.dtype) -> Any:
        """LeRobot's policy of that configuration, its weights still to be loaded."""

    @classmethod
    @abstractmethod
    def set_steps(cls, config: Any, steps: int) -> None:
        """Write the number of denoising steps into LeRobot's configuration."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        embodiment: str,
        image_keys: tuple[str, ...],
        state_dim: int,
        action_dim: int,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        denoising_steps: int | None = None,
    ) -> "PrefixVLA":
        """Load what LeRobot's ``save_pretrained`` wrote: policy and processors.

        Args:
            path: Local directory or Hub id.
            embodiment: ``checkpoint`` or ``new_embodiment``, see `Robot`.
            image_keys: The dataset's or environment's ``observation.images.*`` keys.
            state_dim: Proprioceptive dimensions S of the dataset or environment.
            action_dim: Action dimensions A likewise.
            dataset_stats: LeRobot's per-key statistics, for ``new_embodiment``.
            device: Where the model runs.
            dtype: Of the weights, float32 or bfloat16; SmolVLA's expert stays float32.
            denoising_steps: Flow steps per chunk; the checkpoint's own when left out.

        Raises:
            DeasError: Not such a checkpoint, or cameras or dimensions that do not fit it.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise DeasError(f"policy.dtype float16 with family {cls.family}: use bfloat16")
        root = checkpoint_directory(path)
        robot = Robot(embodiment, image_keys, state_dim, action_dim, dataset_stats)
        config = read_config(root, path, cls.family, cls.example)
        check_fit(config, robot, path)
        config.device, config.compile_model, config.rtc_config = device, False, None
        if denoising_steps is not None:
            cls.set_steps(config, denoising_steps)
        with silent():
            policy = cls.build(config, root, dtype)
            load_weights(policy, root, path)
        policy.to(device).requires_grad_(False).eval()
        return cls._assemble(policy, root, config, robot, str(path))

    @classmethod
    def _assemble(cls, model: Any, root: Path, config: Any, robot: Robot, name: str) -> "PrefixVLA":
        own = robot_config(config, robot, str(config.device))
        processors = load_processors(root, own, robot, name)
        if (lost := missing_statistics(processors[0])) is not None:
            raise DeasError(
                f"checkpoint '{name}' has no statistics of {lost} for embodiment '{OWN}': finetune "
                "on a dataset of your robot (--policy.embodiment=new_embodiment)"
            )
        return cls(model, processors, own, robot, name)

    def for_embodiment(self, **robot: Any) -> "PrefixVLA":
        """The same network for another robot; arguments as of :meth:`from_pretrained`."""
        root, whose = checkpoint_directory(self.name_or_path), Robot(**robot)
        config = read_config(root, self.name_or_path, self.family, self.example)
        check_fit(config, whose, self.name_or_path)
        config.device = str(self.device)
        return self._assemble(self.model, root, config, whose, self.name_or_path)

    @property
    def spec(self) -> VLASpec:
        config = self.network.config
        return VLASpec(
            embodiment=self._robot.embodiment,
            image_keys=cameras(self._reader.config, self._robot),
            state_dim=self._robot.state_dim,
            action_dim=self._robot.action_dim,
            action_horizon=config.chunk_size,
            noise_shape=(config.chunk_size, config.max_action_dim),
            token_dim=self.network.token_dim,
            tokens_per_image=self.network.tokens_per_image,
        )

    @property
    def device(self) -> torch.device:
        return next(iter(self.network.policy.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; vision tower and expert may be float32 beside it."""
        return self.network.language_dtype()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that every picture is brought to, pixels."""
        return self.network.image_size()

    def backbone_fingerprint(self) -> str:
        """SHA-256 over the vision-language model and what its inputs depend on."""
        settings = {"image_size": self.image_size, "cameras": self.spec.image_keys}
        settings |= self.prompt_settings()
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        update_with_weights(digest, self._weights(of_backbone=True))
        return digest.hexdigest()

    def prompt_settings(self) -> dict[str, Any]:
        """What the words before the language model depend on."""
        return word_settings(self.preprocessor)

    def head_fingerprint(self) -> str:
        """SHA-256 over the action expert, adapter included, and its denoising steps."""
        digest = hashlib.sha256(str(self.network.steps).encode())
        update_with_weights(digest, self._weights(of_backbone=False))
        return digest.hexdigest()

    def _weights(self, *, of_backbone: bool) -> dict[str, Tensor]:
        weights = read_weights(active_weights(self.model, self.network.policy))
        name = self.network.backbone
        return {k: v for k, v in weights.items() if k.startswith(name) == of_backbone}

    def preprocess(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """LeRobot's preprocessor: pictures, words, normalised state and, if there, ``action``."""
        inputs: dict[str, Any] = self.preprocessor(unit_pictures(batch))
        return inputs

    def host_preprocessor(self) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
        return None  # the network itself resizes pictures

    @torch.no_grad()
    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        wanted = (*self.spec.image_keys, "observation.state", "task")
        inputs = self.preprocess({key: observation[key] for key in wanted})
        return self.encode_inputs(inputs, observation["observation.state"])

    @torch.no_grad()
    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        """The backbone's half of :meth:`encode`, for preprocessed ``inputs``."""
        tokens, mask, pictures = self.network.embed(self._reader, inputs)
        own_state = self._padded(inputs["observation.state"], self.network.config.max_state_dim)
        context, prefix = self.network.prefill(tokens, mask, own_state)
        return Encoding(
            tokens=tokens,
            attention_mask=mask,
            image_mask=pictures,
            inputs=prefix.named(),
            state=torch.as_tensor(state, dtype=torch.float32).reshape(len(mask), -1),
            context=context,
        )

    def training_inputs(self, augmented: bool) -> PrefixTrainingInputs:
        """See `VLA`.

        Raises:
            DeasError: Augmentation, of which checkpoints say nothing; a state among the words.
        """
        if augmented:
            raise DeasError(
                f"policy.augment=checkpoint with family {self.family}: its checkpoints say nothing "
                "of augmentation, use --dataset.image_transforms.enable=true"
            )
        if self.state_in_words:
            raise DeasError(
                f"family {self.family} reads the state as words, beside which pictures are not "
                "trained on: use --policy.tokens=cached"
            )
        return PrefixTrainingInputs(self.preprocessor, self.spec.state_dim)

    @torch.no_grad()
    def encode_batch(self, batch: Mapping[str, Tensor]) -> Encoding:
        """See `VLA`; nothing that pictures and words are embedded by is trained here."""
        seen = {**batch, "observation.state": batch[STATE]}  # which LeRobot embeds in any case
        tokens, mask, pictures = self.network.embed(self._reader, seen)
        inputs = {STATE: batch[STATE].to(self.device)}
        return Encoding(tokens, mask, pictures, inputs, batch["raw_state"])

    def encoding_from(self, batch: Mapping[str, Tensor]) -> Encoding:
        """An encoding of kept tokens; which of them are padding, they say themselves.

        pi0.5 spells the state out in its prompt: how long that is differs from frame to frame.
        """
        tokens = batch["tokens"].to(self.device, torch.float32)
        return Encoding(
            tokens=tokens,
            attention_mask=not_padding(tokens),
            image_mask=batch["image_mask"],
            inputs={STATE: batch[STATE].to(self.device)},
            state=batch["raw_state"],
        )

    @torch.no_grad()
    def sample(self, encoding: Encoding, noise: Tensor, tail: Tail | None = None) -> Tensor:
        if tail is not None:
            tail = replace(tail, actions=self._normalised_tail(encoding, tail.actions))
        return self.decode(self.sample_normalised(encoding, noise, tail), encoding.state)

    @torch.no_grad()
    def sample_normalised(
        self, encoding: Encoding, noise: Tensor, tail: Tail | None = None
    ) -> Tensor:
        """Denoise ``noise`` (B, N, H, A_model) to chunks in the policy's own normalisation.

        ``tail``, where there is one, is in that normalisation and as long as the noise.
        """
        noise, prefix = noise.to(self.device, torch.float32), self._prefix(encoding)
        if tail is not None:
            flow = partial(self.network.denoise, prefix)
            return continued(tail, noise, self.network.steps, _RAMP_RATE, flow)
        if noise.shape[1] == 1:
            return self.network.sample(prefix, noise[:, 0])[:, None]
        return self.network.denoise(prefix, noise)

    def decode(self, normalised: Tensor, state: Tensor) -> Tensor:
        """Undo the policy's normalisation: (B, N, H, A_model) to float32 (B, N, H, A).

        Relative actions are added to the raw ``state`` (B, S) of their own observation.
        """
        batch, candidates = normalised.shape[:2]
        own = normalised.flatten(0, 1)[..., : self.spec.action_dim].float()
        with reference_state(self.preprocessor, state.repeat_interleave(candidates, dim=0)):
            chunks: Tensor = self.postprocessor(own)
        return chunks.unflatten(0, (batch, candidates)).to(torch.float32)

    def compile(self) -> None:
        raise DeasError(
            f"family {self.family} runs as LeRobot has it, not compiled: use "
            "--guidance.compile=false"
        )

    def preprocess_targets(self, state: Tensor, action: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Normalise and pad states and chunks without looking at any picture.

        Args:
            state: (B, S) environment units.
            action: (B, H, A) environment units.
            valid: bool (B, H), false on steps that were not executed.

        Returns:
            ``state`` (B, S_model), ``action`` and ``action_mask`` (B, H, A_model), ``raw_state``
            (B, S).
        """
        batch = {"observation.state": state, "task": [""] * len(state), "action": action}
        inputs, config = self.preprocess(batch), self.network.config
        real = valid[..., None] & (torch.arange(config.max_action_dim) < action.shape[-1])
        return {
            STATE: self._padded(inputs["observation.state"], config.max_state_dim),
            "action": self._padded(inputs["action"], config.max_action_dim),
            "action_mask": real.float(),
            "raw_state": state,
        }

    def flow_matching_loss(self, encoding: Encoding, action: Tensor, action_mask: Tensor) -> Tensor:
        """The class' own flow-matching loss, over real values, on kept tokens.

        Args:
            encoding: Of B observations.
            action: (B, H, A_model), from :meth:`preprocess_targets`.
            action_mask: (B, H, A_model), 1 where a value is real.

        Returns:
            Scalar. Noise and time come from torch's global generator, as in LeRobot's class.
        """
        flow, action = self.network.flow, action.to(self.device, torch.float32)
        mask = action_mask.to(self.device)
        noise = flow.sample_noise(action.shape, action.device)
        time = flow.sample_time(len(action), action.device)
        share = time[:, None, None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.network.trains_prefix()):
            prefix = self._prefix(encoding)
        noisy = share * noise + (1 - share) * action
        velocity = self.network.own_velocity(prefix, prefix.cache(), noisy, time)
        losses = F.mse_loss(noise - action, velocity, reduction="none") * mask
        return losses.sum() / mask.sum().clamp(min=1)

    @contextmanager
    def gradient_checkpointing(self, enabled: bool) -> Iterator[None]:
        """Within it the expert keeps no activations inside its feed-forward layers.

        Its attention appends to the prefix's cache, which a second pass must not do again.
        """
        layers = [layer.mlp for layer in self.network.expert.layers] if enabled else []
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class' own again

    def _prefix(self, encoding: Encoding) -> Prefix:
        """Of a fresh encoding as it was computed, of kept tokens computed now."""
        found = Prefix.from_named(encoding.inputs)
        if found is not None:
            return found
        state = encoding.inputs[STATE]
        return self.network.prefill(encoding.tokens, encoding.attention_mask, state)[1]

    def _normalised_tail(self, encoding: Encoding, actions: Tensor) -> Tensor:
        """A tail (B, T, A) in environment units as a whole normalised chunk (B, H, A_model).

        Behind its end it holds its last action; what the robot does not use is zero.
        """
        whole = held(actions.cpu(), self.spec.action_horizon)
        valid = torch.ones(whole.shape[:2], dtype=torch.bool)
        return self.preprocess_targets(encoding.state.cpu(), whole, valid)["action"]

    @staticmethod
    def _padded(values: Tensor, width: int) -> Tensor:
        return F.pad(values.float(), (0, width - values.shape[-1]))
