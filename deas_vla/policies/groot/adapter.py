"""GR00T N1.7 through LeRobot's own classes: model, processors and normalisation untouched."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deas_vla.digests import update_with_weights
from deas_vla.errors import DeasError
from deas_vla.policies.continuing import held
from deas_vla.policies.groot.checkpoint import (
    NO_REMOTE_CODE,
    camera_order,
    check_fit,
    named_groups,
    read_config,
    statistics,
    tensor_names,
    valid_horizon,
)
from deas_vla.policies.groot.flow import Flow
from deas_vla.policies.groot.parts import trainable_parts
from deas_vla.policies.groot.processors import (
    build_processors,
    image_size,
    on_host,
    processor_settings,
    quiet,
    reference_state,
)
from deas_vla.policies.groot.recomputing import recomputed
from deas_vla.policies.groot.training_inputs import (
    BACKBONE_INPUTS,
    GrootTrainingInputs,
    own_augmentation,
)
from deas_vla.policies.lora import active_weights, trains, unwrapped
from deas_vla.policies.places import checkpoint_directory, shipped
from deas_vla.policies.vla import Encoding, Tail, VLASpec


class GrootVLA:
    """One GR00T N1.7 checkpoint, raw layout, behind the ``VLA`` protocol.

    Use :meth:`from_pretrained`. ``model`` is LeRobot's ``GR00TN17``, wrapped by PEFT in place when
    an adapter is loaded or trained.
    """

    lora_parts: Mapping[str, str]
    # What knows the embodiment is no plain linear layer: PEFT trains and keeps whole copies.
    projectors: tuple[str, ...] = ("state_encoder", "action_encoder", "action_decoder")

    def __init__(
        self,
        model: Any,
        preprocessor: Any,
        postprocessor: Any,
        spec: VLASpec,
        name_or_path: str,
    ) -> None:
        self.model = model
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor
        self.flow = Flow()
        self.name_or_path = name_or_path
        self.lora_parts = trainable_parts(self.groot)
        self._spec = spec

    @property
    def spec(self) -> VLASpec:
        return self._spec

    @property
    def groot(self) -> Any:
        """LeRobot's ``GR00TN17`` itself, below any PEFT wrapper."""
        return unwrapped(self.model)

    @property
    def device(self) -> torch.device:
        return self.groot.device

    @property
    def dtype(self) -> torch.dtype:
        return self.groot.dtype

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
    ) -> "GrootVLA":
        """Load a raw GR00T N1.7 checkpoint (``config.json``, safetensors, processor side files).

        Args:
            path: Local directory or Hub id, such as ``nvidia/GR00T-N1.7-3B``.
            embodiment: Embodiment tag; one without statistics in the checkpoint is normalised by
                ``dataset_stats``.
            image_keys: The dataset's or environment's ``observation.images.*`` keys.
            state_dim: Proprioceptive dimensions S of the dataset or environment.
            action_dim: Action dimensions A likewise.
            dataset_stats: LeRobot's per-key statistics, for an embodiment new to the checkpoint.
            device: Where the model runs.
            dtype: Of the weights.
            denoising_steps: Flow steps per chunk; the checkpoint's own (4) when left out.

        Raises:
            DeasError: Not such a checkpoint, or cameras or dimensions that do not fit it.
        """
        from lerobot.policies.groot.groot_n1_7 import GR00TN17

        root = checkpoint_directory(path)
        config = read_config(root, path)
        backbone = shipped(root, config["model_name"])
        check_fit(root, config, embodiment, image_keys, state_dim, action_dim)
        if dataset_stats is None and not statistics(root, embodiment):
            raise DeasError(
                f"checkpoint '{path}' has no statistics for embodiment '{embodiment}': use one of "
                "its own (--policy.embodiment), or a --bundle that was trained on your dataset"
            )
        overrides = {} if denoising_steps is None else {"num_inference_timesteps": denoising_steps}
        with quiet():
            model = GR00TN17.from_pretrained(
                str(root),
                model_name=backbone,
                use_flash_attention=False,
                transformers_loading_kwargs=NO_REMOTE_CODE,
                dtype=dtype,
                **overrides,
            ).to(device)
        if not any(name.endswith("lm_head.weight") for name in tensor_names(root)):
            # Nothing reads it, and LeRobot does not save it: it would be another one on each load,
            # and the backbone's fingerprint with it.
            model.backbone.model.tie_weights()
        return cls.assemble(
            model,
            root,
            backbone,
            embodiment=embodiment,
            image_keys=image_keys,
            state_dim=state_dim,
            action_dim=action_dim,
            dataset_stats=dataset_stats,
            name_or_path=str(path),
        )

    @classmethod
    def assemble(
        cls,
        model: Any,
        root: Path,
        backbone: str,
        *,
        embodiment: str,
        image_keys: tuple[str, ...],
        state_dim: int,
        action_dim: int,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        name_or_path: str,
    ) -> "GrootVLA":
        """A loaded ``GR00TN17``, frozen, with the processors of ``root`` and ``backbone``.

        Arguments as of :meth:`from_pretrained`; ``backbone`` is where tokenizer and image
        processor come from.
        """
        model.requires_grad_(False).eval()
        preprocessor, postprocessor = build_processors(
            root,
            backbone,
            model.config,
            embodiment=embodiment,
            image_keys=image_keys,
            state_dim=state_dim,
            action_dim=action_dim,
            dataset_stats=dataset_stats,
            device=str(model.device),
        )
        vision = model.backbone.model.config.vision_config
        pixels = vision.patch_size * vision.spatial_merge_size  # of one token, either way
        height, width = image_size(preprocessor)
        spec = VLASpec(
            embodiment=embodiment,
            image_keys=camera_order(root, embodiment, image_keys),
            state_dim=state_dim,
            action_dim=action_dim,
            action_horizon=valid_horizon(root, embodiment, model.config.action_horizon),
            noise_shape=(model.config.action_horizon, model.config.max_action_dim),
            token_dim=model.config.backbone_embedding_dim,
            tokens_per_image=(height // pixels, width // pixels),
            state_groups=named_groups(root, embodiment, "state"),
            action_groups=named_groups(root, embodiment, "action"),
        )
        return cls(model, preprocessor, postprocessor, spec, name_or_path)

    def for_embodiment(self, **robot: Any) -> "GrootVLA":
        """The same network for another robot; arguments as of :meth:`from_pretrained`."""
        root = checkpoint_directory(self.name_or_path)
        config = read_config(root, self.name_or_path)
        known = ("embodiment", "image_keys", "state_dim", "action_dim")
        check_fit(root, config, **{name: robot[name] for name in known})
        view = self.assemble(
            self.groot,
            root,
            shipped(root, config["model_name"]),
            name_or_path=self.name_or_path,
            **robot,
        )
        view.model = self.model
        return view

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that the processor brings every picture to, pixels."""
        return image_size(self.preprocessor)

    def backbone_fingerprint(self) -> str:
        """SHA-256 over the backbone's weights and the processor's settings."""
        digest = hashlib.sha256()
        update_with_weights(digest, active_weights(self.model, self.groot.backbone))
        settings = processor_settings(self.preprocessor)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def head_fingerprint(self) -> str:
        """SHA-256 over the action head, adapter included, and its number of denoising steps."""
        head = self.groot.action_head
        digest = hashlib.sha256(str(head.num_inference_timesteps).encode())
        update_with_weights(digest, active_weights(self.model, head))
        return digest.hexdigest()

    def preprocess(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """LeRobot's preprocessor: pictures, language, state and, if there, ``action`` (B, H, A)."""
        return self.preprocessor(dict(batch))

    def host_preprocessor(self) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
        return on_host(self.preprocessor, self.dtype)

    @torch.no_grad()
    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        return self.encode_inputs(self.preprocess(observation), observation["observation.state"])

    @torch.no_grad()
    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        """The backbone's half of :meth:`encode`, for preprocessed ``inputs``."""
        return self._encode(inputs, state)

    def training_inputs(self, augmented: bool) -> GrootTrainingInputs:
        root = checkpoint_directory(self.name_or_path)
        own = own_augmentation(root, self.preprocessor) if augmented else None
        return GrootTrainingInputs(self.preprocessor, self.spec.state_dim, self.groot.dtype, own)

    def encode_batch(self, batch: Mapping[str, Tensor]) -> Encoding:
        """See `VLA`; a frozen part of the backbone stays in evaluation mode."""
        backbone = self.groot.backbone
        backbone.tune_llm = trains(backbone.language_model)
        backbone.tune_visual = trains(backbone.visual)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(backbone)):
            return self._encode(batch, batch["raw_state"])

    def _encode(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        backbone_inputs, _ = self.groot.prepare_input({k: inputs[k] for k in BACKBONE_INPUTS})
        output = self.groot.backbone(backbone_inputs)
        return Encoding(
            tokens=output["backbone_features"],
            attention_mask=output["backbone_attention_mask"],
            image_mask=output["image_mask"],
            inputs={key: inputs[key] for key in ("state", "embodiment_id")},
            state=torch.as_tensor(state, dtype=torch.float32).reshape(
                len(output["image_mask"]), -1
            ),
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
        backbone_output, action_input = self.head_inputs(encoding)
        noise = noise.to(self.groot.device, self.groot.dtype)
        return self.flow.sample(
            self.groot.action_head, backbone_output, action_input, noise, tail
        )  # (B, N, H, A_model)

    def decode(self, normalised: Tensor, state: Tensor) -> Tensor:
        """Undo the policy's normalisation: (B, N, H, A_model) to float32 (B, N, H, A).

        Relative actions are added to the raw ``state`` (B, S) of their own observation.
        """
        batch, candidates = normalised.shape[:2]
        with reference_state(self.postprocessor, state.repeat_interleave(candidates, dim=0)):
            chunks = self.postprocessor(normalised.flatten(0, 1).float())
        chunks = chunks[..., : self.spec.action_horizon, : self.spec.action_dim]
        return chunks.unflatten(0, (batch, candidates)).to(torch.float32)

    def compile(self) -> None:
        self.flow = Flow(compile=True)

    def _normalised_tail(self, encoding: Encoding, actions: Tensor) -> Tensor:
        """A tail (B, T, A) in environment units as a whole normalised chunk (B, H, A_model).

        Behind its end it holds its last action; what the embodiment does not use is zero.
        """
        whole = held(actions.cpu(), self.spec.action_horizon)
        valid = torch.ones(whole.shape[:2], dtype=torch.bool)
        return self.preprocess_targets(encoding.state.cpu(), whole, valid)["action"]

    def flow_matching_loss(self, encoding: Encoding, action: Tensor, action_mask: Tensor) -> Tensor:
        """GR00T's flow-matching loss of the action head on frozen tokens.

        Args:
            encoding: Of B observations.
            action: (B, H, A_model) normalised and padded, from :meth:`preprocess`.
            action_mask: (B, H, A_model), 1 where a value is real.

        Returns:
            Scalar. Noise and time come from torch's global generator, as in LeRobot's class.
        """
        backbone_output, action_input = self.head_inputs(encoding)
        to = {"device": self.groot.device, "dtype": self.groot.dtype}
        action_input["action"], action_input["action_mask"] = action.to(**to), action_mask.to(**to)
        return self.groot.action_head(backbone_output, action_input)["loss"]

    def gradient_checkpointing(self, enabled: bool) -> AbstractContextManager[None]:
        return recomputed(self.groot) if enabled else nullcontext()

    def preprocess_targets(self, state: Tensor, action: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Normalise and pad states and chunks without looking at any picture.

        Args:
            state: (B, S) environment units.
            action: (B, H, A) environment units.
            valid: bool (B, H), false on steps that were not executed.

        Returns:
            ``state`` (B, 1, S_model), ``action`` and ``action_mask`` (B, H_model, A_model),
            ``embodiment_id`` (B,), ``raw_state`` (B, S).
        """
        batch = {
            "observation.state": state,
            "task": [""] * len(state),
            "action": action,
            "action_is_pad": ~valid,
        }
        with quiet():  # LeRobot would miss the cameras
            inputs = self.preprocess(batch)
        kept = {key: inputs[key] for key in ("state", "embodiment_id", "action", "action_mask")}
        return kept | {"raw_state": state}

    @staticmethod
    def encoding_from(batch: Mapping[str, Tensor]) -> Encoding:
        """An encoding from cached tokens and preprocessed states."""
        return Encoding(
            tokens=batch["tokens"],
            attention_mask=batch["token_mask"],
            image_mask=batch["image_mask"],
            inputs={"state": batch["state"], "embodiment_id": batch["embodiment_id"]},
            state=batch["raw_state"],
        )

    def head_inputs(self, encoding: Encoding) -> tuple[Any, Any]:
        """An encoding of B observations as LeRobot's action head takes it: tokens, other inputs."""
        device, dtype = self.groot.device, self.groot.dtype
        backbone_output = _batch_feature(
            backbone_features=encoding.tokens.to(device, dtype),
            backbone_attention_mask=encoding.attention_mask,
            image_mask=encoding.image_mask,
        )
        action_input = _batch_feature(
            state=encoding.inputs["state"].to(device, dtype),
            embodiment_id=encoding.inputs["embodiment_id"].to(device),
        )
        return backbone_output, action_input


def _batch_feature(**data: Any) -> Any:
    from transformers.feature_extraction_utils import BatchFeature

    return BatchFeature(data=data)
