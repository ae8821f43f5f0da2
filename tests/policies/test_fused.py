"""The fused action head against LeRobot's own, on real modules of several shapes."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from groot_cases import config, noise, observation
from torch import Tensor, nn

from deas_vla.errors import DeasError
from deas_vla.policies.config import load_vla
from deas_vla.policies.continuing import blend
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.groot.flow import Flow, replicate
from deas_vla.policies.groot.fused import gather
from deas_vla.policies.vla import Encoding, Tail

HEAD_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "state")


@pytest.fixture(scope="module")
def vla() -> GrootVLA:
    return load_vla(config())


@pytest.fixture()
def adapted() -> Iterator[GrootVLA]:
    """With LoRA everywhere and projectors trained whole, all of it far from where it began."""
    from peft import LoraConfig, get_peft_model

    vla = load_vla(config())
    settings = LoraConfig(
        r=4, target_modules=vla.lora_parts["head"], modules_to_save=list(vla.projectors)
    )
    vla.model = get_peft_model(vla.model, settings).eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in vla.model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    yield vla


def naive(vla: GrootVLA, batch: dict[str, Any], start: Tensor) -> Tensor:
    """Every candidate as an observation of its own, backbone and all; B * N rows."""
    count = start.shape[1]
    repeated = {
        key: [v for v in value for _ in range(count)]
        if isinstance(value, list)
        else value.repeat_interleave(count, dim=0)
        for key, value in batch.items()
    }
    encoding = vla.encode(repeated)
    return vla.sample_normalised(encoding, start.flatten(0, 1)[:, None]).view(start.shape)


def two_instructions(seed: int = 0) -> dict[str, Any]:
    batch = observation(2, seed)
    batch["task"] = ["lift", "lift the red cube and hold it very still for a while"]
    return batch


@pytest.mark.parametrize("batch", [observation(1), two_instructions()], ids=["one", "two"])
def test_fused_candidates_equal_naive_replication(vla: GrootVLA, batch: dict[str, Any]) -> None:
    start = noise(vla, len(batch["task"]), 5)
    fused = vla.sample_normalised(vla.encode(batch), start)
    torch.testing.assert_close(fused, naive(vla, batch, start), atol=1e-5, rtol=0)
    # The same favourite under any score that is not flat: here the largest mean action.
    assert torch.equal(
        fused.mean((2, 3)).argmax(1), naive(vla, batch, start).mean((2, 3)).argmax(1)
    )


def test_autocast_takes_the_fused_head_too(vla: GrootVLA) -> None:
    """A float32 head in bfloat16 products, as LeRobot's own class runs there."""
    batch, start = observation(2), noise(vla, 2, 3)
    encoding = vla.encode(batch)
    exact = vla.sample_normalised(encoding, start)
    with torch.autocast("cpu", torch.bfloat16):
        fused = vla.sample_normalised(encoding, start)
        alone = vla.sample_normalised(encoding, start[:, :1])
    assert (fused.float() - exact).abs().max() < 0.05
    assert (fused[:, :1].float() - alone.float()).abs().max() < 0.05


