"""A policy in another process or environment, with a frozen backbone of our own beside it.

The server samples chunks, whatever it is (GR00T N1.5 or N1.6 in NVIDIA's package, our own server);
the backbone here gives the critic its features. The server's own generator decides what is
sampled: N = 1 is what it would have answered anyway.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.policies.remote.client import PolicyClient
from deas_vla.policies.remote.layout import WireLayout, wire_layout
from deas_vla.policies.vla import VLA, Encoding, Tail, TrainingInputs, VLASpec

_KEPT = "remote."  # what an encoding carries of the observation itself
_SEED_SHAPE = (1, 8)  # noise here only seeds the server's
_UNTRAINED = "a remote policy is not trained here: use --policy.steps=0"
_LANGUAGE = "annotation.human.task_description"  # of N1.5's and RoboCasa's flat observations


class RemoteVLA:
    """Chunks from a server, tokens from ``backbone``, behind the ``VLA`` protocol.

    Candidates are asked for in one request where our own server answers, in one batch of equal
    observations where another takes batches, else one by one.

    Args:
        backbone: Of any family; its head is not used.
        client: Of the server, which is asked at once what its actions look like.
        modality_file: The robot's modality.json, where its parts are not called as in the
            backbone's checkpoint.
        action_dim: Action dimensions A that are wanted.

    Raises:
        DeasError: The server is not there, is of another protocol or robot.
    """

    projectors: tuple[str, ...] = ()
    lora_parts: Mapping[str, str] = {}  # nothing here is trained

    def __init__(
        self,
        backbone: VLA,
        client: PolicyClient,
        *,
        action_dim: int,
        modality_file: Path | None = None,
    ) -> None:
        self.backbone = backbone
        self.client = client
        self.model = backbone.model
        self.name_or_path = backbone.name_or_path
        self._layout = wire_layout(backbone.spec, modality_file)
        self._ours = "most_candidates" in client.ping()
        self._batches = True
        self._action_names: tuple[str, ...] = ()
        probe = self._probe()
        if probe.shape[-1] != action_dim:
            raise DeasError(
                f"server at {client.address} has {probe.shape[-1]} action dimensions, "
                f"{action_dim} are wanted: serve a policy of this robot"
            )
        self._spec = replace(
            backbone.spec,
            action_dim=action_dim,
            action_horizon=probe.shape[-2],
            noise_shape=_SEED_SHAPE,
        )

    @property
    def spec(self) -> VLASpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def for_embodiment(self, **robot: Any) -> "RemoteVLA":
        raise DeasError(
            "a remote policy answers for the one robot that its server knows: open a client for "
            "each (--policy.server)"
        )

    @property
    def image_size(self) -> tuple[int, int]:
        return self.backbone.image_size

    def backbone_fingerprint(self) -> str:
        return self.backbone.backbone_fingerprint()

    def head_fingerprint(self) -> str:
        """Of what is known of the server: its address and how it calls its model."""
        said = f"{self.client.address} {self.client.ping().get('model', '')}"
        return hashlib.sha256(said.encode()).hexdigest()

    def preprocess(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.backbone.preprocess(batch)

    def host_preprocessor(self) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
        return self.backbone.host_preprocessor()

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        """The backbone's tokens; the observation itself goes along, for the server."""
        encoding = self.backbone.encode(observation)
        kept = {f"{_KEPT}{k}": _uint8(observation[k]) for k in self.spec.image_keys}
        kept[f"{_KEPT}task"] = _text_tensor(observation["task"])
        return replace(encoding, inputs={**encoding.inputs, **kept})

    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        return self.backbone.encode_inputs(inputs, state)

    def training_inputs(self, augmented: bool) -> TrainingInputs:
        raise DeasError(_UNTRAINED)

    def encode_batch(self, batch: Mapping[str, Tensor]) -> Encoding:
        raise DeasError(_UNTRAINED)

    def encoding_from(self, batch: Mapping[str, Tensor]) -> Encoding:
        return self.backbone.encoding_from(batch)

    def sample(self, encoding: Encoding, noise: Tensor, tail: Tail | None = None) -> Tensor:
        """Ask the server: (B, N, 1, 8) noise, which only seeds it, to (B, N, H, A).

        Raises:
            DeasError: A tail, which no server goes on from; an encoding of cached tokens, which has
                no picture to send; or the server's own.
        """
        if tail is not None:
            raise DeasError(
                "a remote policy cannot go on from a chunk: use --guidance.warm_every=0, and no "
                "real-time chunking"
            )
        if f"{_KEPT}task" not in encoding.inputs:
            raise DeasError(
                "a remote policy needs the pictures, cached features hold none: use "
                "--policy_samples=0, and another --critic.algorithm than qc"
            )
        batch, count = noise.shape[:2]
        look = self._look(encoding)
        seeds = [_seed(row) for row in noise]
        if self._ours:
            chunks = self._all_at_once(look, count, seeds)
        elif self._batches and batch * count > 1:
            rows = np.repeat(np.arange(batch), count)
            chunks = self._ask(look, rows).reshape(batch, count, *self._chunk_shape)
        else:
            one_by_one = [self._ask(look, [row]) for row in range(batch) for _ in range(count)]
            chunks = np.concatenate(one_by_one).reshape(batch, count, *self._chunk_shape)
        return torch.from_numpy(np.ascontiguousarray(chunks, dtype=np.float32))

    def compile(self) -> None:
        """Nothing to compile here: the server's head is the server's."""

    def preprocess_targets(self, state: Tensor, action: Tensor, valid: Tensor) -> dict[str, Tensor]:
        return self.backbone.preprocess_targets(state, action, valid)

    def flow_matching_loss(self, encoding: Encoding, action: Tensor, action_mask: Tensor) -> Tensor:
        raise DeasError(_UNTRAINED)

    def gradient_checkpointing(self, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        return self.spec.action_horizon, self.spec.action_dim

    def _all_at_once(
        self, look: dict[str, NDArray[Any]], count: int, seeds: Sequence[int]
    ) -> NDArray[Any]:
        """(B, N, H, A) from our own server, which chooses none of them."""
        rows = np.arange(len(seeds))
        options = {
            "candidates": count,
            "seed": list(seeds),
            "selection": {"rule": "uniform"},
            "return_candidates": True,
        }
        _, info = self.client.get_action(self._message(look, rows), options)
        return np.concatenate([info["candidates"][name] for name in self._action_names], axis=-1)

    def _ask(self, look: dict[str, NDArray[Any]], rows: Sequence[int] | NDArray[Any]) -> Any:
        """(M, H, A): one chunk for each of these rows, which may repeat."""
        action, _ = self.client.get_action(self._message(look, np.asarray(rows)))
        found = {name.removeprefix("action."): np.asarray(v) for name, v in action.items()}
        names = self._action_names or tuple(found)
        missing = [name for name in names if name not in found]
        if missing:
            raise DeasError(
                f"server at {self.client.address} sent no action '{missing[0]}', it sent "
                f"{sorted(found)}: give its --policy.modality"
            )
        parts = [v if v.ndim == 3 else v[None] for v in (found[name] for name in names)]
        chunk = np.concatenate(parts, axis=-1)
        if len(chunk) != len(rows):
            raise DeasError(
                f"server at {self.client.address} sent {len(chunk)} chunks for {len(rows)} "
                "observations: is it GR00T's?"
            )
        return chunk

    def _look(self, encoding: Encoding) -> dict[str, NDArray[Any]]:
        kept = {k.removeprefix(_KEPT): v for k, v in encoding.inputs.items() if k.startswith(_KEPT)}
        look = {k: v.permute(0, 2, 3, 1).cpu().numpy() for k, v in kept.items() if k != "task"}
        texts = [bytes(row[row > 0].tolist()).decode() for row in kept["task"].cpu()]
        return look | {"state": encoding.state.cpu().numpy(), "task": np.array(texts)}

    def _message(self, look: dict[str, NDArray[Any]], rows: NDArray[Any]) -> dict[str, Any]:
        """An observation of these rows as the server's generation wants it."""
        layout: WireLayout = self._layout
        video = {name: look[key][rows][:, None] for name, key in layout.videos.items()}
        state = {
            name: look["state"][rows][:, None, start:end]
            for name, (start, end) in layout.state.items()
        }
        tasks = [str(task) for task in look["task"][rows]]
        if self.client.generation == "n1.7":
            return {
                "video": video,
                "state": state,
                "language": {"task": [[task] for task in tasks]},
            }
        flat: dict[str, Any] = {f"video.{name}": value for name, value in video.items()}
        flat |= {f"state.{name}": value for name, value in state.items()}
        return flat | {_LANGUAGE: tasks}

    def _probe(self) -> NDArray[Any]:
        """A chunk for black pictures, asked for in pairs: what the server's actions look like."""
        height, width = self.image_size
        spec = self.backbone.spec
        look: dict[str, NDArray[Any]] = {
            key: np.zeros((1, height, width, 3), np.uint8) for key in spec.image_keys
        }
        look |= {"state": np.zeros((1, spec.state_dim), np.float32), "task": np.array(["wait"])}
        named = self.client.get_modality_config().get("action", {}).get("modality_keys", [])
        self._action_names = tuple(name.removeprefix("action.") for name in named)
        try:
            chunk = self._ask(look, [0, 0])
        except DeasError:
            self._batches = False
            chunk = self._ask(look, [0])
        return np.asarray(chunk)


def _seed(noise: Tensor) -> int:
    """From the first candidate's noise (N, 1, 8): the same whatever N is."""
    raw = noise[0].float().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") >> 1


def _uint8(pictures: Tensor) -> Tensor:
    if pictures.dtype == torch.uint8:
        return pictures
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)


def _text_tensor(tasks: Sequence[str]) -> Tensor:
    """Instructions as uint8 (B, L), zeros behind their end."""
    raw = [task.encode() for task in tasks]
    out = torch.zeros(len(raw), max(1, *map(len, raw)), dtype=torch.uint8)
    for row, text in enumerate(raw):
        out[row, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
    return out
