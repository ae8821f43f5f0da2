"""SmolVLA, pi0 and pi0.5 against LeRobot's own classes, with few random weights."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groot_cases import NANO
from prefix_cases import (
    ACTION,
    CAMERAS,
    HORIZON,
    STATE,
    STATS,
    config,
    observation,
    write_pi,
    write_smolvla,
)
from torch import Tensor

from deas_vla.data.pooling import PoolingConfig
from deas_vla.errors import DeasError
from deas_vla.guidance.features import pool_encoding
from deas_vla.policies.config import load_vla
from deas_vla.policies.lora import load_adapter, training_targets, unwrapped
from deas_vla.policies.prefix import PrefixVLA
from deas_vla.policies.vla import Tail

FAMILIES = ("smolvla", "pi0", "pi05")
MANY = 18  # candidates, more than stand in one suffix


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            write = write_smolvla if family == "smolvla" else lambda to: write_pi(to, family)
            made[family] = write(root)
        return made[family]

    return checkpoint


@pytest.fixture(scope="module", params=FAMILIES)
def vla(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> PrefixVLA:
    return load_vla(config(checkpoints(request.param), request.param))


def noise(vla: PrefixVLA, batch: int, candidates: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, candidates, *vla.spec.noise_shape, generator=generator)


def autocast(on: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


def lerobots(vla: PrefixVLA, batch: dict[str, Any], start: Tensor) -> Tensor:
    """LeRobot's own chunks in its own normalisation: pictures in, (B, H, A) out."""
    inputs = vla.preprocess(batch)
    return vla.network.policy.predict_action_chunk(dict(inputs), noise=start)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_one_candidate_is_the_base_policy_bit_for_bit(vla: PrefixVLA, half: bool) -> None:
    start = noise(vla, 2, 1)
    with autocast(half):
        base = lerobots(vla, observation(2), start[:, 0])
        encoding = vla.encode(observation(2))
        ours = vla.sample_normalised(encoding, start)[:, 0, :, :ACTION]
    assert torch.equal(ours, base)
    if not half:  # candidates are the robot's actions: LeRobot's own postprocessor has been over
        assert torch.equal(vla.sample(encoding, start)[:, 0], vla.postprocessor(base))


def test_lerobot_loads_the_same_policy(
    checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same directory, by LeRobot's own loader and processors, to the same actions."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    root = checkpoints("smolvla")
    monkeypatch.chdir(root)  # where its language model and tokenizer are found by their names
    policy = SmolVLAPolicy.from_pretrained(root)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(root))
    vla = load_vla(config(root, "smolvla"))
    start, batch = noise(vla, 2, 1), observation(2)
    pictures = {key: batch[key].float() / 255 for key in CAMERAS}
    theirs = after(policy.predict_action_chunk(before(batch | pictures), noise=start[:, 0]))
    assert torch.equal(vla.sample(vla.encode(batch), start)[:, 0], theirs)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_fused_candidates_equal_naive_replication(
    vla: PrefixVLA, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against LeRobot's own method on copies of the observation, and the same one is chosen."""
    start, batch = noise(vla, 2, MANY), observation(2)
    copies = {
        key: [task for task in value for _ in range(MANY)]
        if key == "task"
        else value.repeat_interleave(MANY, dim=0)
        for key, value in batch.items()
    }
    with autocast(half):
        naive = lerobots(vla, copies, start.flatten(0, 1)).unflatten(0, (2, MANY))
        encoding = vla.encode(batch)
        monkeypatch.setattr(vla.network, "own_velocity", None)  # one after the other
        fused = vla.sample_normalised(encoding, start)[..., :ACTION]
    # Values are about 4, of which bfloat16 keeps 8 bits.
    torch.testing.assert_close(fused, naive, atol=0.2 if half else 1e-4, rtol=0)
    value = torch.randn(HORIZON, ACTION, generator=torch.Generator().manual_seed(2))
    if not half:
        scores = [(chunks * value).sum((2, 3)).argmax(1) for chunks in (fused, naive)]
        assert torch.equal(*scores)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_loss_is_the_class_own(vla: PrefixVLA, half: bool) -> None:
    batch = observation(2)
    action = torch.randn(2, HORIZON, ACTION, generator=torch.Generator().manual_seed(3))
    valid = torch.ones(2, HORIZON, dtype=torch.bool)
    more = {}
    if vla.family == "smolvla":  # the others' own loss counts every step
        valid[1, 9:] = False
        more["action_is_pad"] = ~valid
    targets = vla.preprocess_targets(batch["observation.state"], action, valid)
    with autocast(half), torch.no_grad():
        kept = kept_encoding(vla, vla.encode(batch), targets)
        torch.manual_seed(0)
        ours = vla.flow_matching_loss(kept, targets["action"], targets["action_mask"])
        torch.manual_seed(0)
        theirs, _ = vla.network.policy.forward(vla.preprocess(batch | {"action": action}) | more)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-2 if half else 1e-5)


