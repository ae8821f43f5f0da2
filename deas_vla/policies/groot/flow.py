"""How noise becomes chunks: by LeRobot's own code, or for several candidates fused."""

import logging
from typing import Any

import torch
from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.policies.groot.fused import Context, FusedHead
from deas_vla.policies.groot.structure import mismatch
from deas_vla.policies.vla import Tail

_log = logging.getLogger(__name__)


class Flow:
    """Samples from one action head.

    One candidate goes through LeRobot's own method, so that it is the base policy to the last bit;
    several go through `FusedHead`, where the head's structure is the expected one.

    Args:
        compile: Compile the fused head, for one candidate too: then results agree with the base
            policy to rounding.
        fuse: Whether the fused head may be used at all.
    """

    def __init__(self, *, compile: bool = False, fuse: bool = True) -> None:
        self.compile, self.fuse = compile, fuse
        self._fused: FusedHead | None = None
        self._told: str | None = None

    def sample(
        self, head: Any, backbone: Any, inputs: Any, noise: Tensor, tail: Tail | None = None
    ) -> Tensor:
        """Denoise candidates.

        Args:
            head: LeRobot's ``GR00TN17ActionHead``, in evaluation mode.
            backbone: Its ``backbone_output``: features (B, L, D) and masks.
            inputs: Its ``action_input``: state and embodiment.
            noise: (B, N, H, A_model) standard normal, of the head's dtype and on its device.
            tail: In the policy's normalisation: (B, H, A_model).

        Returns:
            (B, N, H, A_model) in the policy's normalisation.

        Raises:
            DeasError: A tail, and a head that is not built as expected.
        """
        features = head._encode_features(backbone, inputs)
        reason = None
        if noise.shape[1] > 1 or tail is not None or self.compile:
            reason = mismatch(head) if self.fuse else "the fused head is switched off"
            if reason is None:
                context = self._head(head).prepare(
                    features.backbone_features,
                    backbone.backbone_attention_mask,
                    backbone.image_mask,
                    features.state_features,
                    inputs.embodiment_id,
                )
                if tail is None:
                    return self._head(head).denoise(context, noise)
                return self._continue(head, context, noise, tail)
            if tail is not None:
                raise DeasError(
                    f"this action head cannot go on from an earlier chunk ({reason}): leave out "
                    "warm starts and prev_chunk_left_over"
                )
            if self.fuse:
                self._tell(reason)
        return replicate(head, features, backbone, inputs, noise)

    def _head(self, head: Any) -> FusedHead:
        if self._fused is None or self._fused.head is not head:
            self._fused = FusedHead(head, compile=self.compile)
        return self._fused

    def _tell(self, reason: str) -> None:
        if self._told != reason:
            self._told = reason
            _log.warning("the action head runs as LeRobot has it, not fused: %s", reason)

    def _continue(self, head: Any, context: Context, noise: Tensor, tail: Tail) -> Tensor:
        """Fresh and warm candidates beside each other, the warm ones from a later step on."""
        fused, steps = self._head(head), len(context.steps)
        begin = min(max(round(tail.progress * steps), 0), steps - 1)
        warm = tail.warm.to(noise.device)
        clean = tail.actions.to(noise.device, noise.dtype)[:, None]  # (B, 1, H, A_model)
        rows = torch.arange(noise.shape[2], device=noise.device)[:, None]  # (H, 1)
        strength = blend(rows, tail.frozen, tail.overlap, head.config.rtc_ramp_rate)
        fresh = torch.where(rows < tail.overlap, clean, noise[:, ~warm])
        fresh = fused.denoise(context, fresh, end=begin, strength=strength.to(noise.dtype))
        time = begin / steps
        started = (1 - time) * noise[:, warm] + time * clean
        started = torch.where(rows < tail.frozen, clean, started)
        both = torch.cat([fresh, started], dim=1)
        strength = torch.stack([strength, (rows >= tail.frozen).to(strength.dtype)])  # (2, H, 1)
        kind = torch.cat([torch.zeros(fresh.shape[1]), torch.ones(started.shape[1])]).long()
        strengths = strength[kind.to(noise.device)].to(noise.dtype)  # (N, H, 1)
        both = fused.denoise(context, both, begin=begin, strength=strengths)
        places = torch.cat([torch.nonzero(~warm), torch.nonzero(warm)]).flatten()
        return both[:, places.argsort()]


def blend(rows: Tensor, frozen: int, overlap: int, ramp_rate: float) -> Tensor:
    """How much of the flow each step of a chunk follows: LeRobot's ramp, float32 (H, 1).

    0 where a step is ``frozen``, 1 from ``overlap`` on, and between them
    ``(1 - exp(-ramp_rate t)) / (1 - exp(-ramp_rate))`` at evenly spaced t inside (0, 1).
    """
    time = torch.linspace(0.0, 1.0, max(overlap - frozen, 0) + 2, device=rows.device)[1:-1]
    ramp = torch.zeros_like(rows, dtype=torch.float32)
    ramp[overlap:] = 1.0
    whole = 1 - torch.exp(torch.tensor(-ramp_rate))
    ramp[frozen:overlap, 0] = (1 - torch.exp(-ramp_rate * time)) / whole
    return ramp


def replicate(head: Any, features: Any, backbone: Any, inputs: Any, noise: Tensor) -> Tensor:
    """LeRobot's own method on B * N independent rows; arguments and result as `Flow.sample`.

    It draws its noise from torch's global generator. Its real-time-chunking entry takes a prefix
    of the trajectory instead: a prefix over the whole horizon, none of it frozen and blended at
    full strength at once, is exactly "start from this noise".
    """
    from transformers.feature_extraction_utils import BatchFeature

    batch, candidates, horizon, _ = noise.shape
    repeat = lambda x: x.repeat_interleave(candidates, dim=0)  # noqa: E731 (B, ...) -> (B*N, ...)
    out = head.get_action_with_features(
        backbone_features=repeat(features.backbone_features),
        state_features=repeat(features.state_features),
        embodiment_id=repeat(inputs.embodiment_id),
        backbone_output=BatchFeature(
            data={
                "image_mask": repeat(backbone.image_mask),
                "backbone_attention_mask": repeat(backbone.backbone_attention_mask),
            }
        ),
        action_input={"action": noise.flatten(0, 1)},
        options={
            "action_horizon": horizon,
            "rtc_overlap_steps": horizon,
            "rtc_frozen_steps": 0,
            "rtc_ramp_rate": 1e9,
        },
    )
    return out["action_pred"].unflatten(0, (batch, candidates))
