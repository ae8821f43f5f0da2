"""Lite kitchens in the real simulator: they need nothing but the installed packages."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from kitchen_cases import fingerprint
from lite_cases import settle, solve

from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv, scenes
from deas_vla.envs.robocasa.lite import catalogue
from deas_vla.envs.robocasa.lite.looks import PlainLooks
from deas_vla.envs.robocasa.lite.tree import lite_tree
from deas_vla.envs.robocasa.overlay import AssetTree, mounted
from deas_vla.envs.robocasa.tasks import package_assets, robocasa_module
from deas_vla.errors import DeasError


def kitchen(task: str, **options: Any) -> KitchenEnv:
    return KitchenEnv(KitchenConfig(task=task, assets="lite", image_size=32, **options))


@pytest.fixture(scope="module")
def tree() -> Iterator[AssetTree]:
    tree = lite_tree()
    yield tree
    tree.close()


@pytest.mark.parametrize("task", catalogue.LITE_TASKS)
def test_every_task_is_unsolved_at_first_and_can_be_solved(task: str) -> None:
    """In a kitchen of every split, by RoboCasa's own check."""
    for split in catalogue.LITE_SPLITS:
        env = kitchen(task, split=split)
        env.reset(1)
        assert not settle(env)
        look = env.observe()
        assert tuple(look.images) == env.spec.image_keys
        assert all(image.std() > 10 for image in look.images.values())
        assert look.task != env.spec.instruction and look.task.endswith(".")
        assert solve(env), look.task
        env.close()


@pytest.mark.slow
@pytest.mark.parametrize("layout", catalogue.layout_names())
def test_every_layout_is_a_place_for_tasks(layout: str) -> None:
    """Every third task in each, and so every task in at least two."""
    first = catalogue.layout_names().index(layout) % 3
    for number, task in list(enumerate(catalogue.LITE_TASKS))[first::3]:
        env = kitchen(task, split="all", layouts=(layout,))
        env.reset(100 + number)
        assert env.scene[0] == layout and not settle(env, 1) and solve(env), task
        env.close()


def test_splits_share_no_kitchen_and_no_object() -> None:
    for part in ("layouts", "styles"):
        names = [name for split in catalogue.LITE_SPLITS.values() for name in split[part]]
        assert len(names) == len(set(names)) >= 4
    pairs = {
        split: scenes(KitchenConfig(assets="lite", split=split))
        for split in ("train", "pretrain", "validation", "test", "target", "all")
    }
    assert pairs["train"] == pairs["pretrain"] and pairs["test"] == pairs["target"]
    parts = [*pairs["train"], *pairs["validation"], *pairs["test"]]
    assert len(pairs["all"]) == len(parts) and set(pairs["all"]) == set(parts)
    models: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in models.items():
        env = kitchen("CoffeeSetupMug", split=split)
        for seed in range(3):
            env.reset(seed)
            found.add(Path(env.kitchen.object_cfgs[0]["info"]["mjcf_path"]).parent.name)
        env.close()
    assert models["train"] <= {"mug_0", "mug_1"} and models["test"] <= {"mug_2", "mug_3"}


def fingerprints(seeds: list[int]) -> list[str]:
    env = kitchen("PickPlaceCounterToMicrowave", split="train")
    found = []
    for seed in seeds:
        env.reset(seed)
        settle(env, 2)  # leaves no trace
        env.reset(seed)
        found.append(fingerprint(env))
    env.close()
    return found


