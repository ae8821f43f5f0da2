"""How the nano's backbone is taught where things are: cameras, pointing, misses elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv
from deas_vla.envs.robocasa.reaching import from_base, hand
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv
from deas_vla.envs.rollout import Plan


def in_picture(model: object, data: object, name: str, point: np.ndarray) -> list[float]:
    """MuJoCo's own camera frame, world coordinates: x right, y up, looking along -z."""
    camera = model.camera(name).id
    x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ (point - data.cam_xpos[camera])
    half = -z * np.tan(np.radians(model.cam_fovy[camera]) / 2)
    return [0.5 + x / half / 2, 0.5 - y / half / 2, -z]


def check_views(robot: object, names: list[str], sim: object, base: np.ndarray, turn: np.ndarray,
                at: np.ndarray, state: np.ndarray) -> int:  # fmt: skip
    """How many of many random points cameras see, each where the simulator has it."""
    rng = np.random.default_rng(0)
    model, data = sim.model._model, sim.data._data
    points = at + rng.normal(0, 0.4, (60, 3))  # robot's frame
    found = robot.seen(points, np.tile(state, (60, 1)))  # (60, C, 3)
    seen = 0
    for camera, name in enumerate(names):
        for point, ours in zip(points, found[:, camera], strict=True):
            theirs = in_picture(model, data, name, base + turn @ point)
            inside = theirs[2] > 0 and 0 <= theirs[0] < 1 and 0 <= theirs[1] < 1
            assert inside == bool(np.isfinite(ours).all())
            if inside:
                np.testing.assert_allclose(ours, theirs, atol=2e-3)
                seen += 1
    return seen


@pytest.mark.slow
def test_cameras_stand_where_the_simulators_have_them(nano_scripts: object) -> None:
    from robots import PANDA, PANDA_OMRON

    env = LiftEnv(LiftConfig())
    env.reset(3)
    for _ in range(4):
        env.step(np.array([0.5, 0.3, -0.2, 0.4, 0.2, 0.6, -1], np.float32))
    state = env.observe().state
    names = ["agentview", "robot0_eye_in_hand"]
    seen = check_views(PANDA, names, env._env.sim, np.zeros(3), np.eye(3), state[:3], state)
    assert seen > 15
    env.close()

    kitchen = KitchenEnv(KitchenConfig(task="TurnOnStove", assets="lite", split="train"))
    kitchen.reset(3)
    for _ in range(6):
        kitchen.step(np.array([0.5, 0, 0, 0, 0, 1, 0.5, 0.3, 0.3, 0.2, 0.4, 1], np.float32))
    world = kitchen.privileged()
    base, turn = world["base_pos"], world["base_mat"]
    np.testing.assert_allclose(from_base(kitchen, base + turn @ [1.0, 2.0, 3.0]), [1, 2, 3])
    names = list(PANDA_OMRON.cameras)
    at, state = hand(kitchen).at, kitchen.observe().state
    assert check_views(PANDA_OMRON, names, kitchen.kitchen.sim, base, turn, at, state) > 40
    kitchen.close()


def test_a_token_that_points_at_the_thing_has_no_loss(nano_scripts: object) -> None:
    from grounding import cells, pixels_missed, pointing_loss

    seen = torch.tensor([[[0.30, 0.60, 0.5], [torch.nan] * 3], [[0.99, 0.01, 2.0], [0.5, 0.0, 1]]])
    cell, place = cells(seen, 16)
    assert cell.tolist() == [[9, -1], [3, 2]]  # row by row, four to a row
    torch.testing.assert_close(place[0, 0], torch.tensor([-0.3, -0.1, np.log(0.5)]).float())
    said = torch.full((2, 2, 16, 4), -30.0)
    for sample, camera in ((0, 0), (1, 0), (1, 1)):
        said[sample, camera, cell[sample, camera], 0] = 30.0
        said[sample, camera, cell[sample, camera], 1:] = place[sample, camera]
    assert pointing_loss(said, seen) < 1e-4  # the second camera's zero score for "in none" wins
    missed = pixels_missed(said, seen, 64)
    assert missed[0, 1].isnan() and missed[~missed.isnan()].max() < 1e-4
    beside = seen + torch.tensor([0.02, 0.0, 0.0])
    torch.testing.assert_close(pixels_missed(said, beside, 64)[0, 0], torch.tensor(64 * 0.02))
    unseen = torch.full_like(seen, torch.nan)
    assert pointing_loss(torch.zeros(2, 2, 16, 4), unseen) == pytest.approx(np.log(17))


