"""The critic stage: what it measures of itself, a loss that is not finite, data it can't use."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from table_cases import LENGTHS, make_table

from deas_vla.critic import CriticConfig, make_critic
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.training.checkpoints import CheckpointConfig, Checkpoints
from deas_vla.training.config import CriticTrainingConfig
from deas_vla.training.critic import train_critic
from deas_vla.training.critic_data import check_critic_data
from deas_vla.training.divergence import LossWatch
from deas_vla.training.preemption import Preemption
from deas_vla.training.run import Run

H = 4
EVERY = np.arange(len(LENGTHS))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class OneCheckpoint:
    """Stands for a stage's checkpoints: the watch asks for the newest alone."""

    newest: Path | None = None


def watch(tmp_path: Path) -> tuple[LossWatch, OneCheckpoint, torch.nn.Module]:
    critic = make_critic(
        CriticConfig(state_dim=3, action_dim=2, horizon=H, hidden=[8], v_min=-1.0, v_max=0.0)
    )
    starts, found = np.arange(100) * 10, OneCheckpoint()
    watching = LossWatch(
        "critic", critic, starts, cast(Checkpoints, found), tmp_path, Accelerator(), "lower the lr"
    )
    return watching, found, critic


def test_a_loss_that_is_not_finite_names_step_batch_and_checkpoint(tmp_path: Path) -> None:
    watching, checkpoints, _ = watch(tmp_path)
    watching.record(4, torch.tensor([1]), torch.tensor(0.5))
    watching.check_weights()
    checkpoints.newest = tmp_path / "step-00000005"
    watching.record(5, torch.tensor([2]), torch.tensor(0.5))
    watching.record(6, torch.arange(7, 20), torch.tensor(torch.inf))
    watching.record(7, torch.tensor([3]), torch.tensor(torch.nan))
    where = re.escape(str(checkpoints.newest))
    message = rf"critic loss is inf at step 6 .*\[7, 8, .*last good checkpoint: {where}; lower"
    with pytest.raises(DeasError, match=message) as caught:
        watching.check()
    assert "\n" not in str(caught.value)
    batch = json.loads((tmp_path / "critic_nonfinite_batch.json").read_text())
    assert batch["rows"] == list(range(7, 20)) and batch["first_frames"][0] == 70


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    watching, _, critic = watch(tmp_path)
    with torch.no_grad():
        next(critic.parameters()).fill_(torch.nan)  # finite losses do not make a critic good
    watching.record(0, torch.tensor([1]), torch.tensor(0.5))
    watching.check()
    with pytest.raises(DeasError, match=r"weight .* is not finite at step 0 .*no checkpoint yet"):
        watching.check_weights()


def train(table: EpisodeTable, tmp_path: Path, **settings: Any) -> Any:
    config = CriticTrainingConfig(
        horizon=H, hidden=[16], steps=6, batch_size=8, log_every=2, **settings
    )
    features = rng().normal(size=(table.num_frames, 5)).astype(np.float16)
    accelerator = Accelerator()
    preemption, ignore = Preemption(accelerator), lambda metrics, step: None
    run = Run(tmp_path, accelerator, preemption, CheckpointConfig(every=3), 0, ignore)
    return train_critic(table, features, EVERY, EVERY[:2], config, run)


def test_a_diverging_run_stops(tmp_path: Path) -> None:
    with pytest.raises(
        DeasError, match=r"critic loss is (nan|inf) at step \d .* lower --critic.lr"
    ):
        train(make_table(), tmp_path, lr=1e30, algorithm="iql")


@pytest.mark.parametrize("algorithm", ["deas", "iql", "hlg", "evor"])
def test_algorithms_without_a_policy_train(tmp_path: Path, algorithm: str) -> None:
    table = make_table()
    critic = train(table, tmp_path, algorithm=algorithm)
    assert critic.config.algorithm == algorithm and not critic.training
    said = {"deas": "bins .* expectile 0.7", "hlg": "bins .* expectile 0.5", "evor": "flows in"}
    assert re.search(said.get(algorithm, "^scalar, expectile 0.7"), critic.representation)
    assert (critic.config.g1, critic.config.g2) == (0.9, 0.99)
    (last,) = (tmp_path / "checkpoints/critic").glob("step-00000006")

    # Held out are a success of 6 whole chunks and a failure of 9; each chunk of the success meets
    # four of the failure's, drawn once for all checkpoints.
    features = torch.from_numpy(rng().normal(size=(table.num_frames, 5)).astype(np.float16)).float()
    state, action = torch.from_numpy(table.state), torch.from_numpy(table.action)
    donors = rng().integers(15 - np.repeat([6, 9], [24, 36]))[:24]  # of the failure's 9
    won = []
    with torch.no_grad():
        for t, against in zip(np.repeat(np.arange(6), 4), 9 + donors, strict=True):
            chunks = torch.stack([action[t : t + H], action[against : against + H]])
            own, other = critic.score(features[[t]], state[[t]], chunks[None])[0]
            won.append(float(own > other) + 0.5 * float(own == other))
    metric = json.loads((last / "checkpoint.json").read_text())["metric"]
    assert metric == pytest.approx(np.mean(won), abs=1e-9)


def test_qc_without_policy_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeasError, match="needs policy samples"):
        train(make_table(), tmp_path, algorithm="qc")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["state", "action", "dataset_reward"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, column: str, bad: float) -> None:
    table = make_table()
    values = getattr(table, column).copy()
    values[13] = bad
    named = "reward is .* at frame 13 \\(episode 1\\)" if "reward" in column else column
    with pytest.raises(DeasError, match=named):
        train(
            replace(table, **{column: values}), tmp_path, reward=RewardConfig("dataset"), v_min=-1.0
        )


def test_features_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "test_critic_stage.rng", lambda: SimpleNamespace(normal=lambda size: np.full(size, np.nan))
    )
    with pytest.raises(DeasError, match="features hold a NaN"):
        train(make_table(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "sarsa"}, "critic.algorithm = 'sarsa'"),
        ({"support": "fixed", "v_min": -1.0, "v_max": 0.0}, "does not contain the dataset's"),
        ({"horizon": 30}, "holds a chunk of critic.horizon=30"),
        ({"expectile": 1.0}, "critic.expectile = 1.0"),
    ],
)
def test_what_the_critic_cannot_train_on_is_known_beforehand(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeasError, match=message):
        config = CriticTrainingConfig(**{"horizon": H, **settings})
        check_critic_data(make_table(), np.array([1, 3]), config)  # neither ends by success
