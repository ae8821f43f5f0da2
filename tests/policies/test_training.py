"""What of a policy trains, and the pictures that it trains on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from groot_cases import CAMERAS, NANO, config, observation

from deas_vla.errors import DeasError
from deas_vla.policies.config import load_vla
from deas_vla.policies.groot import GrootVLA
from deas_vla.policies.lora import training_targets
from deas_vla.training.config import PolicyConfig
from deas_vla.training.policy import add_lora
from deas_vla.training.policy_inputs import seeded


@pytest.fixture(scope="module")
def vla() -> GrootVLA:
    return load_vla(config())


def trainable(vla: GrootVLA) -> set[str]:
    names = (n for n, p in vla.model.named_parameters() if p.requires_grad)
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize(
    ("train", "whole", "places"),
    [
        (["head"], [], {"action_head.model"}),
        (["vl_self_attention", "vlln"], [], {"action_head.vl_self_attention", "action_head.vlln"}),
        (["llm_top:2"], [], {f"backbone.model.model.language_model.layers.{k}" for k in (1, 2)}),
        (["vision"], ["vision"], {"backbone.model.model.visual"}),
    ],
)
def test_a_part_trains_and_nothing_else(
    train: list[str], whole: list[str], places: set[str]
) -> None:
    vla = load_vla(config())
    add_lora(vla, PolicyConfig(train=train, train_whole=whole))
    names = trainable(vla)
    assert all(any(name.startswith(place + ".") for place in places) for name in names)
    assert all(any(name.startswith(place + ".") for name in names) for place in places)
    copied = {name for name in names if "modules_to_save" in name}
    assert copied == (names if whole else {name for name in names if ".vlln." in name})
    vla.model.train()
    inputs = vla.training_inputs(augmented=False)(observation(2))
    batch = inputs | vla.preprocess_targets(
        torch.zeros(2, 9), torch.rand(2, 16, 7), torch.ones(2, 16, dtype=torch.bool)
    )
    found = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        with vla.gradient_checkpointing(checkpointing):
            encoding = vla.encode_batch(batch)
            assert encoding.tokens.requires_grad == any(p.startswith("backbone") for p in places)
            loss = vla.flow_matching_loss(encoding, batch["action"], batch["action_mask"])
            loss.backward()
        found[checkpointing] = {
            n: p.grad.clone() for n, p in vla.model.named_parameters() if p.grad is not None
        }
        vla.model.zero_grad()
    assert {name.removeprefix("base_model.model.") for name in found[False]} == names
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient)


@pytest.mark.parametrize(
    ("train", "whole", "message"),
    [
        (["hands"], [], r"policy\.train has 'hands', .* 'llm_top:1\.\.3'.*'projectors', 'vision'"),
        (["llm_top:4"], [], r"policy\.train has 'llm_top:4', which is unknown"),
        (["head"], ["vision"], r"train_whole has 'vision', which policy\.train does not have"),
        (["head"], ["projectors"], r"train_whole has 'projectors', which policy\.train does not"),
        (["head", "attention"], ["attention"], r"train_whole has 'attention', whose layer .* LoRA"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    vla: GrootVLA, train: list[str], whole: list[str], message: str
) -> None:
    with pytest.raises(DeasError, match=message) as error:
        training_targets(vla.model, vla.lora_parts, train, whole)
    assert "\n" not in str(error.value)


def test_inputs_without_augmentation_are_the_policys_own(vla: GrootVLA) -> None:
    seen = observation(3)
    ours, theirs = vla.training_inputs(augmented=False)(seen), vla.preprocess(seen)
    assert ours and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("albumentations", [False, True])
def test_pictures_are_augmented_as_the_checkpoint_says(
    tmp_path: Path, albumentations: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(NANO, tmp_path / "nano"))
    file = copy / "processor_config.json"
    content = json.loads(file.read_text())
    content["processor_kwargs"] |= {"crop_fraction": 0.75, "use_albumentations": albumentations}
    file.write_text(json.dumps(content))
    vla = load_vla(config(copy))
    ramp = torch.linspace(0, 255, 64).byte().expand(3, 64, 64)  # brighter to the right
    pictures = {CAMERAS[0]: ramp, CAMERAS[1]: ramp.mT}
    inputs = vla.training_inputs(augmented=True)

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        with seeded(seed):
            return inputs.augment(pictures)

    first = drawn(1)
    assert all(picture.shape == (3, 48, 48) for picture in first.values())
    assert all(torch.equal(drawn(1)[key], first[key]) for key in pictures)
    assert not torch.equal(drawn(2)[CAMERAS[0]], first[CAMERAS[0]])
    whole = observation(1) | {key: picture[None] for key, picture in pictures.items()}
    assert torch.equal(
        vla.training_inputs(augmented=False)(whole)["pixel_values"],
        vla.preprocess(whole)["pixel_values"],
    )
    # The window in the middle is what the robot sees, but for how it is resized.
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([0.5, 0.5]))
    middle = observation(1) | {key: each[None] for key, each in inputs.augment(pictures).items()}
    ours, theirs = inputs(middle)["pixel_values"], vla.preprocess(whole)["pixel_values"]
    assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 0.1
    assert float((ours - theirs).abs().mean()) < 0.02
    monkeypatch.undo()

    content["processor_kwargs"] |= {"color_jitter_params": {"brightness": 0.5}}
    file.write_text(json.dumps(content))
    inputs = vla.training_inputs(augmented=True)
    grey = dict.fromkeys(CAMERAS, torch.full((3, 64, 64), 100, dtype=torch.uint8))
    with seeded(3):
        left, right = (float(picture.float().mean()) for picture in inputs.augment(grey).values())
    assert left == right != 100  # one draw for all cameras