def test_no_part_of_an_earlier_run_stays(
    nano_scripts: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made anew by fewer workers, a directory has their parts alone."""
    import frames

    for part in range(3):
        (tmp_path / f"part_{part}.npz").touch()
    started = []

    class Process:
        exitcode = 0

        def __init__(self, target: object, args: tuple[object, int]) -> None:
            self.worker = args[1]

        def start(self) -> None:
            started.append((self.worker, list(tmp_path.iterdir())))

        def join(self) -> None: ...

    monkeypatch.setattr(
        frames.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Process)
    )
    frames.in_processes(lambda *_: None, SimpleNamespace(output=tmp_path, workers=2))
    assert started == [(0, []), (1, [])]


def test_misses_elsewhere_are_metres_too(untrained_nano: Path, nano_frames: Path) -> None:
    """Frames of other kitchens are read in the units that the training frames have set."""
    from frames import Frames
    from robots import PANDA
    from sources import NEAR, Source

    (source,) = Source.load_all([PANDA], untrained_nano, nano_frames, held_out=0.2, seed=0)
    frames = Frames.load(nano_frames / "lift")
    frames.pair_target = frames.pair_target + np.float32(0.5)
    other = source.elsewhere(frames)
    assert len(other.test_pairs) == len(frames.pair_frame) and len(other.train_pairs) == 0
    truth = torch.asinh(other.from_hand / NEAR)
    right = torch.cat([torch.zeros_like(truth), (truth - source.centre[3:]) / source.scale[3:]], 1)
    assert other.misses(other.test_pairs, right).max() < 1e-4
    assert source.misses(other.test_pairs, right).min() > 0.8  # 0.5 m along each axis


def test_pictures_come_after_the_words(untrained_nano: Path, nano_frames: Path) -> None:
    """A token of a picture is not the same under another instruction."""
    from robots import PANDA
    from sources import Source, backbone

    (source,) = Source.load_all([PANDA], untrained_nano, nano_frames, held_out=0.2, seed=0)
    asked = source.questions(torch.tensor([0, 1]))  # one frame, two knobs
    torch.testing.assert_close(asked.images[0], asked.images[1])
    with torch.no_grad():
        out = backbone(source.vla.model, asked)
    pictures = [out["backbone_features"][k][out["image_mask"][k]] for k in range(2)]
    assert pictures[0].shape[0] == 32 and (pictures[0] - pictures[1]).abs().max() > 1e-4


class Forward:
    """An expert that always goes on, without the jitter that is executed, and counts its plans."""

    def __init__(self) -> None:
        self.plans = self.replans = 0
        self.meant = np.zeros(12, np.float32)

    def reset(self, seed: int) -> None:
        self.plans = self.replans = 0

    def replan(self) -> None:
        self.replans += 1

    def plan(self, env: object) -> Plan:
        self.plans += 1
        action = np.zeros((1, 12), np.float32)
        action[:, 5], action[:, 11] = 1.0, -1.0
        self.meant = np.full(12, self.plans, np.float32)
        return Plan(action)


def test_pushes_are_not_imitated_and_end_what_is(nano_scripts: object) -> None:
    from pushes import Pushed

    agent = Pushed(Forward(), 0.1)
    agent.reset(4)
    actions = np.concatenate([agent.plan(None).actions for _ in range(200)])
    pushed = np.array(agent.pushed)
    assert not pushed[0] and 20 < pushed.sum() < 140 and agent.expert.plans == (~pushed).sum()
    ends = np.flatnonzero(np.diff(pushed.astype(int)) == -1)
    assert len(ends) <= agent.expert.replans <= len(ends) + 4  # one may follow another at once
    np.testing.assert_array_equal(actions[~pushed, 5], 1.0)
    meant = np.stack(agent.meant)  # of a push, what was done
    np.testing.assert_array_equal(meant[pushed], actions[pushed])
    np.testing.assert_array_equal(meant[~pushed, 0], 1 + np.arange((~pushed).sum()))
    assert (actions[:, 11] == -1).all() and np.abs(actions[pushed, :5]).max() == 0  # arm alone
    speed = np.linalg.norm(actions[pushed, 5:11], axis=1)
    assert 0.49 < speed.min() < speed.max() < 1.01
    first = int(np.flatnonzero(pushed)[0])
    assert agent.undisturbed(first - 2, 16).tolist() == [True] * 2 + [False] * 14
    agent.reset(4)
    again = np.concatenate([agent.plan(None).actions for _ in range(200)])
    np.testing.assert_array_equal(again, actions)
    calm = Pushed(Forward(), 0.0)
    calm.reset(4)
    for _ in range(50):
        calm.plan(None)
    assert not any(calm.pushed)


def test_all_pictures_at_once_see_what_each_alone_sees(
    untrained_nano: Path, nano_frames: Path
) -> None:
    from attention import all_pictures_at_once
    from robots import PANDA
    from sources import Source, backbone

    (source,) = Source.load_all([PANDA], untrained_nano, nano_frames, held_out=0.2, seed=0)
    batch, model = source.looks(torch.arange(6)), source.vla.model
    with torch.no_grad():
        alone = backbone(model, batch)["backbone_features"]
        all_pictures_at_once(model)
        together = backbone(model, batch)["backbone_features"]
        batch.images[1:] = 0.0  # and no picture sees another
        first = backbone(model, batch)["backbone_features"]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[0], alone[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first[1], alone[1], atol=1e-3)


def test_updates_count_in_lower_precision(nano_scripts: object) -> None:
    """Autocast's copies of weights outlive an update, unless they are made anew each time."""
    from pretrain import fast

    layer, given = torch.nn.Linear(8, 4), torch.ones(2, 8)
    with fast("bf16"):
        first = layer(given)
        assert first.dtype == torch.bfloat16
        first.sum().backward()
        with torch.no_grad():
            layer.weight.zero_()
        torch.testing.assert_close(layer(given).float(), layer.bias.expand(2, 4), atol=0.01, rtol=0)
    with fast("no"):
        assert layer(given).dtype == torch.float32
