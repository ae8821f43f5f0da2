"""Adapters of several bundles over one base, each answering as its own bundle does."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from groot_cases import NANO, config, observation
from torch import Tensor

from deas_vla.adapters import AdapterBank, Merge
from deas_vla.bundle import open_bundle, write_bundle
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.policies.config import load_vla
from deas_vla.training.config import PolicyConfig
from deas_vla.training.policy import add_lora


def moved(policy: ValueGuidedPolicy, seed: int) -> ValueGuidedPolicy:
    """Adapter and critic far from where they were."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.vla.model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    assert policy.critic is not None
    for weight in policy.critic.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def bundles(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """No adapter; the recipe's; the same parts otherwise; other parts and whole projectors."""
    folder, first = tmp_path_factory.mktemp("bundles"), open_bundle(bundle)
    write_bundle(moved(open_bundle(bundle), 1), folder / "same", first.provenance)
    for name, parts in (("none", []), ("other", ["attention", "projectors"])):
        made = open_bundle(bundle)
        vla = load_vla(config(), dataset_stats=made.dataset_stats)
        if parts:
            add_lora(vla, PolicyConfig(train=parts))
            vla.model.eval()
        made.config.adapter = bool(parts)
        policy = ValueGuidedPolicy(made.config, vla, made.critic, made.dataset_stats)
        write_bundle(moved(policy, 2), folder / name, first.provenance)
    return {"none": folder / "none", "recipe": bundle, "same": folder / "same"} | {
        "other": folder / "other"
    }


def answers(policy: ValueGuidedPolicy, seed: int) -> tuple[Tensor, Any]:
    """The chosen chunks for two robots, and the scores of the candidates."""
    decision = policy.decide(observation(2, seed), CandidateNoise([seed, seed + 1]), 4)
    return decision.chunk, decision.scores


def test_each_answers_as_its_own_bundle(bundles: dict[str, Path]) -> None:
    """Bit for bit, in any order; their weights are the bundles' too."""
    bank = AdapterBank(bundles)
    alone = {name: open_bundle(path) for name, path in bundles.items()}
    chunks = {}
    for seed, name in enumerate([*bundles, *reversed(bundles), "other", "none", "other"]):
        ours, theirs = answers(bank[name], seed), answers(alone[name], seed)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]), name
        chunks[name] = answers(bank[name], 99)[0]
    assert len({tuple(chunk.flatten().tolist()) for chunk in chunks.values()}) == len(bundles)
    for name, policy in alone.items():
        assert bank[name].revision() == policy.revision(), name
    networks = {id(policy.vla.model) for policy in bank.values()}
    assert len(networks) == 1


def test_switching_takes_less_than_50_ms(bundles: dict[str, Path]) -> None:
    bank, times = AdapterBank(bundles), []
    for name in [*bundles] * 5:
        begin = time.perf_counter()
        bank.activate(name)
        times.append(time.perf_counter() - begin)
    assert median(times) < 0.05


def test_what_a_bank_refuses(bundles: dict[str, Path]) -> None:
    bank = AdapterBank({"recipe": bundles["recipe"]})
    with pytest.raises(DeasError, match=r"adapter 'other' is unknown: use one of \['recipe'\]"):
        bank.activate("other")
    with pytest.raises(DeasError, match="adapter 'recipe' is there already"):
        bank.add("recipe", bundles["same"])
    with pytest.raises(DeasError, match="adapters of a bank share their base"):
        Merge(bank["recipe"])
    with pytest.raises(DeasError, match="a bank's adapters run uncompiled"):
        bank["recipe"].vla.compile()
    moved_base = open_bundle(bundles["same"])
    moved_base.config.vla.denoising_steps = 2
    elsewhere = bundles["same"].parent / "steps"
    write_bundle(moved_base, elsewhere, {})
    with pytest.raises(DeasError, match=r"vla\.denoising_steps is 2 in this bundle"):
        bank.add("steps", elsewhere)
    assert [*bank] == ["recipe"] and torch.isfinite(answers(bank["recipe"], 0)[0]).all()


def test_merged_and_back(bundles: dict[str, Path]) -> None:
    policy = open_bundle(bundles["other"])
    before, revision = answers(policy, 3)[0], policy.revision()
    with Merge(policy):
        merged = answers(policy, 3)[0]
        torch.testing.assert_close(merged, before, atol=1e-4, rtol=1e-3)
        with pytest.raises(DeasError, match="merged into its base"):
            policy.revision()
        with pytest.raises(DeasError, match="merged into its base"):
            Merge(policy)
    assert torch.equal(answers(policy, 3)[0], before) and policy.revision() == revision
    with pytest.raises(DeasError, match="no adapter to merge"):
        Merge(open_bundle(bundles["none"]))


def test_an_adapter_of_another_network_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    from deas_vla.policies.lora import load_adapter

    with pytest.raises(DeasError, match="does not fit this base checkpoint"):
        load_adapter(torch.nn.Sequential(torch.nn.Linear(2, 2)), bundles["same"] / "policy")


def test_parts_of_the_network_by_name(bundles: dict[str, Path]) -> None:
    """PEFT's own file says where the adapter went, and loads into LeRobot's class by PEFT alone."""
    from peft import PeftConfig, PeftModel

    vla = load_vla(config())
    peft = PeftModel.from_pretrained(vla.groot, bundles["other"] / "policy")
    adapted = {name.split(".lora_A")[0] for name, _ in peft.named_parameters() if "lora_A" in name}
    assert adapted and all("attn1" in name for name in adapted)
    settings = PeftConfig.from_pretrained(bundles["other"] / "policy")
    assert set(settings.modules_to_save) == set(vla.projectors)
    assert settings.base_model_name_or_path == str(NANO)
    with pytest.raises(DeasError, match=r"policy\.train has 'hands', which is unknown"):
        add_lora(load_vla(config()), PolicyConfig(train=["head", "hands"]))
