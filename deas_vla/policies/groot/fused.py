"""GR00T's action head for N candidates of one observation at nearly the price of one.

LeRobot's head denoises N candidates of B observations as B * N independent rows: it copies the
vision-language tokens N times, and projects the same keys and values again in every denoising step.
Here what no candidate changes is computed once per observation (`FusedHead.prepare`): keys and
values of the cross-attention, the state's token, the timestep's modulations and the embodiment's
own weights. Candidates then attend to that one context (`FusedHead.denoise`): queries do not see
each other in cross-attention, so N candidates of T tokens are one query of N * T tokens, and
nothing is copied.

The modules and weights are LeRobot's, adapters included; only the order of the computation differs,
so results agree to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deas_vla.policies.compiling import compiled
from deas_vla.policies.groot.structure import active, reads_text


@dataclass(frozen=True)
class Linear:
    """A layer with weights of each observation's embodiment.

    Attributes:
        weight: (B, in, out).
        bias: (B, 1, out).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(B, M, in) to (B, M, out)."""
        return torch.baddbmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class Modulation:
    """Scale and shift after a layer norm, of one denoising step: (W,) each, the scale plus 1."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor, eps: float) -> Tensor:
        """The norm and its modulation in one: (..., W) to (..., W)."""
        scale, shift = self.scale.to(x.dtype), self.shift.to(x.dtype)  # autocast mixes them
        return F.layer_norm(x, scale.shape, scale, shift, eps)


