"""The engine in real kitchens, and what eval/robocasa.py refuses before any simulator starts."""

import hashlib
import importlib.util
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deas_vla.cli import parse
from deas_vla.envs.env import EnvSpec
from deas_vla.envs.robocasa.kitchen import KitchenConfig
from deas_vla.envs.rollout import Episode, Plan
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.agents import check_embodiment
from deas_vla.evaluation.engine.planning import Look
from deas_vla.evaluation.engine.workers import Job, RunEpisode, SimulatorPool, Trial, every_step
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.policies.vla import VLASpec

KITCHEN = KitchenRolloutConfig(cameras=["robot0_agentview_left"], image_size=32, horizon=16)


class PixelPlanner:
    """Draws its chunks from every pixel that it is shown: one that differs changes the episode."""

    batch_size = 2

    def plan(self, looks: Sequence[Look]) -> list[Plan]:
        return [self._plan(look) for look in looks]

    def _plan(self, look: Look) -> Plan:
        pixels = b"".join(image.tobytes() for image in look.observation.images.values())
        rng = np.random.default_rng((look.seed, zlib.crc32(pixels)))
        return Plan(rng.uniform(-0.3, 0.3, (8, 12)).astype(np.float32))


def digest(trial: Trial, episode: Episode, spec: EnvSpec) -> str:
    actions = hashlib.sha256(episode.actions.tobytes()).hexdigest()
    return f"{episode.instruction} {episode.success} {episode.steps} {actions}"


def episodes(workers: int, film: bool) -> dict[int, str | None]:
    trials = [Trial("CloseDrawer", seed, 1) for seed in (1, 2)]
    jobs = [Job(trial, RunEpisode(digest, every_step if film else None)) for trial in trials]
    with SimulatorPool(workers, KITCHEN.make_env, PixelPlanner()) as pool:
        return {end.trial.seed: end.result for end in pool.run(jobs)}


@pytest.mark.slow
@pytest.mark.usefixtures("kitchen_assets")
def test_workers_and_cameras_change_nothing_in_a_kitchen() -> None:
    alone = episodes(workers=1, film=False)
    assert None not in alone.values() and len(set(alone.values())) == 2
    assert episodes(workers=2, film=True) == alone


def load_script() -> ModuleType:
    path = Path(__file__).parents[2] / "eval/robocasa.py"
    spec = importlib.util.spec_from_file_location("eval_robocasa", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NANO = "--policy.path=deas_vla/assets/groot_nano"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=[TurnOfStove]"], "'TurnOfStove' is unknown: did you mean TurnOffStove"),
        (["--split=test"], "split 'test' is unknown"),
        ([], "no policy is given: use --bundle=DIR, --policy.path=CHECKPOINT or both"),
        (["--bundle=nowhere"], "bundle nowhere is no bundle"),
        (["--policy.path=./nowhere"], r"checkpoint './nowhere' does not exist"),
        (
            [NANO, "--policy.embodiment=robosuite_panda"],
            "state has 16 dimensions but the checkpoint's embodiment 'robosuite_panda' has 9",
        ),
    ],
)
@pytest.mark.usefixtures("kitchen_assets")
def test_mistakes_are_one_line_before_any_simulator(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = "deas_vla.evaluation.engine.workers.SimulatorPool.__init__"
    monkeypatch.setattr(started, lambda *a: pytest.fail("a simulator was started"))
    script = load_script()
    known = ["--tasks=[CloseDrawer]", f"--output_dir={tmp_path}"]
    flags = [f for f in known if f.split("=")[0] not in {g.split("=")[0] for g in flags}] + flags
    with pytest.raises(DeasError, match=message) as error:
        script.main(parse(script.EvalConfig, flags))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", [{"state_dim": 9}, {"action_dim": 7}, {"image_keys": ("observation.images.top",)}]
)
def test_a_policy_of_another_robot_is_refused(change: dict) -> None:
    cameras = ("front", "wrist")
    env = EnvSpec("T", "go", dict.fromkeys(cameras, (8, 8)), ("s",) * 16, ("a",) * 12, 20, 9, "r")
    keys = ("observation.images.wrist",)  # fewer than there are is well
    facts = {"embodiment": "gr1", "image_keys": keys, "state_dim": 16, "action_dim": 12}
    rest = {"action_horizon": 8, "noise_shape": (8, 12), "token_dim": 4, "tokens_per_image": (1, 1)}
    check_embodiment(VLASpec(**facts, **rest), env, "bundle x")
    with pytest.raises(DeasError, match=r"bundle x is of embodiment 'gr1' .*use a policy of r"):
        check_embodiment(VLASpec(**{**facts, **change}, **rest), env, "bundle x")


