"""Actions that are relative to the robot's state, as LeRobot's processors have them."""

import json
import shutil

import pytest
import torch
from groot_cases import NANO, config, noise, observation

from deas_vla.policies.config import load_vla
from deas_vla.policies.groot import GrootVLA


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> GrootVLA:
    """The nano checkpoint with positions that are relative to where the gripper is."""
    root = tmp_path_factory.mktemp("relative") / "checkpoint"
    shutil.copytree(NANO, root)
    file = root / "statistics.json"
    statistics = json.loads(file.read_text())
    action = statistics["robosuite_panda"]["action"]
    both = action.pop("eef_delta")  # positions and rotations, three each
    halves = {"eef_pos": slice(0, 3), "eef_rot": slice(3, 6)}
    parts = {k: {name: v[part] for name, v in both.items()} for k, part in halves.items()}
    statistics["robosuite_panda"]["action"] = parts | action
    statistics["robosuite_panda"]["relative_action"] = {
        "eef_pos": {name: [values] * 16 for name, values in parts["eef_pos"].items()}
    }
    file.write_text(json.dumps(statistics))
    file = root / "processor_config.json"
    processor = json.loads(file.read_text())
    settings = processor["processor_kwargs"]
    settings["use_relative_action"] = True
    modality = settings["modality_configs"]["robosuite_panda"]["action"]
    (absolute, *_) = modality["action_configs"]
    modality["modality_keys"] = ["eef_pos", "eef_rot", "gripper"]
    modality["action_configs"] = [absolute | {"rep": "relative"}, absolute, absolute]
    file.write_text(json.dumps(processor))
    return load_vla(config(root))


def test_relative_actions_are_decoded_against_their_own_state(relative: GrootVLA) -> None:
    first, second = observation(1, seed=0), observation(1, seed=1)
    second["observation.state"] = first["observation.state"] + 0.4
    start = noise(relative, 1, 3)
    encoding = relative.encode(first)
    chunks = relative.sample(encoding, start)
    other = relative.encode(second)  # the preprocessor's last call is another observation's now
    assert torch.equal(relative.sample(encoding, start), chunks)
    both = {
        key: value + second[key] if isinstance(value, list) else torch.cat([value, second[key]])
        for key, value in first.items()
    }
    together = relative.sample(relative.encode(both), start.expand(2, -1, -1, -1))  # B=2, N=3
    torch.testing.assert_close(together[:1], chunks, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], relative.sample(other, start), atol=1e-5, rtol=0)


def test_relative_chunks_survive_the_way_there_and_back(relative: GrootVLA) -> None:
    """The same chunk of the network means another position where the robot stands elsewhere."""
    state = torch.stack([torch.zeros(9), torch.full((9,), 0.3)])
    same = torch.zeros(2, 1, *relative.spec.noise_shape)
    chunks = relative.decode(same, state)
    moved = chunks[1, 0] - chunks[0, 0]
    torch.testing.assert_close(moved[:, :3], torch.full((16, 3), 0.3))
    assert not bool(moved[:, 3:].any())
    valid = torch.ones(2, 16, dtype=torch.bool)
    targets = relative.preprocess_targets(state, chunks[:, 0], valid)
    torch.testing.assert_close(targets["action"][..., :7], same[:, 0, :, :7], atol=1e-5, rtol=0)
    kept = relative.encoding_from(
        targets | {"tokens": same, "token_mask": valid, "image_mask": valid}
    )
    assert torch.equal(kept.state, state)