@dataclass(frozen=True)
class Keys:
    """What a cross-attention block reads: the tokens of its kind alone.

    Attributes:
        key: (B, heads, S, W / heads).
        value: Likewise.
        mask: bool (B, 1, 1, S), false on padding; None where no observation has any.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Step:
    """What one denoising step adds to the context.

    Attributes:
        time: (B, 1, W), the timestep's part of the action encoder's second layer.
        blocks: Of each transformer block.
        out: Of the last norm.
    """

    time: Tensor
    blocks: tuple[Modulation, ...]
    out: Modulation


@dataclass(frozen=True)
class Context:
    """Everything in the head that is the same for all candidates of B observations.

    Attributes:
        state: (B, 1, W), the state's token.
        position: (H, W), embeddings of the chunk's steps; zero where the head has none.
        keys: Of each transformer block; None where it attends to the chunk itself.
        encoder: The action encoder's layers; of the second one the weights (B, W, W) that the
            action meets, without those that the time does.
        decoder: The action decoder's layers.
        steps: Of each denoising step.
    """

    state: Tensor
    position: Tensor
    keys: tuple[Keys | None, ...]
    encoder: tuple[Linear, Tensor, Linear]
    decoder: tuple[Linear, Linear]
    steps: tuple[Step, ...]


class FusedHead:
    """LeRobot's ``GR00TN17ActionHead``, whose structure `structure.mismatch` has found as expected.

    Args:
        head: In evaluation mode.
        compile: Compile a denoising step: once per shape, CUDA graphs on a GPU.
    """

    def __init__(self, head: Any, *, compile: bool = False) -> None:
        self.head = head
        self._velocity: Callable[[Context, Step, Tensor], Tensor] = self.velocity
        if compile:
            self._velocity = compiled(self.velocity, next(head.parameters()).device)

    def prepare(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        image_mask: Tensor,
        state: Tensor,
        embodiment: Tensor,
    ) -> Context:
        """Compute what candidates share.

        Args:
            tokens: (B, L, D), after the head's own norm and self-attention over them.
            attention_mask: bool (B, L), false on padding.
            image_mask: bool (B, L).
            state: (B, 1, W), the encoded state.
            embodiment: int (B,).
        """
        head = self.head
        encoder, decoder = active(head.action_encoder), active(head.action_decoder)
        second = _linear(encoder.W2, embodiment)
        width = second.weight.shape[1] // 2  # action embedding first, time embedding behind it
        count, buckets = head.num_inference_timesteps, head.num_timestep_buckets
        times = torch.tensor([int(k / float(count) * buckets) for k in range(count)])
        times = times.to(tokens.device)
        embedded = encoder.pos_encoding(times[:, None]).to(tokens.dtype)  # (K, 1, W)
        time = Linear(second.weight[:, width:], second.bias)
        temb = head.model.timestep_encoder(times)  # (K, W)
        blocks = [
            _modulations(*block.norm1.linear(F.silu(temb)).chunk(2, dim=1))
            for block in head.model.transformer_blocks
        ]
        shift, scale = head.model.proj_out_1(F.silu(temb)).chunk(2, dim=1)
        out = _modulations(scale, shift)
        horizon = head.action_horizon
        if head.config.add_pos_embed:
            position = head.position_embedding(torch.arange(horizon, device=tokens.device))
        else:
            position = tokens.new_zeros(horizon, state.shape[-1])
        return Context(
            state=state,
            position=position,
            keys=self._keys(tokens, attention_mask, image_mask),
            encoder=(
                _linear(encoder.W1, embodiment),
                second.weight[:, :width],
                _linear(encoder.W3, embodiment),
            ),
            decoder=(
                _linear(decoder.layer1, embodiment),
                _linear(decoder.layer2, embodiment),
            ),
            steps=tuple(
                Step(
                    time=time(embedded[k].expand(len(tokens), 1, -1)),
                    blocks=tuple(steps[k] for steps in blocks),
                    out=out[k],
                )
                for k in range(count)
            ),
        )

    def denoise(
        self,
        context: Context,
        actions: Tensor,
        *,
        begin: int = 0,
        end: int | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """Follow the flow from ``actions`` to the chunks.

        Args:
            context: Of B observations.
            actions: (B, N, H, A_model), standard normal where ``begin`` is 0.
            begin: Denoising step to begin with; earlier ones count as done.
            end: Step to stop before; the last one when left out.
            strength: (H, 1) or (N, H, 1), how much of the velocity each step of a chunk takes.

        Returns:
            (B, N, H, A_model) in the policy's normalisation.
        """
        size = 1.0 / len(context.steps)
        for step in context.steps[begin:end]:
            velocity = self._velocity(context, step, actions) * size
            actions = actions + (velocity if strength is None else velocity * strength)
        return actions

    def velocity(self, context: Context, step: Step, actions: Tensor) -> Tensor:
        """The flow at ``actions`` (B, N, H, A_model), of the same shape."""
        batch, candidates, horizon, _ = actions.shape
        first, second, third = context.encoder
        x = torch.baddbmm(step.time, first(actions.flatten(1, 2)), second)  # (B, N * H, W)
        x = third(x * torch.sigmoid(x)).unflatten(1, (candidates, horizon)) + context.position
        state = context.state[:, None].expand(batch, candidates, 1, x.shape[-1])
        x = torch.cat([state, x], dim=2).flatten(0, 1)  # (B * N, 1 + H, W)
        model = self.head.model
        for block, keys, modulation in zip(
            model.transformer_blocks, context.keys, step.blocks, strict=True
        ):
            normed = modulation(x, block.norm1.norm.eps)
            x = x + _attention(block.attn1, normed, keys, batch)
            x = x + block.ff(block.norm3(x))
        x = step.out(x[:, 1:], model.norm_out.eps)  # the state's own output is not looked at
        x = model.proj_out_2(x).unflatten(0, (batch, candidates)).flatten(1, 2)  # (B, N * H, D)
        hidden, last = context.decoder
        return last(F.relu(hidden(x))).unflatten(1, (candidates, horizon))

    def _keys(
        self, tokens: Tensor, attention_mask: Tensor, image_mask: Tensor
    ) -> tuple[Keys | None, ...]:
        """Keys and values of every cross-attention block, over the tokens that it reads."""
        chosen = {
            text: gather(tokens, attention_mask & mask)
            for text, mask in ((True, ~image_mask), (False, image_mask))
        }
        everything = gather(tokens, attention_mask.new_ones(attention_mask.shape))
        keys: list[Keys | None] = []
        for index, block in enumerate(self.head.model.transformer_blocks):
            attention = block.attn1
            if self.head.model.config.interleave_self_attention and index % 2 == 1:
                keys.append(None)
                continue
            text = reads_text(self.head.model, index)
            part, mask = everything if text is None else chosen[text]
            keys.append(
                Keys(
                    _heads(attention.to_k(part), attention.heads),
                    _heads(attention.to_v(part), attention.heads),
                    mask,
                )
            )
        return tuple(keys)


def gather(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tokens that ``mask`` picks, moved together.

    Args:
        tokens: (B, L, D).
        mask: bool (B, L).

    Returns:
        (B, S, D) with S the largest number picked in a row, and bool (B, 1, 1, S), false where a
        row has fewer; None where all have S.
    """
    counts = mask.sum(1)
    size = int(counts.max())
    order = torch.argsort(~mask, dim=1, stable=True)[:, :size]  # the picked ones first, in order
    order = order.to(tokens.device)
    part = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    if bool((counts == size).all()):
        return part, None
    valid = torch.arange(size, device=mask.device) < counts[:, None]
    return part, valid[:, None, None].to(tokens.device)


def _attention(attention: Any, x: Tensor, keys: Keys | None, batch: int) -> Tensor:
    """Self-attention of each candidate, or of all candidates to the context of their observation.

    ``x`` is (B * N, T, W); so is the result.
    """
    rows, length, _ = x.shape
    query = attention.to_q(x)
    if keys is None:
        key, value = (
            _heads(layer(x), attention.heads) for layer in (attention.to_k, attention.to_v)
        )
        out = F.scaled_dot_product_attention(_heads(query, attention.heads), key, value)
    else:
        query = _heads(query.view(batch, rows // batch * length, -1), attention.heads)
        out = F.scaled_dot_product_attention(query, keys.key, keys.value, attn_mask=keys.mask)
    return attention.to_out[0](out.transpose(1, 2).reshape(rows, length, -1))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, M, W) to (B, heads, M, W / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _linear(layer: Any, embodiment: Tensor) -> Linear:
    return Linear(layer.W[embodiment], layer.b[embodiment].unsqueeze(1))


def _modulations(scale: Tensor, shift: Tensor) -> Sequence[Modulation]:
    """Of each denoising step: ``scale`` and ``shift`` are (K, W)."""
    return [Modulation(1 + a, b) for a, b in zip(scale, shift, strict=True)]
