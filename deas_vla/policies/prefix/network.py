"""A policy whose action expert attends to the keys and values of an observation's prefix.

The prefix is what the vision-language model makes of pictures and instruction. LeRobot's classes
compute it once for each chunk, then denoise B chunks over it. Here N candidates of an observation
are denoised over one prefix: their tokens stand behind each other as one long suffix, in which a
mask lets each candidate see the prefix and itself alone. Nothing of the prefix is copied, and
LeRobot's own modules run, so results agree with N separate ones to rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

STATE = "state"  # names in an encoding's inputs
_LAYER, _MASK = "prefix.layer", "prefix.mask"
_TOGETHER = 16  # candidates in one suffix: what they don't see of each other costs time and memory


@dataclass(frozen=True)
class Prefix:
    """What the action expert reads of B observations.

    Attributes:
        layers: Of each layer its keys and values, (B, heads, L', D_head) each.
        mask: bool (B, L'), false on padding.
        state: float32 (B, S_model), normalised and padded.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    state: Tensor

    def cache(self) -> Any:
        """A ``DynamicCache`` of its own, to which a suffix may be appended."""
        from transformers import DynamicCache

        return DynamicCache([(key, value, None) for key, value in self.layers])

    def named(self) -> dict[str, Tensor]:
        """As the inputs of an encoding."""
        kept = {_MASK: self.mask, STATE: self.state}
        for k, (key, value) in enumerate(self.layers):
            kept |= {f"{_LAYER}.{k}.key": key, f"{_LAYER}.{k}.value": value}
        return kept

    @classmethod
    def from_named(cls, inputs: Mapping[str, Tensor]) -> "Prefix | None":
        """Out of an encoding's inputs; None where only the state was kept."""
        if _MASK not in inputs:
            return None
        count = sum(name.startswith(_LAYER) for name in inputs) // 2
        layers = (
            (inputs[f"{_LAYER}.{k}.key"], inputs[f"{_LAYER}.{k}.value"]) for k in range(count)
        )
        return cls(tuple(layers), inputs[_MASK], inputs[STATE])


class PrefixNetwork(ABC):
    """The computation of one family, by LeRobot's modules.

    Attributes:
        policy: LeRobot's, below any PEFT wrapper.
        backbone: Beginning of the names of its frozen weights.
    """

    backbone: ClassVar[str]

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @property
    def flow(self) -> Any:
        """LeRobot's flow-matching network."""
        return self.policy.model

    @property
    def config(self) -> Any:
        """LeRobot's configuration of the network."""
        return self.flow.config

    @property
    @abstractmethod
    def steps(self) -> int:
        """Denoising steps of a chunk."""

    @property
    @abstractmethod
    def expert(self) -> Any:
        """The transformer of the action expert."""

    @property
    @abstractmethod
    def tokens_per_image(self) -> tuple[int, int]:
        """(height, width) of the token grid of one picture."""

    @property
    @abstractmethod
    def token_dim(self) -> int:
        """Width D of the vision-language model."""

    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) that every picture is brought to, pixels."""

    @abstractmethod
    def embed(self, reader: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures and words as the language model takes them.

        Args:
            reader: LeRobot's policy with the configuration of this robot, for its cameras.
            inputs: What the preprocessor made of B observations.

        Returns:
            Tokens (B, L, D), 0 on padding; bool (B, L), false on padding; bool (B, L), true on
            pictures.
        """

    @abstractmethod
    def prefill(self, tokens: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Prefix]:
        """Run the language model over a prefix.

        Args:
            tokens: (B, L, D), from `embed`.
            mask: bool (B, L), false on padding.
            state: float32 (B, S_model).

        Returns:
            Its output (B, L, D), and what the expert reads.
        """

    @abstractmethod
    def own_velocity(self, prefix: Prefix, cache: Any, actions: Tensor, time: Tensor) -> Tensor:
        """LeRobot's own denoising step: (B, H, A_model) at times (B,), of the same shape."""

    @abstractmethod
    def suffix(
        self, state: Tensor, actions: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """M chunks as tokens of the expert.

        Returns:
            Tokens (M, S, W); bool (S, S), whether token i sees token j; what the expert's norms
            are conditioned on (M, W), or None.
        """

    @abstractmethod
    def attend(
        self, cache: Any, tokens: Tensor, mask: Tensor, positions: Tensor, condition: Tensor | None
    ) -> Tensor:
        """The expert over a suffix.

        Args:
            cache: Of the prefix; the suffix may be appended to it.
            tokens: (B, M, W).
            mask: bool (B, M, L' + M), whether token i sees token j of prefix and suffix.
            positions: int (B, M).
            condition: (B, W) or None.

        Returns:
            (B, M, W).
        """

    def language_dtype(self) -> torch.dtype:
        """Of the vision-language model's weights, as far as they are not kept in float32."""
        own = (p for name, p in self.policy.named_parameters() if name.startswith(self.backbone))
        return min({p.dtype for p in own}, key=lambda dtype: dtype.itemsize)

    def trains_prefix(self) -> bool:
        """Whether something that the prefix depends on is trained."""
        return False

    def sample(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """LeRobot's own integration of its own step: (B, H, A_model) from noise."""
        from lerobot.policies.common.flow_matching import euler_integrate

        cache = prefix.cache()
        return euler_integrate(
            lambda actions, time: self.own_velocity(prefix, cache, actions, time),
            noise,
            self.steps,
        )

    def denoise(
        self,
        prefix: Prefix,
        actions: Tensor,
        /,
        *,
        begin: int = 0,
        end: int | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """Follow the flow from ``actions``: arguments and result as `continuing.Denoise`."""
        pieces = []
        for at in range(0, actions.shape[1], _TOGETHER):
            part = slice(at, at + _TOGETHER)
            share = strength if strength is None or strength.ndim == 2 else strength[part]
            pieces.append(self._denoise(prefix, actions[:, part], begin, end, share))
        return torch.cat(pieces, dim=1) if pieces else actions

    def _denoise(
        self,
        prefix: Prefix,
        actions: Tensor,
        begin: int,
        end: int | None,
        strength: Tensor | None,
    ) -> Tensor:
        cache, size = prefix.cache(), -1.0 / self.steps
        for step in range(self.steps)[begin:end]:
            time = torch.tensor(1.0 + step * size, dtype=torch.float32, device=actions.device)
            change = size * self.velocity(prefix, cache, actions, time)
            actions = actions + (change if strength is None else change * strength)
        return actions

    def velocity(self, prefix: Prefix, cache: Any, actions: Tensor, time: Tensor) -> Tensor:
        """The flow at ``actions`` (B, N, H, A_model) and one ``time`` (), of the same shape."""
        batch, count, horizon, _ = actions.shape
        length = prefix.mask.shape[1]
        state = prefix.state.repeat_interleave(count, dim=0)
        tokens, sees, condition = self.suffix(
            state, actions.flatten(0, 1), time.expand(batch * count)
        )
        own = tokens.shape[1]
        apart = torch.eye(count, dtype=torch.bool, device=sees.device)[:, None, :, None]
        blocks = (apart & sees[:, None]).reshape(count * own, count * own)
        mask = torch.cat(
            [
                prefix.mask[:, None].expand(batch, count * own, length),
                blocks.expand(batch, -1, -1),
            ],
            dim=2,
        )
        first = prefix.mask.sum(dim=1, keepdim=True)
        positions = first + torch.arange(own, device=first.device).repeat(count)
        if condition is not None:
            condition = condition[::count]
        tokens = tokens.unflatten(0, (batch, count)).flatten(1, 2)
        out = self.attend(cache, tokens, mask, positions, condition)
        cache.crop(length)
        out = out.unflatten(1, (count, own))[:, :, -horizon:].to(torch.float32)
        velocity: Tensor = self.flow.action_out_proj(out)
        return velocity


def without_padding(tokens: Tensor, mask: Tensor) -> Tensor:
    """Tokens (B, L, D) with 0 where ``mask`` (B, L) is false, by which padding is known again."""
    return torch.where(mask[..., None], tokens, 0.0)


def not_padding(tokens: Tensor) -> Tensor:
    """bool (B, L), of tokens that `without_padding` has been over."""
    return (tokens != 0).any(dim=-1)


def picture_mask(images: int, tokens: int, around: tuple[int, int], length: int) -> Tensor:
    """bool (L,), true on the tokens of ``images`` pictures at the begin of ``length`` tokens.

    ``around`` are how many others stand before and behind each picture.
    """
    before, behind = around
    one = [False] * before + [True] * tokens + [False] * behind
    return torch.tensor(one * images + [False] * (length - len(one) * images))
