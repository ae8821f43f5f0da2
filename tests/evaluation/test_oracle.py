"""Branching a simulator, and what a critic's choices are worth against what became of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sim_cases import ToyEnv

from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv
from deas_vla.envs.rollout import Plan
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.planning import Look
from deas_vla.evaluation.engine.workers import Trial
from deas_vla.evaluation.oracle.analysis import (
    Decisions,
    choose,
    gains,
    oracle_choice,
    proposed_calibration,
    rank_agreement,
)
from deas_vla.evaluation.oracle.branching import BranchEpisode, check_affordable, check_restores
from deas_vla.evaluation.oracle.records import Branched, read_branched, write_branched
from deas_vla.guidance.config import SelectionConfig

# Candidate k strides by this much, twice; three of the first solve the task from any start.
STRIDES = np.array([0.1, 0.9, 0.5], dtype=np.float32)


class StridingAgent:
    """Proposes `STRIDES`; its base policy takes the first."""

    def __init__(self) -> None:
        self.looks: list[Look] = []

    def ask(self, look: Look) -> Plan:
        self.looks.append(look)
        chunks = np.repeat(STRIDES[: look.candidates, None, None], 2, axis=1)  # (N, H, A)
        info = {}
        if look.keep:
            info = {"candidates": chunks, "feature": np.zeros(2), "state": look.observation.state}
        return Plan(chunks[0], info)


def branch(tmp_path: Path, **more: int) -> tuple[list, StridingAgent]:
    agent = StridingAgent()
    settings = {"candidates": 3, "repeats": 2, "stride": 2, "points": 4} | more
    env = ToyEnv("Toy", tmp_path)
    return BranchEpisode(**settings)(env, agent, Trial("Toy", 3, 3)), agent


def test_every_candidate_is_run_to_the_end_from_the_same_state(tmp_path: Path) -> None:
    """Two strides and then the base's 0.1 a step, six steps in all, solved above 1.5."""
    points, _ = branch(tmp_path)
    start = float(points[0].state[0])
    assert [point.plan for point in points] == [0, 2]
    assert [point.step for point in points] == [0, 4]
    for point in points:
        x, left = float(point.state[0]), 6 - point.step
        assert x == pytest.approx(start + 0.1 * point.step, abs=1e-6)
        for k, stride in enumerate(STRIDES):
            path = x + np.cumsum([stride] * 2 + [0.1] * (left - 2))
            solved = bool((path > 1.5).any())
            steps = int(np.argmax(path > 1.5)) + 1 if solved else left
            assert point.success[k].tolist() == [solved] * 2
            assert point.steps[k].tolist() == [steps] * 2
    assert points[0].success[:, 0].tolist() == [False, True, False] or start > 0.1


def test_continuations_share_their_noise_over_candidates_and_differ_over_repeats(
    tmp_path: Path,
) -> None:
    _, agent = branch(tmp_path, points=1)
    seeds = [look.seed for look in agent.looks if not look.keep and look.seed != 3]
    assert len(set(seeds)) == 2  # of three candidates, twice each
    assert 3 not in seeds


def test_lift_goes_on_bit_for_bit_and_what_does_not_is_refused(tmp_path: Path) -> None:
    lift = LiftEnv(LiftConfig())
    lift.reset(0)
    check_restores(lift)
    lift.close()

    class Forgetful(ToyEnv):
        def restore_state(self, state: tuple[float, int]) -> None:
            self.steps = state[1]

    env = Forgetful("Toy", tmp_path)
    env.reset(0)
    with pytest.raises(DeasError, match="Toy does not go on bit for bit"):
        check_restores(env)


def test_what_the_budget_does_not_hold_is_refused() -> None:
    check_affordable(10, 16, 2, 320)
    with pytest.raises(DeasError, match=r"candidates 17 at 10 .* 340 continuations.*candidates=16"):
        check_affordable(10, 17, 2, 320)


