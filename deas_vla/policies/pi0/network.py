"""pi0's and pi0.5's computation: PaliGemma reads the prefix, a second Gemma is the expert."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deas_vla.policies.prefix.network import (
    Prefix,
    PrefixNetwork,
    picture_mask,
    without_padding,
)


class Pi0Network(PrefixNetwork):
    """LeRobot's ``PI0Policy``: the state is the suffix's first token, which no candidate changes
    but each carries along."""

    backbone: ClassVar[str] = "model.paligemma_with_expert.paligemma."

    @property
    def steps(self) -> int:
        return int(self.config.num_inference_steps)

    @property
    def expert(self) -> Any:
        return self.flow.paligemma_with_expert.gemma_expert.model

    @property
    def _paligemma(self) -> Any:
        return self.flow.paligemma_with_expert.paligemma

    @property
    def tokens_per_image(self) -> tuple[int, int]:
        patch = int(self._paligemma.config.vision_config.patch_size)
        height, width = self.image_size()
        return height // patch, width // patch

    @property
    def token_dim(self) -> int:
        return int(self._paligemma.config.text_config.hidden_size)

    def image_size(self) -> tuple[int, int]:
        height, width = self.config.image_resolution
        return int(height), int(width)

    def embed(self, reader: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images, image_masks = reader._preprocess_images(dict(inputs))
        tokens, mask, _ = self.flow.embed_prefix(
            images,
            image_masks,
            inputs["observation.language.tokens"],
            inputs["observation.language.attention_mask"],
        )
        height, width = self.tokens_per_image
        pictures = picture_mask(len(images), height * width, (0, 0), tokens.shape[1])
        pictures = pictures.to(mask.device).expand(len(mask), -1)
        return without_padding(tokens, mask), mask, pictures

    def prefill(self, tokens: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Prefix]:
        from lerobot.policies.common.vla_utils import prepare_attention_masks_4d

        self._paligemma.model.language_model.config._attn_implementation = "eager"
        (output, _), cache = self.flow.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(mask[:, None] & mask[:, :, None]),
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[tokens, None],
            use_cache=True,
        )
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return output, Prefix(layers, mask, state)

    def own_velocity(self, prefix: Prefix, cache: Any, actions: Tensor, time: Tensor) -> Tensor:
        velocity: Tensor = self.flow.denoise_step(
            prefix_pad_masks=prefix.mask,
            past_key_values=cache,
            x_t=actions,
            timestep=time,
            **self.read_beside(prefix.state),
        )
        return velocity

    def read_beside(self, state: Tensor) -> dict[str, Tensor]:
        """What the expert reads besides a chunk and its time."""
        return {"state": state}

    def suffix(
        self, state: Tensor, actions: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        tokens, pads, attends, condition = self.flow.embed_suffix(
            noisy_actions=actions, timestep=time, **self.read_beside(state)
        )
        return tokens, make_att_2d_masks(pads[:1], attends[:1])[0], condition

    def attend(
        self, cache: Any, tokens: Tensor, mask: Tensor, positions: Tensor, condition: Tensor | None
    ) -> Tensor:
        from lerobot.policies.common.vla_utils import prepare_attention_masks_4d

        self.expert.config._attn_implementation = "eager"
        (_, out), _ = self.flow.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(mask),
            position_ids=positions,
            past_key_values=cache,
            inputs_embeds=[None, tokens],
            use_cache=False,
            adarms_cond=[None, condition],
        )
        output: Tensor = out
        return output


class Pi05Network(Pi0Network):
    """LeRobot's ``PI05Policy``: the state stands in the prompt, the time in the expert's norms."""

    def read_beside(self, state: Tensor) -> dict[str, Tensor]:
        return {}
