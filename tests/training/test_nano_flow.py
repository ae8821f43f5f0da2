"""What the nano's pretraining says of how well its head imitates."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


class Sampler:
    """A head that always sends the same chunk, or each expert's own."""

    spec = SimpleNamespace(noise_shape=(40, 132))

    def __init__(self, sent: Tensor) -> None:
        self.sent = sent  # (B, 40, 132)

    def sample_normalised(self, encoding: object, noise: Tensor) -> Tensor:
        assert noise.shape == (len(self.sent), 8, 40, 132)
        return self.sent[:, None].expand_as(noise)


def chunks(wanted: Tensor, counts: Tensor) -> Any:
    return SimpleNamespace(batch=lambda index: (None, wanted, counts))


def test_what_the_mean_command_leaves_is_unexplained(nano_scripts: object) -> None:
    from flow import unexplained

    wanted = torch.randn(6, 40, 132)
    counts = torch.zeros(6, 40, 132)
    counts[:, :16, :7] = 1.0
    counts[3, 9:] = 0.0  # an episode's end
    usual = ((wanted * counts).sum((0, 1)) / counts.sum((0, 1)).clamp(min=1)).expand(6, 40, 132)

    def left(sent: Tensor) -> float:
        source: Any = SimpleNamespace(vla=Sampler(sent))
        return unexplained(source, chunks(wanted, counts), torch.arange(6))

    assert left(wanted) < 1e-6 and left(usual) == pytest.approx(1.0)
    assert left((wanted + usual) / 2) == pytest.approx(0.5)
    beyond = wanted.clone()
    beyond[3, 9:] += 5.0  # behind the end, beyond the chunk that is used, in padding
    beyond[:, 16:] -= 5.0
    beyond[:, :, 7:] += 5.0
    assert left(beyond) < 1e-6


def test_tellers_tell_in_the_units_of_a_norm(nano_scripts: object) -> None:
    from grounding import TELLERS, told

    place = torch.tensor([0.5, -1.0, 2.0, 0.0, 0.25, -0.5])
    token = torch.cat([place, -place, torch.ones(58), -torch.ones(58)])
    token = token / token.std(unbiased=False)
    said = torch.cat([torch.randn(2, 7, 128), token.expand(2, TELLERS, 128)], dim=1)
    torch.testing.assert_close(told(said), token[:6].expand(2, TELLERS, 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(told(3 * said + 1), told(said), atol=1e-4, rtol=1e-4)


def test_tellers_stand_behind_all_pictures(untrained_nano: Any, nano_frames: Any) -> None:
    from grounding import TELLERS
    from robots import PANDA, PANDA_OMRON
    from sources import Source, backbone

    for source in Source.load_all([PANDA, PANDA_OMRON], untrained_nano, nano_frames, 0.2, 0):
        looks = source.looks(torch.arange(4))
        with torch.no_grad():
            out = backbone(source.vla.model, looks)
        assert out["backbone_attention_mask"][:, -TELLERS:].all()
        assert not out["image_mask"][:, -TELLERS:].any()
        last = out["image_mask"].float().argmax(1) + out["image_mask"].sum(1)
        assert (last <= out["image_mask"].shape[1] - TELLERS).all()


def test_an_update_hears_its_own_tellers_and_sees_other_pictures(
    untrained_nano: Any, nano_frames: Any
) -> None:
    from flow import FEW, chunk_without_noise, drawn
    from grounding import TELLERS
    from robots import HORIZON, PANDA, PANDA_OMRON
    from sources import Chunks, Source, joined

    sources = Source.load_all([PANDA, PANDA_OMRON], untrained_nano, nano_frames, 0.2, 0)
    every = [Chunks(source.vla.model, source) for source in sources]
    for chunks in every:
        encoding, action, _ = drawn(chunks, 8, short=False)
        whole = chunks.targets["action"].float()
        index = [int((whole == a).all((1, 2)).nonzero()[0, 0]) for a in action]
        assert set(index) <= set(chunks.train.tolist())
        own, pictures = chunks.tokens[index].float(), chunks.images[0]
        first = int(pictures.int().argmax())
        torch.testing.assert_close(encoding.tokens[:, :first], own[:, :first])
        torch.testing.assert_close(encoding.tokens[:, -TELLERS:], own[:, -TELLERS:])
        seen = encoding.tokens[:, pictures]
        assert not torch.equal(seen, own[:, pictures])
        assert all((own[:, pictures] == one).all((1, 2)).any() for one in seen)

    batches = [drawn(chunks, 3, short=True) for chunks in every]
    assert all(int(encoding.image_mask[0].sum()) == FEW for encoding, *_ in batches)
    assert all(bool(encoding.attention_mask.all()) for encoding, *_ in batches)
    encoding, action, _ = joined(batches)
    assert encoding.tokens.shape[:2] == encoding.attention_mask.shape == encoding.image_mask.shape
    vla: Any = sources[0].vla
    vla.model.action_head.requires_grad_(True)
    made = chunk_without_noise(vla, encoding, action[:, :HORIZON])
    assert made.shape == (6, HORIZON, 132)
    made.square().mean().backward()
    torch.testing.assert_close(made, chunk_without_noise(vla, encoding, action[:, :HORIZON]))
    encoding.tokens[:, -TELLERS:] = torch.randn_like(encoding.tokens[:, -TELLERS:])
    assert (chunk_without_noise(vla, encoding, action[:, :HORIZON]) - made).abs().max() > 1e-4
