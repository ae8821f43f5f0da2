"""The scripts that make the nano GR00T, and a robot of 44 dimensions through the whole recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_cases import KITCHEN_NANO, load_script

from deas_vla.bundle import open_bundle
from deas_vla.cli import parse
from deas_vla.data.convert import convert_v2
from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.errors import DeasError
from deas_vla.policies.config import VLAConfig, load_vla

LIMITS = {"max_state_dim": 132, "max_action_dim": 132, "action_horizon": 40}


def test_it_takes_what_the_public_checkpoint_takes(untrained_nano: Path) -> None:
    said = json.loads((untrained_nano / "config.json").read_text())
    assert {name: said[name] for name in LIMITS} == LIMITS and said["max_num_embodiments"] == 32
    numbers = json.loads((untrained_nano / "embodiment_id.json").read_text())
    assert numbers["new_embodiment"] == 10 and len(set(numbers.values())) == 3
    weights = (
        sum(file.stat().st_size for file in untrained_nano.glob("*.safetensors")) / 2
    )  # float32
    rest = sum(f.stat().st_size for f in untrained_nano.rglob("*") if f.suffix != ".safetensors")
    assert weights + rest < 12_000_000
    shipped = sum(file.stat().st_size for file in KITCHEN_NANO.rglob("*") if file.is_file())
    assert shipped < 12_000_000
    said = json.loads((KITCHEN_NANO / "config.json").read_text())
    assert {name: said[name] for name in LIMITS} == LIMITS
    assert json.loads((KITCHEN_NANO / "embodiment_id.json").read_text()) == numbers
    stats = json.loads((untrained_nano / "statistics.json").read_text())["robocasa_panda_omron"]
    assert stats["state"]["base_position"]["max"] == [10.0] * 3  # no kitchen lies outside
    assert stats["state"]["gripper_qpos"]["max"][0] < 10  # of its frames


def test_parts_are_joined_and_questions_stay_with_their_frames(
    nano_frames: Path, tmp_path: Path
) -> None:
    from frames import Frames

    one = Frames.load(nano_frames / "lift")
    for part in range(2):
        one.save(tmp_path, part)
    both = Frames.load(tmp_path)
    assert len(both.state) == 48 and both.pair_frame.max() == 47
    np.testing.assert_array_equal(both.images[both.pair_frame[48:]], one.images[one.pair_frame])
    assert one.valid[0].tolist() == [True] * 9 + [False] * 7 and not one.actions[0, 9:].any()
    with pytest.raises(DeasError, match=r"no part_\*.npz in .*nowhere"):
        Frames.load(tmp_path / "nowhere")


@pytest.mark.slow
def test_frames_of_both_robots(nano_scripts: object, tmp_path: Path) -> None:
    import make_kitchen_data
    import make_lift_data
    from frames import Frames

    few = {"episodes": 1, "workers": 1, "output": tmp_path / "lift"}
    (tmp_path / "lift").mkdir()
    make_lift_data.simulate(make_lift_data.DataConfig(**few), 0)
    lift = Frames.load(tmp_path / "lift")
    np.testing.assert_allclose(lift.hand, lift.state[:, :3], atol=1e-6)
    assert lift.imitate.all() and 0.8 < lift.pair_target[0, 2] < 0.9  # the cube, on its table
    assert lift.images.shape[1:] == (2, 64, 64, 3) and lift.actions.shape[1:] == (16, 7)

    few |= {"output": tmp_path, "tasks": ["TurnOnStove"], "horizons": [9]}
    make_kitchen_data.simulate(make_kitchen_data.DataConfig(**few, scenes=1, poses=2), 0)
    kitchens = Frames.load(tmp_path)
    work = kitchens.imitate
    assert 2 <= work.sum() <= 3 and (~work).sum() <= 2  # what no camera shows is not asked for
    assert kitchens.images.shape[1:] == (3, 64, 64, 3) and kitchens.state.shape[1] == 16
    np.testing.assert_allclose(kitchens.hand[work], kitchens.state[work, 7:10], atol=1e-5)
    asked = [np.sum(kitchens.pair_frame == frame) for frame in np.flatnonzero(work)]
    assert asked == [4] * work.sum()  # knobs
    assert len({*kitchens.pair_text[:4].tolist()}) == 4
    assert kitchens.valid[0].sum() in range(6, 10) and not kitchens.valid[~work].any()


@pytest.mark.slow
def test_paint_leaves_the_robot_as_it_is(nano_scripts: object) -> None:
    from painter import ROBOT, Painter

    env = KitchenEnv(KitchenConfig(task="TurnOnStove", assets="lite", split="varied"))
    env.reset(0)
    model, painter, rng = env.kitchen.sim.model._model, Painter(env), np.random.default_rng(2)
    robot = [model.body(k).name.startswith(ROBOT) for k in model.geom_bodyid]
    plain = model.mat_rgba.copy(), model.geom_rgba.copy()
    painted = []
    for _ in range(9):
        painter.paint(rng)
        painted.append((model.mat_rgba != plain[0]).any())
        np.testing.assert_array_equal(model.geom_rgba[robot], plain[1][robot])
    assert 2 < sum(painted) < 9
    env.close()


@pytest.mark.slow
def test_both_robots_are_trained_over_one_backbone(
    untrained_nano: Path, nano_frames: Path, tmp_path: Path
) -> None:
    import pretrain
    from robots import PANDA, PANDA_OMRON

    settings = {"grounding_steps": 4, "flow_steps": 3, "batch_size": 5, "holdout": 0.2}
    pretrain.main(
        pretrain.PretrainConfig(
            init=untrained_nano, data=nano_frames, output=tmp_path / "nano",
            validation=nano_frames, **settings,
        )
    )  # fmt: skip
    report = json.loads((tmp_path / "nano/pretraining.json").read_text())
    before = load(untrained_nano, PANDA).groot
    for robot in (PANDA, PANDA_OMRON):
        assert report[robot.tag]["frames"] == 24 and report[robot.tag]["flow_loss"] > 0
        assert set(report[robot.tag]["unexplained"]) == {"held_out", "trained"}
        assert report[robot.tag]["validation"]["grounding_at_work_mm"] > 0
        vla = load(tmp_path / "nano", robot)
        assert vla.spec.action_horizon == 16 and vla.spec.noise_shape == (40, 132)
        head, old = vla.groot.action_head, before.action_head
        weight = head.action_encoder.W1.W
        assert not weight[robot.number, robot.action_dim :].any()  # its padding is not heard
        assert weight[robot.number, : robot.action_dim].any(dim=1).all()
        moved = (head.state_encoder.layer1.W - old.state_encoder.layer1.W).abs().amax(dim=(1, 2))
        assert moved[robot.number] > 5 * moved[7]  # of a free one only bfloat16's rounding
    again = load(tmp_path / "nano", PANDA)  # an unused language head is not saved
    assert again.backbone_fingerprint() == vla.backbone_fingerprint()
    vision = [m.backbone.visual.patch_embed.proj.weight for m in (vla.groot, before)]
    assert (vision[0] - vision[1]).abs().max() > 1e-3

    pretrain.main(  # a grounded backbone goes on to the second phase alone
        pretrain.PretrainConfig(
            init=tmp_path / "nano", data=nano_frames, output=tmp_path / "on",
            **settings | {"grounding_steps": 0},
        )
    )  # fmt: skip
    report = json.loads((tmp_path / "on/pretraining.json").read_text())
    assert {"frames", "flow_loss", "grounding_at_work_mm"} <= {*report[PANDA.tag]}
    assert (report["grounding_steps"], report["flow_steps"]) == (4, 6)
    assert load(tmp_path / "on", PANDA).backbone_fingerprint() == vla.backbone_fingerprint()


def load(path: Path, robot: object) -> object:
    return load_vla(
        VLAConfig(
            path=str(path),
            embodiment=robot.tag,
            image_keys=list(robot.image_keys),
            state_dim=robot.state_dim,
            action_dim=robot.action_dim,
        )
    )


@pytest.mark.slow
def test_a_robot_of_44_dimensions_goes_through_the_whole_recipe(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A humanoid's dataset: convert, finetune with new projectors, critic, offline report."""
    dataset = convert_v2(shared_dir / "data/robot_sim.PickNPlace", tmp_path / "gr1")
    output = tmp_path / "run"
    finetune = load_script("recipes/finetune_groot.py")
    finetune.main(
        parse(
            finetune.FinetuneConfig,
            [
                f"--dataset.root={dataset}",
                "--dataset.repo_id=test/gr1",
                "--dataset.holdout=0.4",
                f"--policy.path={KITCHEN_NANO}",
                "--policy.embodiment=new_embodiment",
                "--policy.train_projectors=true",
                "--policy.steps=4",
                "--policy.batch_size=8",
                "--critic.horizon=40",
                "--critic.steps=6",
                "--critic.batch_size=16",
                "--critic.hidden=[32,32]",
                f"--output_dir={output}",
                "--tracker=none",
            ],
        )
    )
    policy = open_bundle(output)
    assert policy.vla.spec.action_horizon == 40
    picture = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    task = "pick the pear from the counter and place it in the plate"
    chunk = policy.predict_action_chunk(
        {
            "observation.images.ego_view": picture,
            "observation.state": torch.zeros(1, 44),
            "task": [task],
        }
    )
    assert chunk.shape == (1, 40, 44) and bool(chunk.isfinite().all())

    offline = load_script("eval/critic.py")
    flags = [f"--bundle={output}", "--policy_frames=8", "--policy_samples=2", "--resamples=20"]
    asked: list[int] = []
    ask = offline.ask_policy
    monkeypatch.setattr(
        offline,
        "ask_policy",
        lambda *arguments: asked.append(len(arguments[4])) or ask(*arguments),
    )
    offline.main(parse(offline.CriticEvalConfig, flags))
    assert asked == [8, 8]  # samples to rank, and tails behind what solves the task
    record = json.loads((output / "eval_critic/results.json").read_text())
    assert record["rows"] and (output / "eval_critic/report.html").is_file()
