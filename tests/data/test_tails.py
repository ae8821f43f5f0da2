"""What stands after a terminal step says nothing of the outcome."""

import pytest
import torch

from deas_vla.data.tails import KINDS, TailConfig, Tails
from deas_vla.errors import DeasError

T, A, H, B = 40, 3, 4, 600
ACTIONS = torch.arange(T * A, dtype=torch.float32).reshape(T, A)
STEPS = torch.arange(0, 30)
WHOLE = torch.tensor([2, 9, 17])
VALID = torch.arange(B) % H + 1
SEEDS = torch.randint(2**62, (B,), generator=torch.Generator().manual_seed(0))
AFTER = torch.arange(H) >= VALID.unsqueeze(1)  # (B, H)


def tails(**shares: float) -> Tails:
    config = TailConfig(**{**dict.fromkeys(KINDS, 0.0), **shares})
    return Tails(ACTIONS, STEPS, WHOLE, H, config)


def chunks() -> torch.Tensor:
    """Real steps, and behind them what must never be read."""
    executed = -torch.rand(B, H, A, generator=torch.Generator().manual_seed(1))
    return executed.masked_fill(AFTER.unsqueeze(2), float("nan"))


@pytest.mark.parametrize("kind", KINDS)
def test_executed_steps_stay_and_what_stood_behind_them_is_gone(kind: str) -> None:
    filled = tails(**{kind: 1.0}).fill(chunks(), VALID, SEEDS, torch.ones(B, 2, H, A))
    assert torch.equal(filled[~AFTER], chunks()[~AFTER])
    assert torch.isfinite(filled).all()


def test_held_tails_are_the_last_executed_action() -> None:
    filled = tails(hold=1.0).fill(chunks(), VALID, SEEDS)
    for row in range(B):
        last = filled[row, VALID[row] - 1]
        assert torch.equal(filled[row, VALID[row] :], last.expand(H - int(VALID[row]), A))


def test_steps_are_drawn_evenly_and_apart_from_each_other() -> None:
    drawn = tails(steps=1.0).draw("steps", chunks(), VALID, SEEDS)  # (B, H, A)
    frame = (drawn[..., 0] / A).long()
    assert torch.equal(drawn, ACTIONS[frame])
    count = torch.bincount(frame.flatten(), minlength=T)
    assert count[30:].sum() == 0 and (count[:30] > 0.5 * B * H / 30).all()
    assert (frame[:, 0] == frame[:, 1]).float().mean() < 0.1


def test_chunks_are_consecutive_steps_of_one_that_was_executed_whole() -> None:
    drawn = tails(chunks=1.0).draw("chunks", chunks(), VALID, SEEDS)
    start = (drawn[:, 0, 0] / A).long()
    assert set(start.tolist()) == set(WHOLE.tolist())
    assert torch.equal(drawn, ACTIONS[start.unsqueeze(1) + torch.arange(H)])


def test_policy_tails_are_its_samples_and_held_where_there_are_none() -> None:
    proposed = torch.arange(5.0).view(1, 5, 1, 1).expand(B, 5, H, A)
    drawn = tails(policy=1.0).draw("policy", chunks(), VALID, SEEDS, proposed)
    assert drawn[:, 0, 0].unique().tolist() == [0, 1, 2, 3, 4]
    held = tails(policy=1.0).fill(chunks(), VALID, SEEDS)
    assert torch.equal(held, tails(hold=1.0).fill(chunks(), VALID, SEEDS))


def test_a_row_depends_on_its_seed_alone() -> None:
    mixed = tails(hold=1.0, steps=1.0, chunks=2.0)
    whole = mixed.fill(chunks(), VALID, SEEDS)
    part = slice(100, 164)
    assert torch.equal(whole[part], mixed.fill(chunks()[part], VALID[part], SEEDS[part]))
    assert not torch.equal(whole, mixed.fill(chunks(), VALID, SEEDS + 1))


def test_kinds_come_in_their_shares() -> None:
    """Half of the rows hold their last action, whose values no frame has."""
    filled = tails(hold=1.0, steps=1.0).fill(chunks(), torch.ones(B, dtype=torch.int64), SEEDS)
    held = (filled[:, 1] < 0).all(dim=1).float().mean()
    assert held == pytest.approx(0.5, abs=0.06)


def test_shares_that_mean_nothing_are_refused() -> None:
    with pytest.raises(DeasError, match=r"tails\.steps -1"):
        TailConfig(steps=-1)
    with pytest.raises(DeasError, match="share above 0"):
        TailConfig(hold=0, steps=0, chunks=0, policy=0)