def test_several_candidates_need_a_critic() -> None:
    config = KitchenRolloutConfig(candidates=[1, 16])
    env = EnvSpec("T", "go", {}, (), (), 20, 9, "r")
    with pytest.raises(DeasError, match=r"candidates \[1, 16\] without a critic"):
        config.trials([env], has_critic=False)
    config.candidates = None
    assert {t.candidates for t in config.trials([env], has_critic=False)} == {1}
    assert {t.candidates for t in config.trials([env], has_critic=True)} == {1, 16}


def bundle_of(sizes: dict[str, tuple[int, int]], directory: Path) -> Path:
    """As much of a bundle as says what its training data looked like."""
    data = {"image_sizes": {f"observation.images.{name}": size for name, size in sizes.items()}}
    manifest = {"format_version": 1, "files": {}, "data": data}
    (directory / "bundle.json").write_text(json.dumps(manifest))
    return directory


def test_the_kitchen_is_looked_at_as_in_the_bundles_training_data(tmp_path: Path) -> None:
    cameras = ("robot0_eye_in_hand", "robot0_agentview_left")
    bundle = bundle_of(dict.fromkeys(cameras, (96, 96)), tmp_path)
    config = KitchenRolloutConfig(bundle=bundle)
    config._look_as_trained(bundle)
    assert (config.kitchen("X").cameras, config.kitchen("X").image_size) == (cameras, 96)
    config = KitchenRolloutConfig(bundle=bundle, cameras=["robot0_frontview"], image_size=32)
    config._look_as_trained(bundle)
    assert config.kitchen("X").cameras == ("robot0_frontview",)
    assert config.kitchen("X").image_size == 32
    usual = KitchenRolloutConfig().kitchen("X")
    assert (usual.cameras, usual.image_size) == (KitchenConfig().cameras, 256)


def test_pictures_that_no_kitchen_makes_are_refused(tmp_path: Path) -> None:
    sizes = {"robot0_agentview_left": (96, 96), "robot0_eye_in_hand": (96, 128)}
    config = KitchenRolloutConfig(bundle=bundle_of(sizes, tmp_path))
    with pytest.raises(DeasError, match="choose it with --image_size"):
        config.check()


def test_flags_choose_whose_kitchens_and_results_say_it(tmp_path: Path) -> None:
    flags = ["--assets=lite", "--tasks=[CloseDrawer]", "--split=test", "--layouts=[left_corner]"]
    config = parse(KitchenRolloutConfig, flags)
    (spec,) = config.check()
    assert spec.name == "CloseDrawer" and config.kitchen("CloseDrawer").assets == "lite"
    assert config.where() == "in lite kitchens, split test"
    numbers = parse(KitchenRolloutConfig, ["--layouts=[11,12]", "--styles=[20]"])
    assert numbers.layouts == [11, 12] and numbers.styles == [20]
    manifest = json.loads((bundle_of({}, tmp_path) / "bundle.json").read_text())
    manifest["data"]["assets"] = "robocasa"
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    config.bundle = tmp_path
    assert config.where().endswith("by a bundle trained in RoboCasa's own kitchens")
    with pytest.raises(DeasError, match="task 'CloseOven' is none of those that lite kitchens"):
        parse(KitchenRolloutConfig, ["--assets=lite", "--tasks=[CloseOven]"]).check()
