"""Episodes that begin alike and part: which chunks are compared, and what is no twin."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from offline_cases import EVERY, H, evaluate, frame_critic
from table_cases import LENGTHS, OUTCOMES, make_table

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.ranking import Rivals, win_rate
from deas_vla.evaluation.offline.scoring import score_dataset_chunks
from deas_vla.evaluation.offline.twins import twin_chunks

PARTING = 5  # the first step at which a twin does something else


def twins_of(table: EpisodeTable, **changes: Any) -> EpisodeTable:
    """The same starts; from the parting on other actions, a step later other states; failed."""
    step = np.concatenate([np.arange(length) for length in table.episode_lengths])
    action = table.action - np.where(step >= PARTING, 5.0, 0.01)[:, None].astype(np.float32)
    state = table.state + np.where(step > PARTING, 5.0, 0.01)[:, None].astype(np.float32)
    failed = np.zeros(table.num_episodes, dtype=bool)
    return replace(table, **{"action": action, "state": state, "episode_success": failed} | changes)


def rivals_of(table: EpisodeTable, twins: EpisodeTable) -> Rivals:
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    spread: Any = SimpleNamespace(state_std=torch.ones(3), action_std=torch.ones(2))
    return twin_chunks(chunks, table, twins, spread)


def test_chunks_are_compared_where_observations_are_shared_and_actions_part() -> None:
    table = make_table()
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    twins = twins_of(table)
    rivals = rivals_of(table, twins)
    step = chunks.frame[rivals.row] - table.episode_start[chunks.episode[rivals.row]]
    expected = [
        (episode, t)
        for episode in np.flatnonzero(OUTCOMES)
        for t in range(PARTING - H // 2, PARTING + 1)
        if t + H <= LENGTHS[episode]
    ]
    pairs = zip(chunks.episode[rivals.row].tolist(), step.tolist(), strict=True)
    assert sorted(pairs) == sorted(expected)
    at = chunks.frame[rivals.row][:, None] + np.arange(H)
    np.testing.assert_array_equal(rivals.chunk, twins.action[at])

    # This critic's Q is the mean action, which a twin lowers from the parting on.
    won = win_rate(frame_critic(table), chunks, rivals)
    assert np.nanmin(won) == 1 and np.isfinite(won).sum() == len(expected)
    raised = replace(twins, action=2 * table.action - twins.action)
    assert np.nanmax(win_rate(frame_critic(table), chunks, rivals_of(table, raised))) == 0


def test_only_a_failed_twin_of_a_solved_episode_counts() -> None:
    table = make_table()
    solved = np.array([True, False, False, False])
    one = rivals_of(table, twins_of(table, episode_success=solved))
    chunks = score_dataset_chunks(frame_critic(table), table, EVERY, RewardConfig())
    assert set(chunks.episode[one.row].tolist()) == {2}
    early = table.state.copy()
    early[np.concatenate([np.arange(s + 3, s + 5) for s in table.episode_start])] += 1
    for nothing in ({"episode_success": table.episode_success}, {"state": early}):
        with pytest.raises(DeasError, match="no episode failed there that dataset memory solved"):
            rivals_of(table, twins_of(table, **nothing))


def test_what_is_no_twin_is_refused() -> None:
    table = make_table()
    for other, said in (
        (make_table(LENGTHS[:3], OUTCOMES[:3]), "have 3 episodes, dataset memory has 4"),
        (make_table(seed=1), "episode 0 of twins memory starts otherwise"),
        (twins_of(table, tasks=("another task",)), "episode 0 of twins memory starts otherwise"),
    ):
        with pytest.raises(DeasError, match=said):
            rivals_of(table, other)


def test_the_command_ranks_them(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    twins = Path(shutil.copytree(tiny_dataset, tmp_path / "twins"))
    (file,) = (twins / "data").rglob("*.parquet")
    rows = pq.read_table(file)
    for name in ("next.success", "next.reward"):
        column = rows.column_names.index(name)
        none = pa.array(np.zeros(len(rows), dtype=rows[name].to_numpy().dtype))
        rows = rows.set_column(column, rows.field(column), none.cast(rows.field(column).type))
    column = rows.column_names.index("action")
    action = np.stack(rows["action"].to_numpy()) * -1
    rows = rows.set_column(
        column, rows.field(column), pa.array(list(action), rows.field(column).type)
    )
    pq.write_table(rows, file)

    record = evaluate(bundle, tiny_dataset, tmp_path / "out", f"--twins={twins}")
    found = {row["metric"]: row["value"] for row in record["rows"]}
    assert 0 <= found["ranking.twins.successes"] <= 1
    assert found["ranking.twins"] == found["ranking.twins.successes"]
    assert found["ranking.twins.failures"] is None
    assert "<td>twins</td>" in (tmp_path / "out/report.html").read_text()
    own = f"--features.cache={tmp_path / 'cache'}"  # the bundle's is for other tests, too
    evaluate(bundle, twins, tmp_path / "failures", "--episodes=[0,1]", own)
    page = (tmp_path / "failures/report.html").read_text()
    assert "Not defined here: 0 of 2 episodes succeeded" in page  # how far V tells them apart
    with pytest.raises(DeasError, match="no episode failed there"):
        evaluate(bundle, tiny_dataset, tmp_path / "same", f"--twins={tiny_dataset}")
