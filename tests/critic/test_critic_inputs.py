"""Statistics, batches and settings: what they compute and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from critic_cases import A, B, F, H, S, random_batch, random_statistics, seeded, small_config

from deas_vla.critic import (
    ChunkBatch,
    CriticConfig,
    InferenceConfig,
    Normalizer,
    Statistics,
    compute_statistics,
    make_critic,
)
from deas_vla.critic import normalization as normalization_module
from deas_vla.critic.config import ALGORITHMS
from deas_vla.critic.registry import CRITICS
from deas_vla.errors import DeasError

# Statistics.


def test_statistics_of_chosen_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization_module, "_BLOCK", 25)  # many blocks, an uneven last one
    generator = seeded()
    features = 1e3 + torch.randn(50, F, generator=generator)
    states = torch.randn(50, S, generator=generator) * torch.tensor([1e-3, 1.0, 1e3])
    actions = torch.randn(50, A, generator=generator)
    counts = torch.rand(50, generator=generator) < 0.7
    actions[~counts] = float("nan")
    chosen = counts.nonzero().squeeze(1)
    statistics = compute_statistics(features, states, actions, chosen)
    for name, rows in (("feature", features), ("state", states), ("action", actions)):
        mean, std = getattr(statistics, f"{name}_mean"), getattr(statistics, f"{name}_std")
        assert mean.dtype == std.dtype == torch.float32
        torch.testing.assert_close(mean, rows[chosen].double().mean(0).float())
        torch.testing.assert_close(std, rows[chosen].double().std(0, correction=0).float())


def test_a_constant_dimension_is_centred_and_left_unscaled() -> None:
    states = torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    statistics = compute_statistics(torch.zeros(2, 0), states, torch.zeros(2, A))
    assert statistics.state_std[0] == 1 and statistics.action_std.eq(1).all()
    scaled = Normalizer(statistics).state(states)
    torch.testing.assert_close(scaled, torch.tensor([[0.0, -1.0], [0.0, 1.0]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["features", "states", "actions"])
def test_values_that_are_not_finite_are_refused_by_name(place: str, value: float) -> None:
    arrays = {"features": torch.zeros(4, F), "states": torch.zeros(4, S),
              "actions": torch.zeros(4, A)}  # fmt: skip
    arrays[place].view(-1)[3] = value
    with pytest.raises(DeasError, match=f"^{place} hold a NaN"):
        compute_statistics(**arrays)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DeasError, match="states have no rows"):
        compute_statistics(torch.zeros(1, F), torch.zeros(0, S), torch.zeros(1, A))


def test_statistics_of_another_dataset_are_refused() -> None:
    with pytest.raises(DeasError, match=rf"state_mean has shape \({S + 1},\).*state_dim = {S}"):
        make_critic(small_config(), Statistics.identity(F, S + 1, A))


def test_inputs_far_from_the_data_are_clamped_and_a_nan_is_not_hidden() -> None:
    normalizer = Normalizer(random_statistics())
    for scale, dim in ((normalizer.feature, F), (normalizer.state, S), (normalizer.actions, A)):
        assert scale(torch.full((dim,), 1e9)).tolist() == [normalization_module.LIMIT] * dim
        assert scale(torch.full((dim,), -1e9)).tolist() == [-normalization_module.LIMIT] * dim
        assert scale(torch.full((dim,), float("nan"))).isnan().all()


def test_distance_is_that_of_the_input_that_is_farther_from_the_data() -> None:
    unit = Statistics.identity(2, 1, 1)
    normalizer = Normalizer(unit)
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e9, 1e9]])
    found = normalizer.distance(features, torch.tensor([[1.0], [-2.0], [0.0]]))
    assert found.tolist() == pytest.approx([12.5**0.5, 2.0, 10.0])
    alone = Normalizer(Statistics.identity(0, 1, 1))
    assert alone.distance(torch.zeros(1, 0), torch.tensor([[-2.0]])).tolist() == [2.0]


def test_a_dimension_that_hardly_ever_moves_is_measured_by_its_range() -> None:
    """One frame in ten thousand moves 1 cm: a deviation of 0.1 mm would make that 100 units."""
    states = torch.zeros(10_000, 2)
    states[7, 0] = 0.01
    states[:, 1] = torch.linspace(-1, 1, 10_000)
    found = compute_statistics(torch.zeros(1, F), states, torch.zeros(1, A))
    assert found.state_std[0].item() == pytest.approx(normalization_module.MIN_STD_OF_RANGE * 0.01)
    assert found.state_std[1].item() == pytest.approx(3**-0.5, rel=1e-3)


# Batches.


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"state": torch.zeros(B + 1, S)}, "batch.state"),
        ({"next_state": torch.zeros(B, S + 1)}, "batch.next_state"),
        ({"reward": torch.zeros(B, 1)}, "batch.reward"),
        ({"member_weight": torch.ones(B + 1, 2)}, "batch.member_weight"),
        ({"terminated": torch.zeros(B)}, "batch.terminated"),
        ({"actions": torch.zeros(B, A)}, "batch.actions"),
        ({"next_actions": torch.zeros(B, H, A + 1)}, "batch.next_actions"),
        ({"next_candidates": torch.zeros(B, H, A)}, "batch.next_candidates"),
        ({"next_candidates": torch.zeros(B, 3, H + 1, A)}, "batch.next_candidates"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(
    batch: ChunkBatch, changes: dict[str, torch.Tensor], named: str
) -> None:
    with pytest.raises(DeasError, match=named):
        dataclasses.replace(batch, **changes)


def test_a_batch_moves_as_a_whole() -> None:
    moved = dataclasses.replace(random_batch(), next_candidates=None).to("meta")
    assert moved.next_candidates is None
    assert moved.actions.device.type == moved.next_actions.device.type == "meta"


# Settings.


def test_every_algorithm_has_a_class() -> None:
    assert tuple(CRITICS) == ALGORITHMS


def test_settings_survive_json() -> None:
    config = small_config("evor", inference=InferenceConfig(eta=0.3))
    assert CriticConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithm": "sac"}, "critic.algorithm = 'sac'"),
        ({"support": "auto"}, "critic.support = 'auto'"),
        ({"action_dim": 0}, "critic.action_dim = 0"),
        ({"horizon": 0}, "critic.horizon = 0"),
        ({"feature_dim": 0, "state_dim": 0}, "critic.state_dim = 0"),
        ({"hidden": []}, r"critic.hidden = \[\]"),
        ({"ensemble": 0}, "critic.ensemble = 0"),
        ({"bins": 1}, "critic.bins = 1"),
        ({"sigma_bins": 0.0}, "critic.sigma_bins = 0.0"),
        ({"g2": 1.1}, "critic.g2 = 1.1"),
        ({"expectile": 1.0}, "critic.expectile = 1.0"),
        ({"ema": 0.0}, "critic.ema = 0.0"),
        ({"lr": float("nan")}, "critic.lr = nan"),
        ({"v_max": None}, "critic.v_max = None"),
        ({"v_max": -10.0}, "critic.v_max = -10.0"),
        ({"inference": InferenceConfig(eta=0)}, "critic.inference.eta = 0"),
        ({"inference": InferenceConfig(samples=0)}, "critic.inference.samples = 0"),
    ],
)
def test_senseless_settings_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(DeasError, match=named):
        make_critic(small_config(**changes))


@pytest.mark.parametrize("where", ["critic", "critic.inference"])
def test_unknown_settings_are_refused_by_name(where: str) -> None:
    values = small_config().to_dict()
    (values if where == "critic" else values["inference"])["expectil"] = 0.9
    with pytest.raises(DeasError, match=rf"^{where}.expectil = 0.9"):
        CriticConfig.from_dict(values)


def test_a_critic_keeps_its_own_settings() -> None:
    config = small_config()
    critic = make_critic(config)
    config.expectile = 0.99
    assert critic.config.expectile == 0.7
