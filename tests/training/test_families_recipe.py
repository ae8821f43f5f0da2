"""A family other than GR00T through all stages of the recipe, and its bundle on a robot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from groot_cases import NANO
from prefix_cases import write_smolvla
from recipe_cases import recipe

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smolvla(tmp_path_factory.mktemp("smolvla"))


@pytest.fixture(scope="module")
def bundle(base: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finetuned with projectors."""
    flags = (f"--policy.path={base}", "--policy.family=smolvla", "--policy.train_projectors=true")
    output = tmp_path_factory.mktemp("run") / "bundle"
    return recipe(tiny_dataset, output, *flags, "--policy.embodiment=new_embodiment")


def observation(policy: ValueGuidedPolicy) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    batch: dict[str, Any] = dict.fromkeys(policy.vla.spec.image_keys, pictures)
    return {**batch, "observation.state": torch.zeros(1, 9), "task": ["lift the red cube"]}


def test_best_of_n_from_the_bundle(bundle: Path) -> None:
    policy = open_bundle(bundle)
    batch = observation(policy)
    policy.reset([3])
    chunk, decision = policy.predict_action_chunk(batch), policy.last_decision
    assert decision is not None and decision.scores is not None and policy.critic is not None
    assert chunk.shape == (1, 8, 7) and decision.scores.shape == (1, 16)
    assert int(decision.chosen) == int(decision.scores.argmax())
    assert torch.equal(chunk, decision.chunk[:, :8])
    # The critic's own normalisation is over the robot's actions.
    first = decision.candidates[:, :, : policy.critic.config.horizon]
    members = policy.critic.member_scores(decision.feature, decision.state, first)
    assert decision.members is not None and torch.equal(members, decision.members)

    policy.config.candidates = 1
    policy.reset([3])
    alone = policy.predict_action_chunk(batch)
    torch.testing.assert_close(alone, decision.candidates[:, 0, :8], atol=1e-4, rtol=0)


def test_the_adapter_over_lerobots_policy_by_peft_alone(bundle: Path, base: Path) -> None:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from peft import PeftModel

    policy = open_bundle(bundle)
    batch, vla = observation(policy), policy.vla
    noise = torch.randn(1, 1, *vla.spec.noise_shape, generator=torch.Generator().manual_seed(1))
    config = SmolVLAPolicy.config_class.from_pretrained(base)
    config.vlm_model_name = str(base / config.vlm_model_name)
    plain = SmolVLAPolicy.from_pretrained(base, config=config)
    inputs = vla.preprocess(batch)
    before = plain.predict_action_chunk(dict(inputs), noise=noise[:, 0])
    adapted = PeftModel.from_pretrained(plain, str(bundle / "policy")).eval()
    after = adapted.predict_action_chunk(dict(inputs), noise=noise[:, 0])
    assert not torch.equal(before, after)
    ours = vla.sample_normalised(vla.encode(batch), noise)[:, 0, :, :7]
    assert torch.equal(ours, after)


def test_lerobots_factory_loads_the_bundle(bundle: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.factory import make_env_config
    from lerobot.policies.factory import make_policy

    import deas_vla.plugin.lerobot_policy_deas_vla  # noqa: F401

    config = PreTrainedConfig.from_pretrained(bundle, cli_overrides=["--candidates=4"])
    config.pretrained_path = bundle
    policy, ours = make_policy(config, env_cfg=make_env_config("deas_lift")), open_bundle(bundle)
    ours.config.candidates = 4
    batch = observation(ours)
    for each in (policy, ours):
        each.reset([5])
    assert torch.equal(policy.select_action(batch), ours.select_action(batch))


def test_another_base_is_refused(bundle: Path, base: Path, tmp_path: Path) -> None:
    assert read_manifest(bundle)["config"]["policy"]["family"] == "smolvla"
    with pytest.raises(DeasError, match="is Gr00tN1d7, not LeRobot's smolvla"):
        open_bundle(bundle, base=str(NANO))
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        if file.name != "model.safetensors":
            (other / file.name).symlink_to(file)
    weights = load_file(base / "model.safetensors")
    name = next(k for k in weights if "vision_model" in k and k.endswith("q_proj.weight"))
    weights[name] += 0.01
    save_file(weights, other / "model.safetensors")
    with pytest.raises(DeasError, match="was made over another backbone"):
        open_bundle(bundle, base=str(other))


def test_pictures_in_the_loop(base: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    flags = (f"--policy.path={base}", "--policy.family=smolvla", "--policy.tokens=online")
    flags += ("--policy.embodiment=new_embodiment", "--policy.workers=1")
    bundle = recipe(tiny_dataset, tmp_path / "online", *flags)
    assert not list((tmp_path / "online").glob("cache/tokens-*"))
    assert read_manifest(bundle)["config"]["policy"]["tokens"] == "online"
    assert open_bundle(bundle).predict_action_chunk(observation(open_bundle(bundle))).shape[2] == 7
