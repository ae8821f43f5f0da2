"""Several bundles over one resident base, and adapters merged into it.

A base takes gigabytes, an adapter with its critic megabytes: one robot computer, or one server,
holds the base once and changes tasks by changing the adapter.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.config import VLAConfig, load_vla
from deas_vla.policies.lora import (
    check_unmerged,
    load_adapter,
    merged_layers,
    unwrapped,
    use_adapter,
)
from deas_vla.policies.vla import VLA, Encoding, Tail


class AdapterBank(Mapping[str, ValueGuidedPolicy]):
    """Bundles by name, over one base: ``bank["lift"]`` is that bundle's policy.

    A policy makes its own adapter the active one whenever it computes, so that policies may be
    used in any order and always answer as their bundles do; `activate` does it ahead of time.
    Threads wait for each other.

    Args:
        bundles: Directories or Hub ids, by the names they are to have.
        device: Where everything runs; where the first bundle was made when left out.
        base: The base checkpoint, where it no longer is where the bundles say.

    Raises:
        DeasError: As `open_bundle`, or bundles of different bases.
    """

    def __init__(
        self,
        bundles: Mapping[str, str | Path],
        *,
        device: str | None = None,
        base: str | None = None,
    ) -> None:
        self._device, self._path = device, base
        self._lock = threading.RLock()
        self._base: VLA | None = None
        self._made: VLAConfig | None = None
        self._active: str | None = None
        self._count = 0
        self._policies: dict[str, ValueGuidedPolicy] = {}
        for name, bundle in bundles.items():
            self.add(name, bundle)

    def __getitem__(self, name: str) -> ValueGuidedPolicy:
        if name not in self._policies:
            raise DeasError(f"adapter '{name}' is unknown: use one of {sorted(self._policies)}")
        return self._policies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)

    def add(self, name: str, bundle: str | Path, revision: str | None = None) -> ValueGuidedPolicy:
        """Load one more bundle; arguments as of `open_bundle`.

        Raises:
            DeasError: As there; a name that is taken, or a bundle of another base.
        """
        if name in self._policies:
            raise DeasError(f"adapter '{name}' is there already: choose another name")
        with self._lock:
            self._policies[name] = ValueGuidedPolicy.from_pretrained(
                bundle, revision=revision, device=self._device, base=self._path, load=self._load
            )
        return self._policies[name]

    def activate(self, name: str) -> ValueGuidedPolicy:
        """Switch to a bundle's adapter now, rather than at its next decision."""
        policy = self[name]
        with cast(ResidentVLA, policy.vla).active():
            return policy

    @contextmanager
    def using(self, view: VLA, adapter: str | None) -> Iterator[None]:
        """Within it ``adapter`` is the active one for ``view``, and nobody else computes."""
        assert self._base is not None
        with self._lock:
            view.model = self._base.model
            if self._active != adapter:
                use_adapter(view.model, adapter)
                self._active = adapter
            yield

    def _load(
        self,
        config: VLAConfig,
        *,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None,
        adapter: Path | None,
        device: str,
    ) -> VLA:
        """What `load_vla` does, over the base that is there."""
        if self._base is None:
            self._base = load_vla(config, dataset_stats=dataset_stats, device=device)
            self._made, self._device = replace(config), device
        assert self._made is not None
        for what in ("family", "path", "dtype", "denoising_steps"):
            here, there = getattr(self._made, what), getattr(config, what)
            if here != there:
                raise DeasError(
                    f"vla.{what} is {there!r} in this bundle and {here!r} in the bank's others: "
                    "adapters share one base; open it by itself"
                )
        view = self._base.for_embodiment(
            embodiment=config.embodiment,
            image_keys=tuple(config.image_keys),
            state_dim=config.state_dim,
            action_dim=config.action_dim,
            dataset_stats=dataset_stats,
        )
        name = None
        if adapter is not None:
            name = f"adapter{self._count}"
            self._count += 1
            self._base.model = load_adapter(self._base.model, adapter, name)
            self._active = name
        return cast(VLA, ResidentVLA(view, self, name))


class ResidentVLA:
    """A bundle's view of a network that it shares: whatever computes, uses its own adapter.

    Args:
        vla: The view, with the bundle's own processors.
        bank: Whose network it is.
        adapter: Its adapter in the network; None for the base as it is.
    """

    def __init__(self, vla: VLA, bank: AdapterBank, adapter: str | None) -> None:
        self._vla, self._bank, self._adapter = vla, bank, adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vla, name)

    def active(self) -> AbstractContextManager[None]:
        """Within it this view's adapter is the active one; see `AdapterBank.using`."""
        return self._bank.using(self._vla, self._adapter)

    @property
    def model(self) -> Any:
        with self.active():
            return self._vla.model

    def compile(self) -> None:
        """Raises DeasError: whether compiled code follows a switch has not been shown."""
        raise DeasError(
            "speed.compile is true: a bank's adapters run uncompiled; use speed.compile=false, or "
            "open this bundle by itself"
        )

    def backbone_fingerprint(self) -> str:
        with self.active():
            return self._vla.backbone_fingerprint()

    def head_fingerprint(self) -> str:
        with self.active():
            return self._vla.head_fingerprint()

    def encode(self, observation: Mapping[str, Any]) -> Encoding:
        with self.active():
            return self._vla.encode(observation)

    def encode_inputs(self, inputs: Mapping[str, Any], state: Tensor) -> Encoding:
        with self.active():
            return self._vla.encode_inputs(inputs, state)

    def sample(self, encoding: Encoding, noise: Tensor, tail: Tail | None = None) -> Tensor:
        with self.active():
            return self._vla.sample(encoding, noise, tail)


class Merge:
    """A policy's LoRA folded into its base's weights, so that no adapter is computed any more.

    Chunks agree with the unmerged policy's to rounding. Modules that were trained whole stay beside
    the base. `undo`, or the end of a ``with`` block, brings back every bit: the base's own weights
    are kept on the CPU meanwhile.

    Args:
        policy: Of a bundle opened by itself.

    Raises:
        DeasError: No adapter, one of a bank's, or merged already.
    """

    def __init__(self, policy: ValueGuidedPolicy) -> None:
        if isinstance(policy.vla, ResidentVLA):
            raise DeasError("adapters of a bank share their base: open this bundle by itself")
        self._model = policy.vla.model
        if unwrapped(self._model) is self._model:
            raise DeasError(f"the policy over {policy.config.vla.path} has no adapter to merge")
        check_unmerged(self._model)
        weights = merged_layers(self._model)
        self._kept = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        self._model.merge_adapter(safe_merge=True)

    def __enter__(self) -> "Merge":
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    @torch.no_grad()
    def undo(self) -> None:
        """Take the adapter out again: every weight is what it was, to the last bit."""
        self._model.unmerge_adapter()
        for name, tensor in merged_layers(self._model).items():
            tensor.copy_(self._kept[name])
