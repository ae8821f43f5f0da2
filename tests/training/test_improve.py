"""Rounds of improvement in Lift at toy size, and what they leave."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recipe_cases import load_script, recipe

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import parse
from deas_vla.errors import DeasError
from deas_vla.training.encodings import Encodings, join_encodings
from deas_vla.training.rounds import Retraining, retrain


def improve(bundle: Path, output: Path, *more: str) -> Path:
    script = load_script("recipes/improve.py")
    flags = [
        f"--bundle={bundle}",
        "--rounds=1",
        "--episodes=2",
        "--candidates=2",
        "--validation_episodes=1",
        "--critic_steps=6",
        "--workers=1",
        f"--output_dir={output}",
        *more,
    ]
    script.main(parse(script.ImproveConfig, flags))
    return output


def retrained(bundle: Path, rollouts: list[Path], *more: str) -> Path:
    script = load_script("recipes/retrain.py")
    flags = [f"--bundle={bundle}", f"--rollouts=[{','.join(map(str, rollouts))}]", *more]
    config = parse(script.RetrainConfig, flags)
    script.main(config)
    return config.output_dir / "bundle"


@pytest.mark.slow
def test_a_round_adds_rollouts_and_trains_a_critic_of_all_data(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    output = improve(bundle, tmp_path / "improved")
    before, after = read_manifest(bundle), read_manifest(output / "round-1" / "bundle")
    assert after["data"]["episodes"] == before["data"]["episodes"] + 2
    assert after["config"]["critic"]["steps"] == 6
    started, improved = open_bundle(bundle), open_bundle(output / "round-1" / "bundle")
    same = [
        np.array_equal(a, b)
        for a, b in zip(
            started.vla.model.state_dict().values(),
            improved.vla.model.state_dict().values(),
            strict=True,
        )
    ]
    assert all(same)  # the policy stays
    assert started.critic is not None and improved.critic is not None
    assert not np.array_equal(
        started.critic.critics.layers[0].weight.detach(),
        improved.critic.critics.layers[0].weight.detach(),
    )
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert [(row["round"], row["rollouts"], row["candidates"]) for row in rows] == [
        (0, 0, 1),
        (0, 0, 2),
        (1, 2, 1),
        (1, 2, 2),
    ]
    assert (output / "rounds.png").stat().st_size > 5000

    # The same command again: everything is there already.
    stamp = (output / "round-1" / "bundle" / "bundle.json").stat().st_mtime_ns
    episodes = (output / "round-1" / "eval" / "episodes.jsonl").read_text()
    improve(bundle, output)
    assert (output / "round-1" / "bundle" / "bundle.json").stat().st_mtime_ns == stamp
    assert (output / "round-1" / "eval" / "episodes.jsonl").read_text() == episodes

    # The same training of rollouts that are there already, to the last bit; and nothing twice.
    rollouts = [output / "round-1" / "rollouts" / "dataset"]
    again = ["--critic_steps=6", f"--output_dir={tmp_path / 'again'}"]
    mine = Path(shutil.copytree(bundle, tmp_path / "mine"))
    manifest = json.loads((mine / "bundle.json").read_text())
    anew = retrained(mine, rollouts, *again)
    weights = "critic/model.safetensors"
    assert (anew / weights).read_bytes() == (output / "round-1/bundle" / weights).read_bytes()
    stamp_anew = (anew / "bundle.json").stat().st_mtime_ns
    assert retrained(mine, rollouts, *again) == anew
    assert (anew / "bundle.json").stat().st_mtime_ns == stamp_anew
    with pytest.raises(DeasError, match=r"policy_steps 3 without --clone=true"):
        retrained(mine, rollouts, *again, "--policy_steps=3")
    manifest["config"]["critic"]["expectile"] = 0.9  # as if it had been trained anew, otherwise
    (mine / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DeasError, match=rf"was made from another bundle than {mine} is: delete"):
        retrained(mine, rollouts, *again)
    with pytest.raises(DeasError, match=rf"was trained on rollouts .* start from {mine}, and"):
        retrained(anew, rollouts, *again)

    with pytest.raises(DeasError, match=r"round-1.bundle was trained with clone False: delete"):
        improve(bundle, output, "--clone=true")

    # Rollouts of another run in their place: what is there was not trained on them.
    shutil.rmtree(output / "round-1" / "rollouts")
    shutil.rmtree(output / "round-1" / "eval")
    with pytest.raises(DeasError, match=r"round-1.bundle was trained on other data .*: delete"):
        improve(bundle, output, "--seed=1")
    assert (output / "round-1" / "bundle" / "bundle.json").stat().st_mtime_ns == stamp

    # The successes cloned as well: another adapter over the same base, and a critic of its data.
    settings = Retraining(0.0, 0, 1, clone=True, policy_steps=2, critic_steps=2)
    retrain(bundle, rollouts, tmp_path / "cloned", settings, "cpu")
    cloned = open_bundle(tmp_path / "cloned" / "bundle")
    weights = cloned.vla.model.state_dict()
    changed = {
        name
        for name, weight in started.vla.model.state_dict().items()
        if not np.array_equal(weight, weights[name])
    }
    assert changed and all("lora" in name for name in changed)
    manifest = read_manifest(tmp_path / "cloned" / "bundle")
    assert manifest["config"]["policy"]["episodes"] == "successful"

    # Of a checkpoint that was guided as it is: its first adapter, and the bundle has it.
    given = recipe(tiny_dataset, tmp_path / "given", "--policy.steps=0")
    assert not open_bundle(given).config.adapter
    with pytest.raises(DeasError, match=r"clone: .* \(policy.steps=0\).*use --policy_steps=N"):
        improve(given, tmp_path / "refused", "--clone=true")
    assert not (tmp_path / "refused").exists()
    retrain(given, rollouts, tmp_path / "adapted", settings, "cpu")
    adapted = open_bundle(tmp_path / "adapted" / "bundle")
    assert adapted.config.adapter
    trained = [w for name, w in adapted.vla.model.state_dict().items() if "lora_B" in name]
    assert trained and all(weight.any() for weight in trained)


def test_joined_encodings_are_those_of_each_dataset() -> None:
    """Two datasets with instructions of different lengths, one of them shared."""
    rng = np.random.default_rng(0)
    tables, encodings = [], []
    for tasks, index, length in (
        (("lift",), [0, 0], 2),
        (("push it", "lift"), [1, 0, 0], 3),
    ):
        tables.append(SimpleNamespace(tasks=tasks, num_episodes=1))
        mask = torch.zeros(len(tasks), length, dtype=torch.bool)
        mask[:, -2:] = True
        mask[tasks.index("lift"), : length - 1] = False
        tokens = rng.normal(size=(len(index), length * 4)).astype(np.float16)
        pooled = rng.normal(size=(len(index), 5)).astype(np.float16)
        encodings.append(Encodings(pooled, tokens, mask, mask, np.array(index)))
    both: Any = SimpleNamespace(tasks=("lift", "push it"), task_index=np.array([0, 0, 0, 1, 1]))
    joined = join_encodings(encodings, tables, both)
    assert np.array_equal(joined.pooled, np.concatenate([each.pooled for each in encodings]))
    batch = joined.batch(np.array([3, 0, 2]), torch.device("cpu"))
    assert batch["tokens"].shape == (3, 3, 4)
    first, second = encodings
    assert first.tokens is not None and second.tokens is not None
    assert np.array_equal(batch["tokens"][0].flatten(), second.tokens[np.array([1])][0])
    assert np.array_equal(batch["tokens"][1, 1:].flatten(), first.tokens[np.array([0])][0])
    assert not batch["tokens"][1, 0].any()
    assert batch["token_mask"].tolist() == [[False, True, True], [False, False, True],
                                            [False, False, True]]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--episodes=3", "use an even number"),
        ("--rounds=0", r"rounds 0: use 1 or more"),
        ("--candidates=1", r"candidates 1: use 2 or more"),
        ("--holdout=1", r"holdout 1"),
        ("--validation_seed=1001", r"validation_seed 1001 is that of a round's collection"),
        ("--kitchens.horizon=90", r"kitchens\.\* without --kitchens\.tasks"),
    ],
)
def test_senseless_rounds_are_refused(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(DeasError, match=message):
        improve(tmp_path, tmp_path / "out", flag)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"rollouts \[\]: give one dataset or more"),
        (["--rollouts=[a,a]"], r"rollouts \['a', 'a'\]: .* each once"),
        (["--rollouts=[a]", "--holdout=1"], r"holdout 1\.0: use a share"),
    ],
)
def test_senseless_retraining_is_refused(flags: list[str], message: str) -> None:
    script = load_script("recipes/retrain.py")
    with pytest.raises(DeasError, match=message):
        script.main(parse(script.RetrainConfig, flags))


def test_a_critic_that_asks_the_policy_is_not_retrained(bundle: Path, tmp_path: Path) -> None:
    asking = Path(shutil.copytree(bundle, tmp_path / "asking"))
    manifest = json.loads((asking / "bundle.json").read_text())
    manifest["config"]["critic"]["algorithm"] = "qc"
    (asking / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DeasError, match=r"critic\.algorithm=qc, which samples the policy"):
        retrained(asking, [tmp_path], f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_rounds_in_kitchens_are_of_every_task_and_of_two_splits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = load_script("recipes/improve.py")
    claimed: list[Any] = []

    def claim(self: Any, launch: object, specs: list[Any], **more: object) -> Any:
        trials = self.trials(specs, has_critic=True)
        claimed.append((self.split, self.assets, [spec.horizon for spec in specs], trials))
        return SimpleNamespace(collect=lambda *_: None, evaluate=lambda *_: None)

    monkeypatch.setattr(script.KitchenRolloutConfig, "claim", claim)
    monkeypatch.setattr(script.KitchenRolloutConfig, "_look_as_trained", lambda *_: None)
    monkeypatch.setattr(script.KitchenRolloutConfig, "where", lambda _: "in lite kitchens")
    config = parse(
        script.ImproveConfig,
        ["--kitchens.tasks=[CloseDrawer,TurnOnStove]", "--kitchens.assets=lite",
         "--kitchens.horizon=90", "--episodes=6", "--validation_episodes=4"],
    )  # fmt: skip
    launch: Any = SimpleNamespace(device="cpu")
    script.collect(config, launch, tmp_path, 1, tmp_path / "round-1")
    script.evaluate(config, launch, tmp_path, tmp_path / "round-1")
    (split, assets, horizons, trials), (validated_in, *_, validation) = claimed
    assert (split, validated_in, assets, horizons) == ("pretrain", "target", "lite", [90, 90])
    assert config.collected == len(trials) == 12  # half of them with one candidate
    assert script.ImproveConfig(episodes=6).collected == 6
    assert len(validation) == 2 * 2 * 4
    assert not {trial.seed for trial in trials} & {trial.seed for trial in validation}
