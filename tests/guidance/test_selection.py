"""The choice among candidates and the noise they start from."""

import pytest
import torch

from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionConfig, SelectionOverride
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.guidance.selection import Selection, chances, select

A, H = 2, 3


def chunks(rows: int, count: int) -> torch.Tensor:
    return torch.zeros(rows, count, H, A)


def choose(members: torch.Tensor, *generators: torch.Generator, **settings: object) -> Selection:
    """Of members (E, B, N)."""
    config = SelectionConfig(**settings)
    config.check(len(members))
    return select(config, chunks(*members.shape[1:]), members, generators)


def test_the_best_has_the_highest_smallest_member() -> None:
    members = torch.tensor([[[1.0, 3.0, 2.0]], [[1.0, 0.0, 1.5]]])
    found = choose(members)
    assert found.chosen.tolist() == [2]
    assert found.scores is not None and found.scores.tolist() == [[1.0, 0.0, 1.5]]


def test_kappa_weighs_the_disagreement() -> None:
    """Means 1.5 and 1, deviations 1.5 and 0: 1.5 - 1.5 kappa against 1."""
    members = torch.tensor([[[3.0, 1.0]], [[0.0, 1.0]]])
    assert choose(members, ensemble="mean", kappa=0.3).chosen.tolist() == [0]
    assert choose(members, ensemble="mean", kappa=0.4).chosen.tolist() == [1]


def test_softmax_draws_in_proportion() -> None:
    members = torch.log(torch.tensor([[[0.2, 0.3, 0.5]]])).expand(1, 20_000, 3)
    generators = [torch.Generator().manual_seed(0)] * 20_000
    drawn = choose(members, *generators, rule="softmax", temperature=1.0).chosen
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert share.tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.02)


def test_the_pull_of_softmax_has_a_limit_that_more_candidates_do_not_pass() -> None:
    """Of scores N(0, s^2) it takes s^2 / T above their mean in the limit; the best goes on."""
    spread, temperature = 0.04, 0.04
    scores = spread * torch.randn(4000, 1024, generator=torch.Generator().manual_seed(0))

    def pull(count: int, config: SelectionConfig) -> float:
        kept = scores[:, :count].double()
        return (chances(kept, config) * kept).sum(1).mean().item()

    drawn = SelectionConfig(rule="softmax", temperature=temperature)
    assert pull(16, drawn) < pull(64, drawn) < pull(1024, drawn) < spread**2 / temperature
    assert pull(1024, drawn) == pytest.approx(spread**2 / temperature, rel=0.02)
    best = SelectionConfig()
    assert pull(64, best) > 1.3 * pull(16, best) and pull(1024, best) > 3 * spread


def test_medoid_is_nearest_to_the_others_in_units_of_the_actions() -> None:
    candidates = torch.zeros(1, 3, H, A)
    candidates[0, :, 0, 0] = torch.tensor([0.0, 1.0, 5.0])
    candidates[0, :, 0, 1] = torch.tensor([0.0, 90.0, 10.0])
    config = SelectionConfig(rule="medoid")
    assert select(config, candidates, None, []).chosen.tolist() == [2]
    scaled = select(config, candidates, None, [], scale=torch.tensor([1.0, 1000.0]))
    assert scaled.chosen.tolist() == [1]


def test_uniform_takes_every_candidate_as_often() -> None:
    config = SelectionConfig(rule="uniform")
    generators = [torch.Generator().manual_seed(0)] * 4000
    drawn = select(config, chunks(4000, 4), None, generators).chosen
    assert (torch.bincount(drawn) / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_a_score_that_is_not_finite_keeps_candidate_0(bad: float) -> None:
    members = torch.tensor([[[0.0, 1.0, bad], [0.0, 1.0, 2.0]]])
    found = choose(members)
    assert found.chosen.tolist() == [0, 2] and found.finite.tolist() == [False, True]


@pytest.mark.parametrize(
    ("settings", "members", "message"),
    [
        ({"rule": "argmax"}, 2, r"selection\.rule 'argmax'"),
        ({"rule": "softmax"}, 2, r"temperature 0\.0 with rule softmax"),
        ({"temperature": 1.0}, 2, r"temperature 1\.0 with rule best"),
        ({"ensemble": "mean", "kappa": -1.0}, 2, r"selection\.kappa -1"),
        ({"kappa": 1.0}, 2, r"kappa 1\.0 with ensemble min"),
        ({"ensemble": "mean", "kappa": 1.0}, 1, r"kappa 1\.0 .* has 1 member"),
        ({"ensemble": "median"}, 2, r"selection\.ensemble 'median'"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(
    settings: dict[str, object], members: int, message: str
) -> None:
    with pytest.raises(DeasError, match=message):
        SelectionConfig(**settings).check(members)


def test_flags_replace_what_they_name() -> None:
    bundle = SelectionConfig(ensemble="mean", kappa=1.0)
    assert SelectionOverride(kappa=0.5).over(bundle) == SelectionConfig(ensemble="mean", kappa=0.5)
    assert SelectionOverride().over(bundle) == bundle


def test_candidates_are_nested_and_plans_differ() -> None:
    few, many = CandidateNoise([7]), CandidateNoise([7])
    for _ in range(3):
        one, sixteen = few.draw(1, (4, 2)), many.draw(16, (4, 2))
        assert torch.equal(one, sixteen[:, :1])
    assert not torch.equal(few.draw(1, (4, 2)), one)


def test_parallel_episodes_have_their_own_streams() -> None:
    both = CandidateNoise([1, 2]).draw(2, (3,))
    assert torch.equal(both[1:], CandidateNoise([2]).draw(2, (3,)))
    assert not torch.equal(both[0], both[1])


def test_a_row_depends_on_its_own_episode_and_plan_alone() -> None:
    alone = CandidateNoise([5])
    for _ in range(2):
        alone.draw(2, (3,))
    company = CandidateNoise([9, 5], [7, 2])
    assert torch.equal(alone.draw(2, (3,))[0], company.draw(2, (3,))[1])
    members, draw = torch.zeros(1, 2, 1000), {"rule": "softmax", "temperature": 1.0}
    both = choose(members, *company.selection_generators(), **draw).chosen
    one = choose(members[:, 1:], *alone.selection_generators(), **draw).chosen
    assert one.item() == both[1].item()