def kept_encoding(vla: PrefixVLA, encoding: Any, targets: dict[str, Tensor]) -> Any:
    """As from a cache: padded on the left, with a mask that says nothing of this frame."""
    tokens = torch.nn.functional.pad(encoding.tokens, (0, 0, 3, 0))
    masks = dict.fromkeys(("token_mask", "image_mask"), torch.ones(tokens.shape[:2]).bool())
    return vla.encoding_from({"tokens": tokens, **masks, **targets})


def test_loss_ignores_steps_that_were_not_executed(vla: PrefixVLA) -> None:
    encoding, valid = vla.encode(observation(2)), torch.arange(HORIZON) < torch.tensor([[4], [9]])
    losses = []
    for filler in (0.0, 0.9):
        action = torch.full((2, HORIZON, ACTION), filler)
        action[valid] = 0.1
        targets = vla.preprocess_targets(observation(2)["observation.state"], action, valid)
        real = targets["action_mask"].bool()
        targets["action"][~real] = 0.0  # what stands there is noised and seen, but not asked for
        torch.manual_seed(0)
        losses.append(
            vla.flow_matching_loss(encoding, targets["action"], targets["action_mask"]).item()
        )
    assert losses[0] == losses[1]


def test_kept_tokens_give_the_same_chunks(vla: PrefixVLA) -> None:
    batch = observation(2)
    encoding = vla.encode(batch)
    valid = torch.ones(2, HORIZON, dtype=torch.bool)
    action = torch.zeros(2, HORIZON, ACTION)
    targets = vla.preprocess_targets(batch["observation.state"], action, valid)
    kept = kept_encoding(vla, encoding, targets)
    assert torch.equal(kept.attention_mask[:, 3:], encoding.attention_mask)
    start = noise(vla, 2, 2)
    torch.testing.assert_close(
        vla.sample(kept, start), vla.sample(encoding, start), atol=2e-5, rtol=0
    )


def test_pictures_in_the_loop_are_what_tokens_were_kept_of(vla: PrefixVLA) -> None:
    if vla.family == "pi05":
        with pytest.raises(DeasError, match="pi05 reads the state as words"):
            vla.training_inputs(augmented=False)
        return
    batch = observation(2)
    state = batch.pop("observation.state")
    valid = torch.ones(2, HORIZON, dtype=torch.bool)
    targets = vla.preprocess_targets(state, torch.ones(2, HORIZON, ACTION), valid)
    observed = vla.training_inputs(augmented=False)(batch)
    online = vla.encode_batch(observed | targets)
    kept = vla.encode({**batch, "observation.state": state})
    assert torch.equal(online.tokens, kept.tokens)
    assert torch.equal(online.image_mask, kept.image_mask)
    assert torch.equal(online.state, kept.state)
    start = noise(vla, 2, 1)
    assert torch.equal(vla.sample_normalised(online, start), vla.sample_normalised(kept, start))
    with pytest.raises(DeasError, match=r"checkpoints say nothing of augmentation"):
        vla.training_inputs(augmented=True)


def test_an_encoding_depends_on_its_own_observation_alone(vla: PrefixVLA) -> None:
    """Neither on the batch nor, but for pi0.5 whose prompt spells it out, on the state."""
    both = observation(2)
    one = {key: value[:1] for key, value in both.items()}
    pool = PoolingConfig("grid", 2)
    together, alone = (pool_encoding(vla, vla.encode(batch), pool) for batch in (both, one))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
    moved = one | {"observation.state": one["observation.state"] + 1}
    same = torch.equal(pool_encoding(vla, vla.encode(moved), pool), alone)
    assert same == (vla.family != "pi05")


