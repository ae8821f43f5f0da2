"""Offline evaluation: the metrics by hand, which episodes they may see, and the command itself."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from offline_cases import EVERY, G1, G2, PlainCritic, evaluate, frame_critic
from recipe_cases import recipe
from scipy.stats import spearmanr
from table_cases import make_table

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.critic import CriticConfig, Normalizer, compute_statistics
from deas_vla.data.episodes import EpisodeTable, episode_digests, load_episodes
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline import metrics
from deas_vla.evaluation.offline.episodes import (
    check_same_critic,
    check_statistics,
    held_out_episodes,
)
from deas_vla.evaluation.offline.intervals import bootstrap, mean_over
from deas_vla.evaluation.offline.scoring import FrameCritic, score_dataset_chunks, values_along
from deas_vla.policies.groot import GrootVLA
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.features import extract_features

# ---- which episodes ------------------------------------------------------------------------------


def manifest(table: EpisodeTable, held_out: list[int], **more: Any) -> dict[str, Any]:
    trained = np.setdiff1d(np.arange(table.num_episodes), held_out)
    data = {
        "repo_id": table.repo_id,
        "fingerprint": table.fingerprint,
        "held_out_episodes": held_out,
        "trained_episode_digests": episode_digests(table, trained),
    }
    return {"data": data | more}


def test_the_held_out_episodes_of_its_own_dataset_are_the_default() -> None:
    table = make_table()
    assert held_out_episodes(manifest(table, [1, 3]), table).tolist() == [1, 3]
    assert held_out_episodes(manifest(table, [1, 3]), table, [3]).tolist() == [3]


def test_of_another_dataset_every_episode_is_held_out() -> None:
    bundle = manifest(make_table(seed=0), [1])
    assert held_out_episodes(bundle, make_table(seed=1)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("held_out", "chosen", "message"),
    [
        ([1, 3], [0], "episode 0 of dataset memory was trained on: choose .* held-out \\[1, 3\\]"),
        ([1, 3], [1, 9], "episode 9 is not in dataset memory"),
        ([], None, "held no episode out"),
    ],
)
def test_overlap_with_training_is_refused(
    held_out: list[int], chosen: list[int] | None, message: str
) -> None:
    table = make_table()
    with pytest.raises(DeasError, match=message):
        held_out_episodes(manifest(table, held_out), table, chosen)


def test_copies_of_trained_episodes_are_found_under_another_name_and_number() -> None:
    table = make_table()
    bundle = manifest(table, [1, 3])
    moved = replace(
        table, repo_id="test/merged", fingerprint="other", episode_ids=np.arange(4) + 100
    )
    with pytest.raises(DeasError, match=r"2 of its episodes were trained on \(first: 100\)"):
        held_out_episodes(bundle, moved)
    assert held_out_episodes(bundle, moved, [101, 103]).tolist() == [1, 3]
    del bundle["data"]["trained_episode_digests"]
    with pytest.raises(DeasError, match="does not say which episodes"):
        held_out_episodes(bundle, moved)


def test_digests_follow_the_content() -> None:
    table = make_table()
    digests = episode_digests(table, EVERY)
    assert len(set(digests)) == 4
    changed = table.action.copy()
    changed[0, 0] += 1e-3
    again = episode_digests(replace(table, action=changed), EVERY)
    assert [a == b for a, b in zip(digests, again, strict=True)] == [False, True, True, True]


def test_statistics_of_another_dataset_are_refused() -> None:
    table, trained = make_table(), np.array([0, 1])
    frames = slice(0, table.episode_end[1])
    statistics = compute_statistics(
        torch.zeros(frames.stop, 2),
        torch.from_numpy(table.state[frames]),
        torch.from_numpy(table.action[frames]),
    )
    check_statistics(Normalizer(statistics), table, trained)
    with pytest.raises(DeasError, match=r"statistics of another dataset: state_mean\["):
        check_statistics(Normalizer(statistics), make_table(seed=1), trained)


def test_a_manifest_of_another_critic_is_refused() -> None:
    config = CriticConfig(horizon=8)
    told = {"config": {"critic": config.to_dict()}}
    check_same_critic(told, config)
    with pytest.raises(DeasError, match=r"critic.horizon = 8, critic/ has 4"):
        check_same_critic(told, replace(config, horizon=4))


# ---- the critic's opinion ------------------------------------------------------------------------


def test_scored_chunks_by_hand() -> None:
    table = make_table()
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    # 9 - 4 + 1 whole chunks of a success, and one less of a recording: its last outcome is unseen.
    per_episode = np.bincount(chunks.episode).tolist()
    assert per_episode == [6, 9, 4, 7]
    assert chunks.terminated.tolist() == [True] * 6 + [False] * 9 + [True] * 4 + [False] * 7
    np.testing.assert_allclose(chunks.q[2], table.action[2:6].mean(), rtol=1e-6)

    four = 1 + G1 + G1**2 + G1**3
    # Success at step 8: from 4 a whole chunk of -1, then one step that pays 0.
    np.testing.assert_allclose(chunks.returns[4], -four, rtol=1e-6)
    # A time limit: frame 9 of 12 is two rewards before the last frame, whose V stands for the rest.
    at = 6 + 7  # the chunk from frame 7 of the second episode
    last = float(table.state[20, 0])
    np.testing.assert_allclose(chunks.returns[at], -four + G2**4 * last, rtol=1e-5)
    assert len(chunks.of_episode(2)) == 4


def test_fewer_scored_chunks_are_spread_over_all() -> None:
    table = make_table()
    every = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    few = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig(), at_most=2)
    assert len(every) > 2
    assert few.frame.tolist() == every.frame[[0, -1]].tolist()
    assert few.q.tolist() == every.q[[0, -1]].tolist()
    assert few.returns.tolist() == every.returns[[0, -1]].tolist()


def test_returns_outside_the_support_are_refused() -> None:
    table = make_table()
    critic = frame_critic(table, v_min=-2.0)
    with pytest.raises(DeasError, match=r"support \[-2, 0\] does not contain the returns"):
        score_dataset_chunks(critic, table, EVERY, RewardConfig())


def test_features_of_another_shape_are_refused() -> None:
    table = make_table()
    critic: Any = PlainCritic()
    with pytest.raises(DeasError, match=r"features have shape \(38, 5\)"):
        FrameCritic(critic, table, np.zeros((38, 5), dtype=np.float16))


def test_values_along_an_episode_end_before_its_last_action() -> None:
    table = make_table()
    values = values_along(frame_critic(table), table, EVERY, np.array([0.0, 0.5, 1.0]))
    frames = np.array([[0, 4, 8], [9, 9 + 6, 9 + 11], [21, 24, 27], [28, 28 + 4, 28 + 9]])
    np.testing.assert_array_equal(values, table.state[frames, 0].astype(float))


# ---- intervals and metrics -----------------------------------------------------------------------


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_bootstrap_resamples_whole_episodes() -> None:
    episode = np.repeat(np.arange(20), 50)
    values = np.repeat(rng().normal(size=20), 50)  # 1000 rows that are worth 20
    mean = bootstrap(lambda rows: values[rows].mean(keepdims=True), episode, rng(), 2000)[0]
    assert mean.value == values.mean()
    half = 1.96 * values[::50].std() / np.sqrt(20)
    np.testing.assert_allclose(
        [mean.low, mean.high], values.mean() + [-half, half], atol=0.1 * half
    )
    again = mean_over(values, episode, rng(), 2000)
    assert again == mean  # the generator decides, nothing else


def test_resamples_without_an_answer_do_not_count() -> None:
    success = np.array([True, False])
    found = metrics.separation(np.array([[1.0], [0.0]]), success, rng(), 50)[0]
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    alone = metrics.separation(np.array([[1.0], [0.0]]), np.array([True, True]), rng(), 50)[0]
    assert alone.row("m") == {"metric": "m", "value": None, "ci95": [None, None]}


def test_auc_counts_pairs() -> None:
    positive, negative = rng().integers(0, 5, 30).astype(float), rng().integers(0, 4, 20) + 0.0
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    np.testing.assert_allclose(metrics.auc(positive, negative), np.mean(pairs))


def test_spearman_is_scipys() -> None:
    x, y = rng().integers(0, 9, 50).astype(float), rng().normal(size=50)
    np.testing.assert_allclose(metrics.spearman(x, y + x), spearmanr(x, y + x).statistic)
    assert np.isnan(metrics.spearman(np.ones(3), np.arange(3.0)))


def test_calibration_of_a_known_error() -> None:
    returns, episode = rng().normal(size=200), np.repeat(np.arange(10), 20)
    perfect = metrics.calibration(returns, returns, episode, rng(), 100)
    assert (perfect.error.value, perfect.overestimation.value) == (0.0, 0.0)
    np.testing.assert_allclose(perfect.rank_correlation.value, 1.0)
    high = metrics.calibration(returns + 2, returns, episode, rng(), 100)
    np.testing.assert_allclose([high.error.value, high.overestimation.low], 2.0)
    assert [each.chunks for each in high.bins] == [20] * 10
    assert all(abs(each.overestimation.value - 2) < 1e-9 for each in high.bins)
    assert np.all(np.diff([each.q.value for each in high.bins]) > 0)
    few = metrics.calibration(returns[:3], returns[:3], episode[:3], rng(), 10)
    assert [each.chunks for each in few.bins] == [1, 1, 1]


def test_calibration_error_sees_errors_that_cancel() -> None:
    returns, episode = np.linspace(-10, 0, 100), np.repeat(np.arange(10), 10)
    flat = np.full(100, -5.0) + np.linspace(0, 1e-6, 100)
    found = metrics.calibration(flat, returns, episode, rng(), 20)
    assert abs(found.overestimation.value) < 1e-3 and found.error.value > 2


# ---- ranking -------------------------------------------------------------------------------------


# ---- the recipe and the command ------------------------------------------------------------------


def test_the_command_leaves_a_report(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    record = evaluate(bundle, tiny_dataset, tmp_path / "out")
    assert record["data"]["episodes"] == read_manifest(bundle)["data"]["held_out_episodes"]
    rows = {row["metric"]: row for row in record["rows"]}
    wanted = {"calibration.error", "calibration.rank_correlation", "overestimation.mean"}
    wanted |= {"separation.auc_at_0.5", "ranking.another_episode", "ranking.time-shifted"}
    wanted |= {"choice.distance_of_2", "choice.distance"}
    assert wanted | {"ranking.noise_0.3", "ranking.policy_samples.failures"} <= rows.keys()
    assert all(row.keys() == {"metric", "value", "ci95"} for row in record["rows"])
    page = (tmp_path / "out/report.html").read_text()
    for rival in ("another episode", "time-shifted", "noise 0.1", "noise 0.3", "policy samples"):
        assert f"<td>{rival}</td>" in page
    pictures = sorted((tmp_path / "out").glob("*.png"))
    names = "calibration overestimation ranking separation values_failure values_success"
    assert [picture.stem for picture in pictures] == names.split()
    assert page.count("data:image/png;base64,") == 6
    assert "Not defined here" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it opens alone


def test_the_commands_numbers_by_hand(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Two episodes, a success and a failure: every interval of theirs can be told beforehand."""
    record = evaluate(bundle, tiny_dataset, tmp_path, "--resamples=200")
    rows = {row["metric"]: (row["value"], *row["ci95"]) for row in record["rows"]}
    table, policy = load_episodes("test/tiny", tiny_dataset), open_bundle(bundle)
    critic, horizon = policy.critic, policy.critic.config.horizon
    pooled = extract_features(
        policy.vla, table, FeaturesConfig(), bundle / "cache", Accelerator(), keep_tokens=False
    ).pooled
    feature, state = torch.from_numpy(np.array(pooled)).float(), torch.from_numpy(table.state)
    solved, failed = sorted(record["data"]["episodes"], key=lambda e: not table.episode_success[e])

    def value(episode: int, fraction: float) -> float:
        steps = int(table.episode_lengths[episode])
        at = [int(table.episode_start[episode]) + int(np.rint(fraction * (steps - 1)))]
        return float(critic.value(feature[at], state[at]))

    def score(at: int, donor: int) -> float:
        chunk = torch.from_numpy(table.action[donor : donor + horizon])
        return float(critic.score(feature[[at]], state[[at]], chunk[None, None]))

    with torch.no_grad():
        for fraction in np.linspace(0, 1, 11):
            won = float(value(solved, fraction) > value(failed, fraction))
            assert rows[f"separation.auc_at_{fraction:.1f}"] == (won, won, won)

        shifted, chunks = {}, {}
        for group, episode in (("successes", solved), ("failures", failed)):
            start, length = (int(x[episode]) for x in (table.episode_start, table.episode_lengths))
            whole = range(start, start + length - horizon + 1)
            chunks[group] = len(whole)
            rates = []
            for at in whole:
                donors = [d for d in (at - horizon, at + horizon) if d in whole]
                won_all = [score(at, at) > score(at, donor) for donor in donors]
                rates += [np.mean(won_all)] if donors else []
            shifted[group] = rates
        for group, rates in shifted.items():
            expected = pytest.approx(np.mean(rates)) if rates else None
            assert rows[f"ranking.time-shifted.{group}"][0] == expected

    for name in ("another_episode", "noise_0.1", "noise_0.3", "noise_1", "policy_samples"):
        each = [rows[f"ranking.{name}.{group}"] for group in chunks]
        assert all(value == low == high for value, low, high in each)  # one episode only
        share = [value for value, _, _ in each]
        mean = np.average(share, weights=list(chunks.values()))
        assert rows[f"ranking.{name}"] == pytest.approx((mean, min(share), max(share)))


def test_the_command_refuses_what_was_trained_on(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    held_out = read_manifest(bundle)["data"]["held_out_episodes"]
    trained = next(e for e in range(6) if e not in held_out)
    with pytest.raises(DeasError, match=f"episode {trained} of dataset .* was trained on"):
        evaluate(bundle, tiny_dataset, tmp_path / "out", f"--episodes=[{trained}]")
    with pytest.raises(DeasError, match="resamples 0: use 1 or more"):
        evaluate(bundle, tiny_dataset, tmp_path / "out", "--resamples=0")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["iql", "hlg", "qc", "evor"])
def test_every_algorithm_goes_through_recipe_bundle_and_evaluation(
    bundle: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    sample = GrootVLA.sample
    monkeypatch.setattr(GrootVLA, "sample", lambda *a: asked.append(1) or sample(*a))
    cache = f"--features.cache={bundle / 'cache'}"
    flags = ["--stages=[features,critic]", f"--critic.algorithm={algorithm}", cache]
    output = recipe(tiny_dataset, tmp_path / algorithm, *flags, "--critic.policy_samples=3")
    assert bool(asked) == (algorithm == "qc")
    record = evaluate(output, tiny_dataset, tmp_path / "out", cache)
    assert record["algorithm"] == algorithm
