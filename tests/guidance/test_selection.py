"""The choice among candidates and the noise they start from."""

import pytest
import torch

from deas_vla.errors import DeasError
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.guidance.selection import select


def test_temperature_zero_takes_the_best() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    assert select(scores, 0.0).tolist() == [1, 0]


def test_temperature_draws_in_proportion() -> None:
    scores = torch.log(torch.tensor([[0.2, 0.3, 0.5]])).expand(20_000, 3)
    drawn = select(scores, 1.0, [torch.Generator().manual_seed(0)] * 20_000)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert share.tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(DeasError, match="candidate scores hold"):
        select(torch.tensor([[0.0, bad]]), 0.0)


def test_negative_temperature_is_refused() -> None:
    with pytest.raises(DeasError, match=r"temperature -1"):
        select(torch.zeros(1, 2), -1.0)


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
    scores = torch.zeros(2, 1000)
    both = select(scores, 1.0, company.selection_generators())
    assert select(scores[1:], 1.0, alone.selection_generators()).item() == both[1].item()