def test_actions_survive_normalising_and_decoding(vla: PrefixVLA) -> None:
    action = torch.rand(2, HORIZON, ACTION, generator=torch.Generator().manual_seed(2)) * 3 - 1.5
    valid = torch.ones(2, HORIZON, dtype=torch.bool)
    targets = vla.preprocess_targets(torch.zeros(2, STATE), action, valid)
    decoded = vla.decode(targets["action"][:, None], torch.zeros(2, STATE))[:, 0]
    torch.testing.assert_close(decoded, action, atol=1e-5, rtol=0)
    rows = STATS["action"]
    own = (action - rows["mean"]) / rows["std"]
    if vla.family == "pi05":
        own = 2 * (action - rows["q01"]) / (rows["q99"] - rows["q01"]) - 1
    torch.testing.assert_close(targets["action"][..., :ACTION], own, atol=1e-5, rtol=0)


def test_frozen_steps_stay_and_fresh_candidates_stay_fresh(vla: PrefixVLA) -> None:
    encoding, start = vla.encode(observation(2)), noise(vla, 2, 4)
    tail = Tail(vla.sample(encoding, start)[:, 0, 8:], torch.tensor([False, True, False, True]))
    plain, warm = vla.sample(encoding, start), vla.sample(encoding, start, tail)
    torch.testing.assert_close(warm[:, [0, 2]], plain[:, [0, 2]], atol=1e-4, rtol=0)
    assert not torch.allclose(warm[:, 1], plain[:, 1], atol=1e-2)
    frozen = vla.sample(encoding, start, replace(tail, frozen=3, overlap=5))
    left = tail.actions[:, None, :3].expand(-1, 4, -1, -1)
    torch.testing.assert_close(frozen[:, :, :3], left, atol=1e-5, rtol=0)


@pytest.fixture
def adapted(
    vla: PrefixVLA, checkpoints: Callable[[str], Path]
) -> Iterator[tuple[PrefixVLA, set[str]]]:
    """A network of its own with an adapter on the whole head and whole projectors."""
    from peft import LoraConfig, get_peft_model

    own = load_vla(config(checkpoints(vla.family), vla.family))
    parts, _ = training_targets(own.model, own.lora_parts, ["head"], [])
    settings = LoraConfig(target_modules=parts, modules_to_save=list(own.projectors))
    own.model = get_peft_model(own.model, settings)
    yield own, {name for name, p in own.model.named_parameters() if p.requires_grad}