def test_seed_alone_determines_an_episode() -> None:
    code = (
        "import json; from test_lite_kitchens import fingerprints as f;print(json.dumps(f([4, 3])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join([*sys.path, str(Path(__file__).parent)]), "PYTHONHASHSEED": "7",
             "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    here = fingerprints([3, 4])
    assert json.loads(done.stdout.splitlines()[-1]) == here[::-1] and here[0] != here[1]


def state_of_robocasa() -> tuple[Any, ...]:
    models = robocasa_module("robocasa.models")
    objects = robocasa_module("robocasa.models.objects.kitchen_object_utils")
    robots = robocasa_module("robosuite.models.robots.robot_model").RobotModel
    known = {
        name: {registry: (id(about), tuple(about.mjcf_paths)) for registry, about in found.items()}
        for name, found in objects.OBJ_CATEGORIES.items()
    }
    changed = objects.sample_kitchen_object_helper, robots.set_mujoco_model
    return models.assets_root, objects.BASE_ASSET_ZOO_PATH, known, *changed


def files_of_the_package() -> dict[Path, tuple[int, int]]:
    found = [path for path in package_assets().rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_nothing_of_an_episode_stays_in_robocasa() -> None:
    before, files = state_of_robocasa(), files_of_the_package()
    env = kitchen("CloseDrawer")
    env.reset(0)
    assert state_of_robocasa() == before
    assert env._tree is not None
    folder = env._tree.root
    assert folder.is_dir()
    env.close()
    assert not folder.exists() and files_of_the_package() == files


def test_an_error_while_building_leaves_robocasa_as_it_was(tree: AssetTree) -> None:
    before = state_of_robocasa()
    with pytest.raises(RuntimeError, match="inside"), mounted(tree):
        assert state_of_robocasa() != before
        raise RuntimeError("inside")
    assert state_of_robocasa() == before


def test_what_is_drawn_changes_nothing_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite: Callable[..., str] = PlainLooks._rewrite
    env = kitchen("CloseFridge")
    found = []
    for plain in (True, False):
        monkeypatch.setattr(PlainLooks, "_rewrite", rewrite if plain else lambda self, xml: xml)
        env.reset(3)
        model = env.kitchen.sim.model._model
        masses = np.concatenate([model.body_mass, model.body_inertia.ravel(), model.dof_M0])
        faces = model.nmeshface
        rng = np.random.default_rng(0)
        for _ in range(10):
            env.step(rng.uniform(-1, 1, 12).astype(np.float32))
        found.append((masses, np.array(env.kitchen.sim.data.qpos), faces))
    env.close()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)
    assert found[0][2] < found[1][2] / 10


def test_objects_are_as_large_as_their_regions_say(tree: AssetTree) -> None:
    """RoboCasa places them by these; two instances at least, one for each split."""
    for category, registries in tree.categories.items():
        models = registries[catalogue.REGISTRY].mjcf_paths if registries else []
        assert len(models) != 1, category
        for path in models:
            model = mujoco.MjModel.from_xml_path(path)
            data = mujoco.MjData(model)
            mujoco.mj_forward(model, data)
            low, high = np.full(3, np.inf), np.full(3, -np.inf)
            for geom in np.flatnonzero(model.geom_contype):
                rotation = data.geom_xmat[geom].reshape(3, 3)
                centre = data.geom_xpos[geom] + rotation @ model.geom_aabb[geom][:3]
                half = np.abs(rotation) @ model.geom_aabb[geom][3:]
                low, high = np.minimum(low, centre - half), np.maximum(high, centre + half)
            region = model.geom("reg_bbox")
            np.testing.assert_allclose((high - low) / 2, region.size, atol=1e-4, err_msg=path)
            np.testing.assert_allclose((high + low) / 2, region.pos, atol=1e-4, err_msg=path)


def test_an_object_without_a_model_is_named_before_anything_is_compiled(
    tree: AssetTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = lambda *_: pytest.fail("MuJoCo's compiler was reached")  # noqa: E731
    env = kitchen("CoffeeSetupMug")
    env._tree = AssetTree(tree.root, {**tree.categories, "mug": {}}, tree.whose)
    monkeypatch.setattr(mujoco.MjModel, "from_xml_string", compiler)
    monkeypatch.setattr("robosuite.models.robots.robot_model.RobotModel.get_model", compiler)
    with pytest.raises(DeasError, match="object category mug: no model of it among the objects of"):
        env.reset(0)
    few = {**tree.categories, "mug": dict(tree.categories["mug"])}
    few["mug"][catalogue.REGISTRY] = type("About", (), {**vars(few["mug"][catalogue.REGISTRY])})
    few["mug"][catalogue.REGISTRY].mjcf_paths = few["mug"][catalogue.REGISTRY].mjcf_paths[:1]
    env._tree = AssetTree(tree.root, few, tree.whose)
    with pytest.raises(DeasError, match=r"object category mug: no model .*'split': 'target'"):
        env.reset(0)


def test_the_package_stays_small() -> None:
    sizes = [path.stat().st_size for path in catalogue.DATA.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) < 1_000_000


def test_no_part_of_a_fixture_rubs_on_its_own_frame() -> None:
    """Doors and drawers, shut or open; objects still lie on what they lie on."""
    env = kitchen("CloseDrawer", split="all", styles=("loft",), layouts=("galley",))
    env.reset(0)
    settle(env, 2)
    sim = env.kitchen.sim
    names = sorted(env.kitchen.fixtures, key=len, reverse=True)
    pairs = []
    for contact in sim.data.contact[: sim.data.ncon]:
        geoms = [sim.model.geom_id2name(g) or "" for g in (contact.geom1, contact.geom2)]
        pairs.append([next((n for n in names if g.startswith(n)), g) for g in geoms])
    env.close()
    assert pairs and all(one != other for one, other in pairs)
