"""SmolVLA's computation: the state is the prefix's last token, read by the language model too."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deas_vla.policies.prefix.network import (
    Prefix,
    PrefixNetwork,
    picture_mask,
    without_padding,
)


class SmolNetwork(PrefixNetwork):
    """LeRobot's ``SmolVLAPolicy``.

    Pictures and words do not attend to the state, so that their tokens and the language model's
    output over them depend on neither the state nor what the checkpoint trains of its projection.
    """

    backbone: ClassVar[str] = "model.vlm_with_expert.vlm."

    @property
    def steps(self) -> int:
        return int(self.config.num_steps)

    @property
    def expert(self) -> Any:
        return self.flow.vlm_with_expert.lm_expert

    @property
    def _vlm_config(self) -> Any:
        return self.flow.vlm_with_expert.config

    @property
    def tokens_per_image(self) -> tuple[int, int]:
        pixels = self._vlm_config.vision_config.patch_size * self._vlm_config.scale_factor
        height, width = self.image_size()
        return height // pixels, width // pixels

    @property
    def token_dim(self) -> int:
        return int(self._vlm_config.text_config.hidden_size)

    def image_size(self) -> tuple[int, int]:
        if self.config.resize_imgs_with_padding is None:
            return (int(self._vlm_config.vision_config.image_size),) * 2
        width, height = self.config.resize_imgs_with_padding
        return int(height), int(width)

    def embed(self, reader: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images, image_masks = reader.prepare_images(dict(inputs))
        state = reader.prepare_state(inputs)
        tokens, mask, attends = self.flow.embed_prefix(
            images,
            image_masks,
            inputs["observation.language.tokens"],
            inputs["observation.language.attention_mask"],
            state=state,
        )
        length = int(attends[0].int().argmax())  # up to the state, behind which may be padding
        tokens, mask = tokens[:, :length], mask[:, :length]
        around = (2, 1) if self.flow.add_image_special_tokens else (0, 0)
        height, width = self.tokens_per_image
        pictures = picture_mask(len(images), height * width, around, length).to(mask.device)
        return without_padding(tokens, mask), mask, pictures.expand(len(mask), -1)

    def prefill(self, tokens: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Prefix]:
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        length = tokens.shape[1]
        embedded = torch.cat([tokens, self.flow.state_proj(state)[:, None]], dim=1)
        attends = torch.zeros(embedded.shape[:2], dtype=torch.bool, device=mask.device)
        attends[:, length] = True
        mask = F.pad(mask, (0, 1), value=True)
        short = max(self.flow.prefix_length - length - 1, 0)
        embedded = F.pad(embedded, (0, 0, 0, short))
        mask, attends = F.pad(mask, (0, short)), F.pad(attends, (0, short))
        (output, _), cache = self.flow.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(mask, attends),
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return output[:, :length], Prefix(layers, mask, state)

    def trains_prefix(self) -> bool:
        return any(weight.requires_grad for weight in self.flow.state_proj.parameters())

    def own_velocity(self, prefix: Prefix, cache: Any, actions: Tensor, time: Tensor) -> Tensor:
        velocity: Tensor = self.flow.denoise_step(
            x_t=actions, prefix_pad_masks=prefix.mask, past_key_values=cache, timestep=time
        )
        return velocity

    def suffix(
        self, state: Tensor, actions: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        tokens, pads, attends = self.flow.embed_suffix(actions, time)
        return tokens, make_att_2d_masks(pads[:1], attends[:1])[0], None

    def attend(
        self, cache: Any, tokens: Tensor, mask: Tensor, positions: Tensor, condition: Tensor | None
    ) -> Tensor:
        (_, out), _ = self.flow.vlm_with_expert.forward(
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            inputs_embeds=[None, tokens],
            use_cache=True,
        )
        output: Tensor = out
        return output
