"""LeRobot's own commands and factory find the policy and the simulators once this is installed."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deas_vla.bundle import open_bundle
from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metadata that an installation leaves, by setuptools from setup.cfg."""
    folder = tmp_path_factory.mktemp("site")
    code = "import sys; from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel"
    run = [sys.executable, "-c", f"{code}(sys.argv[1])", str(folder)]
    subprocess.run(run, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_lerobot_eval(bundle: Path, site: Path, tmp_path: Path) -> None:
    """LeRobot's command in a process of its own: two episodes at once, no flag of the plugin."""
    places = [str(site), str(ROOT / "deas_vla" / "plugin"), str(ROOT)]
    command = [
        *(sys.executable, "-m", "lerobot.scripts.lerobot_eval"),
        *(f"--policy.path={bundle}", "--policy.device=cpu", "--policy.candidates=3"),
        *("--policy.selection.rule=softmax", "--policy.selection.temperature=0.25"),
        *("--env.type=deas_lift", "--env.episode_length=5", "--eval.use_async_envs=false"),
        *("--eval.n_episodes=2", "--eval.batch_size=2", f"--output_dir={tmp_path}"),
    ]
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(places)}, text=True,
        capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    said = run.stdout + run.stderr
    assert "'candidates': 3" in said and "'temperature': 0.25" in said
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2 and "deas_lift" in info["per_group"]
    films = list((tmp_path / "videos").rglob("*.mp4"))
    assert len(films) == 2


def test_the_distribution_is_a_plugin_of_lerobot(site: Path) -> None:
    (name,) = {found.metadata["Name"] for found in importlib.metadata.distributions(path=[site])}
    assert name.startswith("lerobot_policy_")
    assert (ROOT / "deas_vla" / "plugin" / f"{name}.py").is_file()


def loaded(bundle: Path, *flags: str) -> tuple[Any, Any, Any, Any]:
    """What LeRobot's commands make of ``--policy.path=BUNDLE`` and flags: config, policy, both."""
    import lerobot_policy_deas_vla  # noqa: F401  # registers deas_lift; their commands import it
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.factory import make_env_config
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(bundle, cli_overrides=list(flags))
    config.pretrained_path = bundle
    env = make_env_config("deas_lift")
    policy = make_policy(config, env_cfg=env)
    overrides = {
        "device_processor": {"device": "cpu"},
        "rename_observations_processor": {"rename_map": {"observation.images.wrist": WRIST}},
    }
    pre, post = make_pre_post_processors(config, str(bundle), preprocessor_overrides=overrides)
    return config, policy, pre, post


WRIST = "observation.images.eye_in_hand"


def frame() -> dict[str, Any]:
    """One robot's observation, unbatched, its wrist camera by another name."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 64, 64, generator=generator)
    return {
        "observation.images.agentview": pictures[0],
        "observation.images.wrist": pictures[1],
        "observation.state": torch.zeros(9),
        "task": "lift the red cube",
    }


def test_the_factory_loads_policy_and_processors(bundle: Path) -> None:
    import deas_vla.plugin.lerobot_policy_deas_vla  # noqa: F401

    flags = ("--candidates=5", "--selection.rule=medoid", "--n_action_steps=3", "--seed=7")
    config, policy, pre, post = loaded(bundle, *flags)
    assert isinstance(policy, ValueGuidedPolicy)
    assert (config.candidates, config.selection.rule, config.n_action_steps) == (5, "medoid", 3)
    ours = open_bundle(bundle)
    ours.config.candidates, ours.config.n_action_steps = 5, 3
    ours.config.selection.rule, ours.config.seed = "medoid", 7
    batch = pre(frame())
    with torch.inference_mode():
        actions = [post(policy.select_action(batch)) for _ in range(4)]
    assert all(action.shape == (1, 7) for action in actions)
    expected = [ours.select_action(batch) for _ in range(4)]  # a chunk of 3 and the next one
    assert torch.equal(torch.stack(actions), torch.stack(expected))


def test_a_fresh_config_has_processors(bundle: Path) -> None:
    """LeRobot's way for a policy that was not saved: by the name of a function."""
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    pre, post = make_pre_post_processors(open_bundle(bundle).config)
    assert get_policy_class("deas_guided") is ValueGuidedPolicy
    batch = pre(frame())
    assert batch["observation.state"].shape == (1, 9) and batch["task"] == ["lift the red cube"]
    assert post(torch.ones(2, 7)).tolist() == torch.ones(2, 7).tolist()


def test_another_robots_environment_is_refused(bundle: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import RoboCasaEnv
    from lerobot.policies.factory import make_policy

    config = PreTrainedConfig.from_pretrained(bundle)
    config.pretrained_path = bundle
    with pytest.raises(DeasError, match=r"action has shape \(12,\) there, .*'robosuite_panda'"):
        make_policy(config, env_cfg=RoboCasaEnv())
    policy = open_bundle(bundle)
    with pytest.raises(DeasError, match=f"observation lacks '{WRIST}'"):
        policy.predict_action_chunk({"observation.state": torch.zeros(1, 9)} | {
            "observation.images.agentview": torch.rand(1, 3, 64, 64), "task": [""]
        })  # fmt: skip


def test_lerobots_real_time_chunking(bundle: Path) -> None:
    """LeRobot's own engine and thread: chunks follow each other, each frozen to the last one."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference

    _, policy, pre, post = loaded(bundle, "--candidates=2")
    assert supports_rtc_inference(policy)
    asked: list[dict[str, Any]] = []
    predict = policy.predict_action_chunk

    def recorded(batch: Any, **kwargs: Any) -> torch.Tensor:
        chunk = predict(batch, **kwargs)
        asked.append(kwargs | {"chunk": chunk[0]})
        return chunk

    policy.predict_action_chunk = recorded
    keys = {"wrist": (64, 64, 3), "agentview": (64, 64, 3)}
    state = [f"joint_{index}.pos" for index in range(9)]
    features = {
        f"observation.images.{k}": {"dtype": "video", "shape": s, "names": None}
        for k, s in keys.items()
    }
    features["observation.state"] = {"dtype": "float32", "shape": (9,), "names": state}
    engine = RTCInferenceEngine(
        policy, pre, post, SimpleNamespace(robot_type="panda", action_features={}),
        # Ten actions a second: a chunk of 16 is not over before a slow machine has the next one.
        RTCConfig(execution_horizon=8), features, "lift the red cube", 10.0, "cpu",
        rtc_queue_threshold=15,
    )  # fmt: skip
    import numpy as np

    look = {name: np.full(shape, 90, np.uint8) for name, shape in keys.items()}
    engine.start()
    engine.notify_observation(look | dict.fromkeys(state, 0.0))
    engine.reset()
    engine.resume()
    taken, end = [], time.monotonic() + 30
    while len(asked) < 4 and not engine.failed and time.monotonic() < end:
        action = engine.get_action(None)
        taken += [] if action is None else [action]
        time.sleep(0.1)
    engine.stop()
    assert not engine.failed and len(asked) >= 4 and taken[0].shape == (7,)
    assert asked[0]["prev_chunk_left_over"] is None
    later = asked[-1]
    delay, rest = later["inference_delay"], later["prev_chunk_left_over"]
    assert delay > 0 and rest.shape == (8, 7)
    frozen = min(delay, int(rest.abs().sum(1).nonzero()[-1]) + 1)
    torch.testing.assert_close(later["chunk"][:frozen], rest[:frozen], atol=1e-4, rtol=1e-4)
    assert len(later["chunk"]) == policy.vla.spec.action_horizon
