"""A run in small before the machine is rented: every stage, what it costs, what does not fit."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe_cases import load_script
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deas_vla.cli import parse
from deas_vla.data.episodes import load_episodes
from deas_vla.errors import DeasError
from deas_vla.training import projection as projecting
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.memory import saved_bytes
from deas_vla.training.projection import Costs, projection
from deas_vla.training.rehearsal import check_room, handful


@pytest.mark.slow
def test_every_stage_is_rehearsed(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("recipes/rehearse.py")
    flags = [
        f"--dataset.root={tiny_dataset}",
        "--size=nano",
        "--device=cpu",
        "--policy.dtype=bfloat16",
        "--policy.train_projectors=true",
        "--critic.hidden=[32,32]",
        "--critic_updates=3",
        f"--output_dir={tmp_path}",
    ]
    script.main(parse(script.RehearsalConfig, flags))
    found = json.loads((tmp_path / "results.json").read_text())
    rows = {row["what"]: row for row in found["rows"]}
    stages = ["checkpoint", "load", "fingerprint", "features", "policy", "critic", "bundle", "open"]
    assert list(rows) == [*stages, "first", "decision"]
    assert all(row["seconds"] > 0 and row["memory_gb"] > 0.1 for row in rows.values())
    assert all(rows[stage]["disk_gb"] > 0 for stage in ("checkpoint", "features", "bundle"))
    assert rows["features"]["size"] == 24
    assert min(value for value in found["costs"].values()) > 0
    assert "114 frames, on one process like this one" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    online = ["--policy.augment=checkpoint", "--policy.workers=1"]
    script.main(parse(script.RehearsalConfig, [*flags, *online]))
    found = json.loads((tmp_path / "results.json").read_text())["costs"]
    assert found["token_bytes"] == 0 and found["chunk"] > 0
    longer = parse(script.RehearsalConfig, [*flags, "--critic.horizon=16"])
    longer.prepare()
    assert longer.frames == 24  # a chunk fits, whatever its length
    with pytest.raises(DeasError, match=r"frames 8: use more than critic.horizon=8"):
        script.main(parse(script.RehearsalConfig, [*flags, "--frames=8", "--critic.horizon=8"]))


@pytest.mark.parametrize("flag", ["--stages=[features,critic]", "--critic.algorithm=qc"])
def test_what_is_not_rehearsed_is_refused(tiny_dataset: Path, tmp_path: Path, flag: str) -> None:
    script = load_script("recipes/rehearse.py")
    flags = [f"--dataset.root={tiny_dataset}", f"--output_dir={tmp_path}", "--size=nano", flag]
    with pytest.raises(DeasError, match=r"all stages are rehearsed, .* leave --stages and qc out"):
        script.main(parse(script.RehearsalConfig, flags))
    assert not list(tmp_path.iterdir())


def test_a_handful_has_both_outcomes(tiny_dataset: Path) -> None:
    table = load_episodes("test/tiny", tiny_dataset)
    few = handful(table, 10)
    assert few.num_frames == 20 and sorted(few.episode_success) == [False, True]
    for row in range(2):
        begin = table.episode_start[few.episode_ids[row]]
        np.testing.assert_array_equal(few.action[few.frames(row)], table.action[begin : begin + 10])
        assert few.success[few.frames(row)].sum() == few.episode_success[row]
    assert few.done.sum() == 2 and (few.terminated | few.truncated).sum() == 2
    failed = load_episodes("test/tiny", tiny_dataset, [1, 3])
    with pytest.raises(DeasError, match="has no success"):
        handful(failed, 10)


COSTS = Costs(
    frame=0.01,
    chunk=0.002,
    update=0.001,
    decision=0.1,
    candidates=16,
    token_bytes=900_000,
    pooled_bytes=4_096,
    checkpoint_bytes=10**8,
    kept_bytes=2 * 10**8,
    weight_bytes=6 * 10**9,
)


class Blocks(nn.Module):
    """Two of them over (4, 8) numbers, then a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 100), nn.GELU(), nn.Linear(100, 8)) for _ in range(2)
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = batch["x"]
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean()


def test_what_stays_for_the_backward_pass() -> None:
    module, batch = Blocks(), {"x": torch.randn(4, 8)}
    hidden, wide = 4 * 8 * 4, 4 * 100 * 4  # bytes
    # Of a block its input, and what GELU was handed and what it made.
    assert saved_bytes(module, batch) == 2 * (hidden + 2 * wide)
    for block in module.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    assert saved_bytes(module, batch) == 2 * hidden


def test_what_does_not_fit_comes_with_the_flag_that_does(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_episodes("test/tiny", tiny_dataset)
    usage: Any = shutil.disk_usage(tmp_path)
    config, cpu = FinetuneConfig(), torch.device("cpu")

    def told(free: int, **costs: Any) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        return "\n".join(projection(replace(COSTS, **costs), table, config, tmp_path, cpu))

    assert "features 0.0 h, policy 0.2 h" in told(10**9) and "fits" in told(10**9)
    assert "DOES NOT FIT; --features.cache=DIR on a larger disk, or --policy.tokens=online" in told(
        5 * 10**8
    )
    assert "nor do pooled features" in told(1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 16 * 10**9))
    gpu = torch.device("cuda")
    memory = projecting._memory(COSTS, config, gpu)[0]  # 6 + 64 x 0.2 GB, 0.9 x 16 GB there
    assert "DOES NOT FIT 14.40 GB; --policy.gradient_accumulation_steps=2" in memory
    assert memory.endswith("=2, or --policy.gradient_checkpointing=true")
    config.policy.gradient_checkpointing = True
    assert projecting._memory(COSTS, config, gpu)[0].endswith("_steps=2")
    assert (
        "take a larger GPU"
        in projecting._memory(replace(COSTS, weight_bytes=20 * 10**9), config, gpu)[0]
    )
    with pytest.raises(DeasError, match=r"takes 9\.00 GB of disk"):
        check_room(tmp_path, "full")