def test_an_adapter_is_trained_and_loaded_by_peft_alone(
    adapted: tuple[PrefixVLA, set[str]], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    vla, trained = adapted
    batch, base = observation(2), load_vla(config(checkpoints(vla.family), vla.family))
    valid = torch.ones(2, HORIZON, dtype=torch.bool)
    targets = vla.preprocess_targets(batch["observation.state"], torch.ones(2, 16, ACTION), valid)
    kept = kept_encoding(vla, vla.encode(batch), targets)
    gradients = []
    vla.model.train()
    for saves in (False, True):
        torch.manual_seed(0)
        with vla.gradient_checkpointing(saves):
            vla.flow_matching_loss(kept, targets["action"], targets["action_mask"]).backward()
        named = vla.model.named_parameters()
        gradients.append({k: p.grad.clone() for k, p in named if p.grad is not None})
        vla.model.zero_grad()
    vla.model.eval()
    assert set(gradients[0]) == trained
    torch.testing.assert_close(*gradients)
    assert all(float(g.abs().sum()) > 0 for k, g in gradients[0].items() if "lora_B" in k)

    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for name, weight in vla.model.named_parameters():
            if name in trained:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    vla.model.save_pretrained(tmp_path)
    start = noise(vla, 2, 1)
    ours = vla.sample(vla.encode(batch), start)
    assert not torch.allclose(ours, base.sample(base.encode(batch), start), atol=1e-2)
    assert vla.backbone_fingerprint() == base.backbone_fingerprint()
    assert vla.head_fingerprint() != base.head_fingerprint()

    theirs = PeftModel.from_pretrained(base.network.policy, str(tmp_path))
    chunk = theirs.predict_action_chunk(dict(base.preprocess(batch)), noise=start[:, 0])
    assert torch.equal(ours[:, 0], base.postprocessor(chunk))
    base.model = theirs
    assert torch.equal(vla.sample(vla.encode(batch), start), base.sample(base.encode(batch), start))
    fresh = load_vla(config(checkpoints(vla.family), vla.family))
    fresh.model = load_adapter(fresh.model, tmp_path)
    assert unwrapped(fresh.model) is fresh.network.policy
    assert fresh.head_fingerprint() == vla.head_fingerprint()


def test_another_robot_over_the_same_network(vla: PrefixVLA) -> None:
    stats = {
        "observation.state": {k: v[:3] for k, v in STATS["observation.state"].items()},
        "action": {k: v[:2] * 2 for k, v in STATS["action"].items()},
    }
    camera = ("observation.images.top",)
    told = {key: {k: v.tolist() for k, v in rows.items()} for key, rows in stats.items()}
    other = vla.for_embodiment(
        embodiment="new_embodiment",
        image_keys=camera,
        state_dim=3,
        action_dim=2,
        dataset_stats=told,
    )
    batch = {
        camera[0]: observation(1)[CAMERAS[0]],
        "observation.state": torch.zeros(1, 3),
        "task": ["lift"],
    }
    start = noise(vla, 1, 2)
    chunks = other.sample(other.encode(batch), start)
    assert chunks.shape == (1, 2, HORIZON, 2) and other.spec.image_keys == camera
    assert vla.sample(vla.encode(observation(1)), start).shape == (1, 2, HORIZON, ACTION)
    assert other.network.policy is vla.network.policy


def test_relative_actions_are_decoded_against_their_own_state(tmp_path: Path) -> None:
    """LeRobot's step would take the state of the preprocessor's last call."""
    root = write_pi(tmp_path, "pi0", use_relative_actions=True)
    vla = load_vla(config(root, "pi0"))
    batch, start = observation(2), noise(vla, 2, 2)
    encoding = vla.encode(batch)
    vla.encode(observation(2, seed=5))
    chunks = vla.sample(encoding, start)
    inputs = vla.preprocess(batch)
    theirs = vla.postprocessor(
        vla.network.policy.predict_action_chunk(dict(inputs), noise=start[:, 0])
    )
    assert torch.equal(vla.sample(encoding, start[:, :1])[:, 0], theirs)
    torch.testing.assert_close(chunks[:, 0], theirs, atol=2e-5, rtol=0)
    with pytest.raises(DeasError, match="relative to the state"):
        load_vla(config(root, "pi0", embodiment="new_embodiment"), dataset_stats=STATS)


def test_bfloat16_weights_give_float32_chunks(checkpoints: Callable[[str], Path]) -> None:
    for family in ("smolvla", "pi0"):
        vla = load_vla(config(checkpoints(family), family, dtype="bfloat16"))
        start, batch = noise(vla, 2, 2), observation(2)
        chunks = vla.sample(vla.encode(batch), start)
        assert chunks.dtype == torch.float32 and bool(torch.isfinite(chunks).all())
        base = lerobots(vla, batch, start[:, 0])
        ours = vla.sample_normalised(vla.encode(batch), start[:, :1])[:, 0, :, :ACTION]
        assert torch.equal(ours, base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/nowhere/at/all"}, "policy checkpoint '/nowhere/at/all' does not exist"),
        ({"path": str(NANO)}, "is Gr00tN1d7, not LeRobot's"),
        ({"state_dim": 199}, "state has 199 dimensions .* takes at most 12"),
        ({"action_dim": 6}, "action has 6 dimensions but the checkpoint's robot has 7"),
        ({"image_keys": CAMERAS[:1]}, "camera 'observation.images.eye_in_hand'"),
        ({"embodiment": "gr1"}, "embodiment 'gr1' is unknown"),
        ({"embodiment": "new_embodiment"}, "has no statistics for embodiment 'new_embodiment'"),
        ({"dtype": "float16"}, "use bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    checkpoints: Callable[[str], Path], changes: dict[str, Any], message: str
) -> None:
    for family in FAMILIES:
        with pytest.raises(DeasError, match=message) as raised:
            load_vla(config(**({"path": checkpoints(family), "family": family} | changes)))
        assert "\n" not in str(raised.value)


def test_half_a_checkpoint_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """LeRobot's own loaders go on with random weights."""
    from safetensors.torch import load_file, save_file

    whole = checkpoints("pi0")
    for file in whole.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DeasError, match=r"has no model\.safetensors"):
        load_vla(config(tmp_path, "pi0"))
    weights = load_file(whole / "model.safetensors")
    lost = next(name for name in weights if "gemma_expert.model.layers.1" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "model.safetensors")
    with pytest.raises(DeasError, match=f"lack 1 tensors .first: {lost}"):
        load_vla(config(tmp_path, "pi0"))
    with pytest.raises(DeasError, match="is pi0, not LeRobot's pi05"):
        load_vla(config(whole, "pi05"))
