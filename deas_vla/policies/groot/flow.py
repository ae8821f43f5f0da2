"""How noise becomes chunks: by LeRobot's own code, or for several candidates fused."""

import logging
from functools import partial
from typing import Any

from torch import Tensor

from deas_vla.errors import DeasError
from deas_vla.policies.continuing import continued
from deas_vla.policies.groot.fused import FusedHead
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
                return continued(
                    tail,
                    noise,
                    len(context.steps),
                    head.config.rtc_ramp_rate,
                    partial(self._head(head).denoise, context),
                )
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