def test_fused_is_what_runs(vla: GrootVLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several candidates never reach LeRobot's own method; one candidate never leaves it."""
    encoding = vla.encode(observation(1))
    head = vla.groot.action_head
    monkeypatch.setattr(head, "get_action_with_features", lambda **_: 1 / 0)
    vla.sample(encoding, noise(vla, 1, 2))
    with pytest.raises(ZeroDivisionError):
        vla.sample(encoding, noise(vla, 1, 1))


def test_an_adapter_changes_both_ways_alike(vla: GrootVLA, adapted: GrootVLA) -> None:
    batch, start = two_instructions(), noise(vla, 2, 3)
    fused = adapted.sample_normalised(adapted.encode(batch), start)
    plain = vla.sample_normalised(vla.encode(batch), start)
    assert (fused - plain).abs().max() > 0.01
    torch.testing.assert_close(fused, naive(adapted, batch, start), atol=1e-5, rtol=0)
    adapted.model.merge_adapter()
    merged = adapted.sample_normalised(adapted.encode(batch), start)
    torch.testing.assert_close(merged, fused, atol=1e-4, rtol=0)
    torch.testing.assert_close(merged, naive(adapted, batch, start), atol=1e-5, rtol=0)
    adapted.model.unmerge_adapter()
    with adapted.model.disable_adapter():
        without = adapted.sample_normalised(adapted.encode(batch), start)
    torch.testing.assert_close(without, plain, atol=1e-5, rtol=0)


def head_of(alternate: bool, seed: int, **changes: Any) -> tuple[Any, Any]:
    """A LeRobot head of an odd shape, with more embodiments than the checkpoint has."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead, GR00TN17Config

    torch.manual_seed(seed)
    settings = GR00TN17Config(
        backbone_embedding_dim=48,
        hidden_size=40,
        input_embedding_dim=64,
        max_state_dim=10,
        max_action_dim=7,
        action_horizon=11,
        max_num_embodiments=4,
        num_inference_timesteps=3,
        use_alternate_vl_dit=alternate,
        diffusion_model_cfg={
            "num_layers": 6,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "norm_type": "ada_norm",
            "final_dropout": True,
            "output_dim": 40,
            "positional_embeddings": None,
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={
            "num_layers": 1,
            "num_attention_heads": 4,
            "attention_head_dim": 12,
            "positional_embeddings": None,
        },
        **changes,
    )
    head = GR00TN17ActionHead(settings).eval().requires_grad_(False)
    for parameter in head.parameters():  # biases start at zero: nothing may be lost unseen
        parameter.data += 0.05 * torch.randn_like(parameter)
    return head, settings


def inputs_of(settings: Any, seed: int = 3, batch: int = 3) -> tuple[Any, Any, Tensor]:
    from transformers.feature_extraction_utils import BatchFeature

    generator = torch.Generator().manual_seed(seed)
    attention = torch.arange(13) >= torch.tensor([[0], [2], [4]])  # padded on the left
    images = (torch.arange(13) >= 6) & (torch.arange(13) < torch.tensor([[12], [11], [10]]))
    backbone = {
        "backbone_features": torch.randn(batch, 13, 48, generator=generator),
        "backbone_attention_mask": attention,
        "image_mask": images,
    }
    action = {
        "state": torch.randn(batch, 1, 10, generator=generator),
        "embodiment_id": torch.tensor([2, 0, 3]),
    }
    start = torch.randn(batch, 4, 11, 7, generator=generator)
    return BatchFeature(data=backbone), BatchFeature(data=action), start


@pytest.mark.parametrize("alternate", [True, False], ids=["alternate", "plain"])
@pytest.mark.parametrize("changes", [{}, {"add_pos_embed": False}, {"use_vlln": False}], ids=str)
def test_several_embodiments_and_both_transformers(
    alternate: bool, changes: dict[str, Any]
) -> None:
    head, settings = head_of(alternate, seed=0, **changes)
    backbone, action, start = inputs_of(settings)
    fused = Flow().sample(head, backbone, action, start)
    backbone, action, _ = inputs_of(settings)
    own = replicate(head, head._encode_features(backbone, action), backbone, action, start)
    torch.testing.assert_close(fused, own, atol=1e-5, rtol=0)
    assert (fused - start).abs().max() > 0.01


def mutilations() -> list[tuple[str, Any, str]]:
    def of_block(change: Any) -> Any:
        return lambda head: change(head.model.transformer_blocks[2])

    def swap_processor(block: Any) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        class Another(AttnProcessor2_0):
            """Of the same calculation: whose type is another is not looked into."""

        block.attn1.set_processor(Another())

    def hook(block: Any) -> None:
        block.register_forward_hook(lambda module, args, out: 1.5 * out)

    def own_forward(block: Any) -> None:
        block.attn1.forward = lambda x, **_: x

    def positions(block: Any) -> None:
        block.pos_embed = nn.Identity()

    def rescale(block: Any) -> None:
        block.attn1.rescale_output_factor = 2.0

    def norm_keys(block: Any) -> None:
        block.attn1.norm_k = nn.LayerNorm(16)

    def other_feed_forward(block: Any) -> None:
        block.ff = nn.Sequential(nn.Linear(64, 64), nn.Tanh())

    def other_encoder(head: Any) -> None:
        kind = type(head.action_encoder)
        head.action_encoder.__class__ = type("Another", (kind,), {})

    return [
        ("processor", of_block(swap_processor), "attention processor of block 2 is Another"),
        ("hook", of_block(hook), "block 2 has hooks"),
        ("forward", of_block(own_forward), "attention of block 2 has hooks or a forward"),
        ("positions", of_block(positions), "block 2 has positional embeddings"),
        ("rescale", of_block(rescale), "attention of block 2 has a residual"),
        ("norm", of_block(norm_keys), "attention of block 2 has norm_k"),
        ("feed-forward", of_block(other_feed_forward), "feed-forward of block 2 is Sequential"),
        ("encoder", other_encoder, "action encoder is Another"),
    ]


@pytest.mark.parametrize(("name", "mutilate", "said"), mutilations(), ids=lambda x: str(x)[:20])
def test_another_structure_runs_as_lerobot_has_it(
    name: str, mutilate: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    head, settings = head_of(True, seed=1)
    mutilate(head)
    flow = Flow()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            backbone, action, start = inputs_of(settings)
            sampled = flow.sample(head, backbone, action, start)
    assert [said in record.message for record in caplog.records] == [True]  # said once
    backbone, action, start = inputs_of(settings)
    features = head._encode_features(backbone, action)
    assert torch.equal(sampled, replicate(head, features, backbone, action, start))
    backbone, action, start = inputs_of(settings)
    tail = Tail(torch.zeros(3, 11, 7), torch.tensor([False, True, False, True]))
    with pytest.raises(DeasError, match="cannot go on from an earlier chunk"):
        flow.sample(head, backbone, action, start, tail)


def test_a_head_in_training_is_left_alone() -> None:
    from deas_vla.policies.groot.structure import mismatch

    head, _ = head_of(True, seed=1)
    assert mismatch(head) is None
    assert mismatch(head.train()) == "it is in training mode"


def test_gather_keeps_order_and_says_what_is_padding() -> None:
    tokens = torch.arange(10.0).view(2, 5, 1)
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 1, 0]]).bool()
    part, valid = gather(tokens, mask)
    assert part[0, :, 0].tolist() == [1, 3, 4] and part[1, :2, 0].tolist() == [5, 8]
    assert valid is not None and valid[:, 0, 0].tolist() == [[True] * 3, [True, True, False]]
    assert gather(tokens, mask[:1].expand(2, -1))[1] is None


# ---- going on from an earlier chunk --------------------------------------------------------------


def test_real_time_chunking_is_lerobots(vla: GrootVLA) -> None:
    """One candidate with a left-over chunk, against LeRobot's own options."""
    batch = observation(1)
    inputs = vla.preprocess(batch)
    inputs = {key: inputs[key] for key in (*HEAD_INPUTS, "embodiment_id")}
    left = 0.5 * noise(vla, 1, 1, seed=8)[:, 0, :9]
    options = {
        "action_horizon": 9,
        "rtc_overlap_steps": 9,
        "rtc_frozen_steps": 3,
        "rtc_ramp_rate": vla.groot.config.rtc_ramp_rate,
    }
    torch.manual_seed(2)
    theirs = vla.groot.get_action(inputs | {"action": left}, options=options)["action_pred"]
    torch.manual_seed(2)
    start = torch.randn(1, 1, *vla.spec.noise_shape)
    whole = nn.functional.pad(left, (0, 0, 0, start.shape[2] - 9))
    tail = Tail(whole, torch.tensor([False]), frozen=3, overlap=9)
    ours = vla.sample_normalised(vla.encode(batch), start, tail)
    torch.testing.assert_close(ours[:, 0], theirs, atol=1e-5, rtol=0)
    assert torch.equal(ours[:, 0, :3], left[:, :3])


def test_the_ramp_is_lerobots() -> None:
    strength = blend(torch.arange(8)[:, None], 2, 5, 6.0)[:, 0]
    time = torch.linspace(0, 1, 5)
    ramp = 1 - torch.exp(-6.0 * time)
    expected = torch.cat([torch.zeros(2), (ramp / ramp[-1])[1:-1], torch.ones(3)])
    torch.testing.assert_close(strength, expected)


def velocity(vla: GrootVLA, encoding: Encoding, x: Tensor, timestep: int) -> Tensor:
    """One call of LeRobot's transformer at ``x`` (B, H, A_model)."""
    head = vla.groot.action_head
    backbone, action = vla.head_inputs(encoding)
    features = head._encode_features(backbone, action)
    time = torch.full((len(x),), timestep)
    tokens = head.action_encoder(x, time, action.embodiment_id)
    tokens = tokens + head.position_embedding(torch.arange(x.shape[1]))
    out = head.model(
        hidden_states=torch.cat([features.state_features, tokens], dim=1),
        encoder_hidden_states=features.backbone_features,
        timestep=time,
        image_mask=encoding.image_mask,
        backbone_attention_mask=encoding.attention_mask,
    )
    return head.action_decoder(out, action.embodiment_id)[:, -x.shape[1] :]


@torch.no_grad()
def test_warm_candidates_stand_beside_fresh_ones(vla: GrootVLA) -> None:
    encoding, start = vla.encode(observation(2)), noise(vla, 2, 4)
    rest = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(3)) * 0.5
    warm = torch.tensor([False, True, False, True])
    plain = vla.sample(encoding, start)
    mixed = vla.sample(encoding, start, Tail(rest, warm, progress=0.75))
    torch.testing.assert_close(mixed[:, ~warm], plain[:, ~warm], atol=1e-5, rtol=0)
    # By hand, with LeRobot's own modules: the last of four steps, from a quarter of the noise.
    targets = vla.preprocess_targets(
        encoding.state,
        torch.cat([rest, rest[:, -1:].expand(-1, 10, -1)], dim=1),
        torch.ones(2, 16, dtype=torch.bool),
    )
    x = 0.25 * start[:, 1] + 0.75 * targets["action"]
    expected = vla.decode((x + 0.25 * velocity(vla, encoding, x, 750))[:, None], encoding.state)
    torch.testing.assert_close(mixed[:, 1:2], expected, atol=1e-5, rtol=0)
    # Nothing counts as done: noise alone, and so the fresh candidates.
    cold = vla.sample(encoding, start, Tail(rest, warm, progress=0.0))
    torch.testing.assert_close(cold, plain, atol=1e-5, rtol=0)


def test_frozen_steps_are_the_same_in_all_candidates(vla: GrootVLA) -> None:
    encoding, start = vla.encode(observation(2)), noise(vla, 2, 4)
    rest = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(3)) * 0.5
    tail = Tail(rest, torch.tensor([False, True] * 2), frozen=4, overlap=6)
    chunks = vla.sample(encoding, start, tail)
    statistics = vla.sample(encoding, start)  # the same clipping to the embodiment's range
    assert chunks.shape == statistics.shape
    for n in range(1, 4):
        torch.testing.assert_close(chunks[:, n, :4], chunks[:, 0, :4], atol=1e-6, rtol=0)
    assert (chunks[:, 1:, 4:] - chunks[:, :1, 4:]).abs().amax((0, 2, 3)).min() > 1e-3
