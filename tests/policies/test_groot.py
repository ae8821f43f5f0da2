"""The GR00T adapter against LeRobot's own classes, at nano size."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from groot_cases import CAMERAS, NANO, config, observation

from deas_vla.errors import DeasError
from deas_vla.policies.config import load_vla
from deas_vla.policies.groot import GrootVLA

LIMITS = json.loads((NANO / "config.json").read_text())
HEAD_INPUTS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "image_grid_thw",
    "state",
    "embodiment_id",
)


@pytest.fixture(scope="module")
def vla() -> GrootVLA:
    return load_vla(config())


def test_one_candidate_is_the_base_policy_bit_for_bit(vla: GrootVLA) -> None:
    inputs = vla.preprocess(observation(2))
    torch.manual_seed(0)
    base = vla.groot.get_action({key: inputs[key] for key in HEAD_INPUTS})["action_pred"]
    torch.manual_seed(0)
    noise = torch.randn(2, *vla.spec.noise_shape)
    ours = vla.sample_normalised(vla.encode(observation(2)), noise[:, None])
    assert torch.equal(ours[:, 0], base)


def test_candidates_of_one_encoding_equal_separate_samples(vla: GrootVLA) -> None:
    encoding = vla.encode(observation(2))
    noise = torch.randn(2, 3, *vla.spec.noise_shape, generator=torch.Generator().manual_seed(1))
    together = vla.sample(encoding, noise)
    assert together.shape == (2, 3, 16, 7) and together.dtype == torch.float32
    for n in range(3):
        alone = vla.sample(encoding, noise[:, n : n + 1])
        torch.testing.assert_close(together[:, n : n + 1], alone, atol=1e-5, rtol=0)


def test_sampling_leaves_the_global_generator_alone(vla: GrootVLA) -> None:
    encoding = vla.encode(observation(1))
    noise = torch.zeros(1, 1, *vla.spec.noise_shape)
    first = vla.sample(encoding, noise)
    torch.manual_seed(123)
    assert torch.equal(vla.sample(encoding, noise), first)


def test_actions_survive_normalising_and_decoding(vla: GrootVLA) -> None:
    action = torch.rand(2, 16, 7, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    targets = vla.preprocess_targets(torch.zeros(2, 9), action, torch.ones(2, 16, dtype=torch.bool))
    decoded = vla.decode(targets["action"][:, None], torch.zeros(2, 9))[:, 0]
    statistics = json.loads((NANO / "statistics.json").read_text())["robosuite_panda"]["action"]
    low = torch.tensor([x for group in statistics.values() for x in group["min"]])
    high = torch.tensor([x for group in statistics.values() for x in group["max"]])
    torch.testing.assert_close(decoded, action.clamp(low, high), atol=1e-5, rtol=0)


def test_loss_ignores_steps_that_were_not_executed(vla: GrootVLA) -> None:
    encoding = vla.encode(observation(2))
    valid = torch.arange(16) < torch.tensor([[4], [9]])
    losses = []
    for filler in (0.0, 0.9):
        action = torch.full((2, 16, 7), filler)
        action[valid] = 0.1
        targets = vla.preprocess_targets(observation(2)["observation.state"], action, valid)
        torch.manual_seed(0)
        losses.append(
            vla.flow_matching_loss(encoding, targets["action"], targets["action_mask"]).item()
        )
    assert losses[0] == losses[1]


def test_tokens_do_not_depend_on_the_batch(vla: GrootVLA) -> None:
    both = observation(2)
    both["task"] = ["lift", "lift the red cube and hold it very still for a while"]
    one = {key: value[:1] for key, value in both.items()}
    padded, alone = vla.encode(both), vla.encode(one)
    tokens = padded.tokens[0][padded.attention_mask[0]]
    torch.testing.assert_close(tokens, alone.tokens[0], atol=2e-4, rtol=0)


def test_new_embodiment_is_normalised_by_the_dataset() -> None:
    rows = {"min": [-2.0] * 5, "max": [2.0] * 5, "mean": [0.0] * 5, "std": [1.0] * 5}
    stats = {"observation.state": rows, "action": {k: v[:3] for k, v in rows.items()}}
    changes = {"embodiment": "new_embodiment", "state_dim": 5, "action_dim": 3}
    vla = load_vla(config(**changes), dataset_stats=stats)
    steps = vla.spec.action_horizon  # all that the head has, where the checkpoint says nothing
    action = torch.tensor([[[-2.0, 0.0, 2.0]]]).expand(1, steps, 3)
    valid = torch.ones(1, steps, dtype=torch.bool)
    targets = vla.preprocess_targets(torch.zeros(1, 5), action, valid)
    assert targets["action"][0, 0, :3].tolist() == [-1.0, 0.0, 1.0]
    torch.testing.assert_close(
        vla.decode(targets["action"][:, None], torch.zeros(1, 5))[:, 0], action
    )
    both = observation(1) | {"observation.state": torch.zeros(1, 5)}
    noise = torch.zeros(1, 1, *vla.spec.noise_shape)
    assert vla.sample(vla.encode(both), noise).shape == (1, 1, steps, 3)


def test_bfloat16_weights_give_float32_chunks() -> None:
    vla = load_vla(config(dtype="bfloat16"))
    noise = torch.zeros(1, 2, *vla.spec.noise_shape)
    chunks = vla.sample(vla.encode(observation(1)), noise)
    assert chunks.dtype == torch.float32 and bool(torch.isfinite(chunks).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/nowhere/at/all"}, "policy checkpoint '/nowhere/at/all' does not exist"),
        (
            {"state_dim": 199},
            rf"state has 199 dimensions .* takes at most {LIMITS['max_state_dim']}",
        ),
        ({"action_dim": 6}, "action has 6 dimensions but the checkpoint's embodiment"),
        ({"image_keys": CAMERAS[:1]}, "camera 'observation.images.eye_in_hand'"),
        ({"family": "pi9"}, "policy.family 'pi9' is unknown"),
        ({"dtype": "int3"}, "policy.dtype 'int3' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(DeasError, match=message):
        load_vla(config(**changes))


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(DeasError, match="not a raw GR00T"):
        load_vla(config(tmp_path))


def test_a_copied_checkpoint_is_the_same_policy(vla: GrootVLA, tmp_path: Path) -> None:
    """The raw layout carries everything: sharded weights, processor, statistics, embodiments."""
    shutil.copytree(NANO, tmp_path / "elsewhere")
    assert len(list(NANO.glob("model-*-of-*.safetensors"))) > 1
    copy = load_vla(config(tmp_path / "elsewhere"))
    noise = torch.zeros(1, 1, *vla.spec.noise_shape)
    assert torch.equal(
        copy.sample(copy.encode(observation(1)), noise),
        vla.sample(vla.encode(observation(1)), noise),
    )
    assert copy.backbone_fingerprint() == vla.backbone_fingerprint()


def test_nano_is_small() -> None:
    size = sum(file.stat().st_size for file in NANO.rglob("*") if file.is_file())
    assert size <= 12_000_000
