"""Names, horizons, specs and scenes of RoboCasa: nothing here builds a kitchen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deas_vla.envs.robocasa import tasks as robocasa_tasks
from deas_vla.envs.robocasa.kitchen import (
    _ACTION_NAMES,
    _STATE_NAMES,
    ACTION_PARTS,
    STATE_PARTS,
    KitchenConfig,
    kitchen_spec,
    scenes,
)
from deas_vla.envs.robocasa.tasks import (
    ASSETS_VARIABLE,
    check_assets,
    choose_assets,
    resolve_tasks,
    robocasa_module,
    task_horizon,
)
from deas_vla.errors import DeasError


def test_tasks_by_name_old_name_and_group() -> None:
    assert resolve_tasks(["PnPCounterToMicrowave", "TurnOffStove"]) == [
        "PickPlaceCounterToMicrowave",
        "TurnOffStove",
    ]
    group = resolve_tasks(["atomic_seen"])
    assert "CloseFridge" in group and len(group) > 10
    assert resolve_tasks(["CloseFridge", "atomic_seen", "CloseFridge"]) == [
        "CloseFridge",
        *[task for task in group if task != "CloseFridge"],
    ]


def test_every_old_name_leads_to_a_task() -> None:
    assert resolve_tasks(list(robocasa_tasks.OLD_NAMES)) == list(robocasa_tasks.OLD_NAMES.values())


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [("CloseDrawr", "CloseDrawer"), ("PnPCounterToMicrowav", "PnPCounterToMicrowave")],
)
def test_unknown_task_suggests_the_nearest(wrong: str, advice: str) -> None:
    with pytest.raises(DeasError, match=rf"'{wrong}' is unknown: did you mean .*\b{advice}\b"):
        resolve_tasks([wrong])
    with pytest.raises(DeasError, match="name at least one"):
        resolve_tasks([])


def test_horizons_are_the_registered_ones() -> None:
    assert task_horizon("CloseFridge") == 600
    assert task_horizon("PnPCounterToMicrowave") == task_horizon("PickPlaceCounterToMicrowave")
    assert all(task_horizon(task) > 0 for task in resolve_tasks(["all_tasks"]))
    with pytest.raises(DeasError, match="unknown"):
        task_horizon("NoSuchTask")


def test_spec_has_lerobots_layout_and_keys() -> None:
    spec = kitchen_spec(KitchenConfig(task="PnPCounterToSink", image_size=64))
    assert spec.name == "PickPlaceCounterToSink"
    assert spec.instruction == "pick place counter to sink"
    assert (len(spec.state_names), len(spec.action_names), spec.fps) == (16, 12, 20)
    assert spec.image_keys == (
        "observation.images.robot0_agentview_left",
        "observation.images.robot0_eye_in_hand",
        "observation.images.robot0_agentview_right",
    )
    assert set(spec.image_sizes.values()) == {(64, 64)}
    assert spec.horizon == task_horizon("PickPlaceCounterToSink")
    assert kitchen_spec(KitchenConfig(horizon=7)).horizon == 7
    with pytest.raises(DeasError, match="camera 'wrist' is unknown"):
        kitchen_spec(KitchenConfig(cameras=("wrist",)))


def test_layout_is_that_of_robocasas_datasets() -> None:
    package = Path(robocasa_module().__file__).parent
    folder = package / "models" / "assets" / "groot_dataset_assets"
    modality = json.loads((folder / "PandaOmron_modality.json").read_text())
    for kind, widths, names in (
        ("action", {part: len(axes) for part, axes in ACTION_PARTS.items()}, _ACTION_NAMES),
        ("state", {part: len(axes) for part, (_, axes) in STATE_PARTS.items()}, _STATE_NAMES),
    ):
        entries = modality[kind]
        assert {part: e["end"] - e["start"] for part, e in entries.items()} == widths
        for part, entry in entries.items():
            assert all(n.startswith(part) for n in names[entry["start"] : entry["end"]])
    assert set(kitchen_spec(KitchenConfig()).image_keys) == {
        view["original_key"] for view in modality["video"].values()
    }


@pytest.mark.parametrize("split", ["pretrain", "target", "all"])
def test_scenes_are_robocasas_splits(split: str) -> None:
    create_env = robocasa_module("robocasa.utils.env_utils").create_env
    theirs = create_env("CloseDrawer", split=split)  # loads no model before its first reset
    assert scenes(KitchenConfig(split=split)) == [tuple(s) for s in theirs.layout_and_style_ids]


def test_scenes_can_be_chosen_but_not_made_up() -> None:
    chosen = KitchenConfig(split="pretrain", layouts=(11, 12, 3), styles=(20,))
    assert scenes(chosen) == [(11, 20), (12, 20)]
    assert not set(scenes(KitchenConfig(split="pretrain"))) & set(scenes(KitchenConfig()))
    with pytest.raises(DeasError, match=r"no kitchen of split 'target' is left .*layouts \[11\]"):
        scenes(KitchenConfig(layouts=(11,)))
    with pytest.raises(DeasError, match="split 'test' is unknown"):
        scenes(KitchenConfig(split="test"))


def test_missing_assets_name_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robocasa_tasks, "package_assets", lambda: tmp_path)
    monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
    (tmp_path / "textures").mkdir()
    with pytest.raises(DeasError) as error:
        check_assets(["CloseDrawer"], ["lightwheel"])
    message = str(error.value)
    assert "CloseDrawer" in message and "fixtures/fridges" in message and "\n" not in message
    assert "download_kitchen_assets --type fixtures_lw objs_lw`" in message
    assert message.endswith("--assets=lite")
    with pytest.raises(DeasError, match="registry 'unknown'"):
        check_assets(["CloseDrawer"], ["unknown"])


def test_assets_may_lie_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, extra = tmp_path / "package", tmp_path / "extra"
    for folder in ("fridges", "microwaves"):
        (package / "fixtures" / folder).mkdir(parents=True)
    for folder in ("fixtures/sinks", "fixtures/stoves", "textures", "objects/lightwheel"):
        (extra / folder).mkdir(parents=True)
    monkeypatch.setattr(robocasa_tasks, "package_assets", lambda: package)
    monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
    with pytest.raises(DeasError, match="textures, fixtures/sinks"):
        choose_assets("robocasa", ["CloseDrawer"], ["lightwheel"])
    assert choose_assets("auto", ["CloseDrawer"], ["lightwheel"]) == "lite"
    monkeypatch.setenv(ASSETS_VARIABLE, str(extra))
    assert choose_assets("robocasa", ["CloseDrawer"], ["lightwheel"]) == "robocasa"
    assert choose_assets("auto", ["CloseDrawer"], ["lightwheel"]) == "robocasa"
    assert choose_assets("lite", ["CloseDrawer"]) == "lite"
    with pytest.raises(DeasError, match="assets 'light' are unknown: use robocasa, lite or auto"):
        choose_assets("light", ["CloseDrawer"])
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DeasError, match=r"DEAS_ROBOCASA_ASSETS=.*nowhere is no directory"):
        choose_assets("auto", ["CloseDrawer"])


@pytest.mark.parametrize(
    ("renderer", "said"),
    [
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL=glfw is no renderer for pictures"),
        (
            {"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere"},
            "rendering failed with MUJOCO_GL=egl",
        ),
    ],
)
def test_renderer_that_cannot_start_is_one_line(renderer: dict[str, str], said: str) -> None:
    code = "from deas_vla.envs.gl import check_gl; check_gl()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", **renderer},
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert f"DeasError: {said}" in last and "osmesa" in last
    assert "Exception ignored" not in done.stderr


def test_importing_the_modules_is_light() -> None:
    code = (
        "import sys, deas_vla.envs.robocasa.kitchen, deas_vla.envs.robocasa.tasks as t\n"
        "assert not {'robocasa', 'robosuite', 'lerobot', 'torch', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_names_are_distinct() -> None:
    for names in (_ACTION_NAMES, _STATE_NAMES):
        assert len(np.unique(names)) == len(names)