def test_decisions_come_back_from_disk(tmp_path: Path) -> None:
    points, _ = branch(tmp_path)
    write_branched(tmp_path, Branched("Toy-3-3", points))
    write_branched(tmp_path, Branched("Toy-4-3", []))
    first, second = read_branched(tmp_path)
    assert (first.episode_id, second.episode_id, second.points) == ("Toy-3-3", "Toy-4-3", [])
    for there, here in zip(first.points, points, strict=True):
        assert there.plan == here.plan and np.array_equal(there.success, here.success)
        assert np.array_equal(there.candidates, here.candidates)


def decisions(success: list, q: list) -> Decisions:
    """Of (M, N, R) outcomes and (M, N) values; an episode for each decision point."""
    outcomes, values = np.array(success, dtype=bool), torch.tensor(q, dtype=torch.float32)
    return Decisions(
        np.arange(len(outcomes)),
        np.arange(len(outcomes))[::-1],
        outcomes,
        torch.zeros(*outcomes.shape[:2], 2, 1),
        values.unsqueeze(0),
        torch.ones(1),
    )


TWO = decisions([[[0, 0], [1, 1], [1, 0]], [[1, 1], [0, 0], [0, 0]]], [[0, 2, 1], [0, 1, -1]])


def test_agreement_by_hand() -> None:
    """State one: all three pairs alike. State two: 0 above 1 is wrong, 0 above 2 is right."""
    found = rank_agreement(TWO, np.random.default_rng(0), 20)
    assert found["concordance"].value == pytest.approx((1 + 0.5) / 2)


def test_a_critic_blind_to_actions_agrees_by_chance() -> None:
    blind = decisions(TWO.success.tolist(), [[1, 1, 1], [3, 3, 3]])
    found = rank_agreement(blind, np.random.default_rng(0), 20)
    assert found["concordance"].value == 0.5 and np.isnan(found["rank_correlation"].value)


def test_gain_and_regret_of_a_rule_by_hand() -> None:
    """Candidate 0 reaches 0 and 1; the best by Q reaches 1 and 0; one who knows 1 and 1."""
    found = gains(TWO, {"best": SelectionConfig()}, [2], np.random.default_rng(0), 20, seed=0)
    values = {kind: estimate.value for kind, estimate in found["best", 2].items()}
    assert values == {"success": 0.5, "gain": 0.0, "regret": 0.5}
    assert found["oracle", 2]["success"].value == 1.0
    assert choose(TWO, SelectionConfig(), 2, seed=0).tolist() == [1, 1]
    assert choose(TWO, SelectionConfig(), 1, seed=0).tolist() == [0, 0]


def test_phases_are_parts_of_the_episodes() -> None:
    """Of the steps in turn: the second of the two decision points comes first."""
    early, late = TWO.phases(3)
    assert (early.step.tolist(), late.step.tolist()) == ([0], [1])
    np.testing.assert_array_equal(early.value, TWO.value[1:])
    assert early.members[0, 0].tolist() == [0, 1, -1] and late.members[0, 0].tolist() == [0, 2, 1]
    six = decisions([[[0], [1]]] * 6, [[0, 1]] * 6)
    assert [len(part) for part in six.phases()] == [2, 2, 2]


def test_the_oracle_does_not_mistake_luck_for_skill() -> None:
    """Candidates that all succeed by coin flips: the best looks better than half, and is not."""
    luck = np.random.default_rng(1).random((4000, 16, 2)) < 0.5
    _, value = oracle_choice(luck, np.random.default_rng(0))
    assert luck.mean(axis=2).max(axis=1).mean() > 0.95
    assert value.mean() == pytest.approx(0.5, abs=0.02)


def test_proposed_chunks_are_calibrated_by_eighths_of_q() -> None:
    q = np.arange(16.0).reshape(2, 8)
    outcomes = (q >= 8)[:, :, None]
    bins = proposed_calibration(decisions(outcomes, q.tolist()), np.random.default_rng(0), 20, 4)
    assert [each.chunks for each in bins] == [4] * 4
    assert [each.q for each in bins] == [1.5, 5.5, 9.5, 13.5]
    assert [each.success.value for each in bins] == [0, 0, 1, 1]
