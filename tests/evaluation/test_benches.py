"""The timing scripts run for real at toy size and leave results in the common layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_cases import NANO, ROOT, load_script

from deas_vla.cli import parse
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.backbones import full_size_backbone
from deas_vla.evaluation.timing import Arm, interleave, text_lines, timing_row

TINY = ["--critic.hidden=[32,32]", "--critic.batch_size=16", "--rounds=2", "--updates_per_round=2"]


@pytest.mark.slow
def test_kitchens_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEAS_ROBOCASA_ASSETS", raising=False)  # another test's kit: slow to time
    bench = load_script("eval/bench_kitchens.py")
    flags = ["--tasks=[CloseDrawer]", "--rounds=1", "--steps=2", "--image_size=32"]
    bench.main(parse(bench.BenchConfig, [*flags, f"--output_dir={tmp_path}"]))
    record = json.loads((tmp_path / "results.json").read_text())
    lite = {row["what"].split(",")[0]: row for row in record["rows"] if row["assets"] == "lite"}
    assert lite.keys() == {bench.RESET, bench.STEP, bench.PICTURE}
    assert 0 < lite[bench.STEP]["median_ms"] < lite[bench.RESET]["median_ms"]
    assert all(row["cpu_ms"] > 0 for row in lite.values())
    assert (tmp_path / "report.html").is_file()


def rows_of(output: Path) -> dict[tuple[str, int], dict]:
    record = json.loads((output / "results.json").read_text())
    assert {"config", "versions", "machine", "git_revision", "wall_seconds"} <= record.keys()
    for row in record["rows"]:
        assert row.keys() == {"what", "size", "median_ms", "p95_ms", "ratio_to", "ratio"}
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert (row["ratio"] is None) == (row["ratio_to"] is None)
    assert "<table>" in (output / "report.html").read_text()
    return {(row["what"], row["size"]): row for row in record["rows"]}


def test_arms_take_turns_and_ratios_are_within_a_round() -> None:
    order: list[tuple[str, int]] = []
    arms = {name: Arm(lambda turn, n=name: order.append((n, turn)), lambda _: 4) for name in "ab"}
    seconds = interleave(arms, 2, warm_up=1)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert seconds["a"].shape == (2,)
    slow, fast = np.array([2.0, 40.0, 4.0]), np.array([1.0, 10.0, 2.0])
    row = timing_row("fast", 7, fast, "slow", slow)
    assert row["ratio"] == 2.0 and row["median_ms"] == 2000.0  # a slow spell hits both
    assert "fast" in text_lines([row])


@pytest.mark.slow
def test_features_bench(tiny_dataset: Path, tmp_path: Path) -> None:
    bench = load_script("eval/bench_features.py")
    flags = [f"--dataset.root={tiny_dataset}", "--dataset.repo_id=test/tiny"]
    flags += ["--episodes=2", f"--output_dir={tmp_path}"]
    for rounds in (1, 2):  # the last round begins with the one way or the other
        bench.main(parse(bench.BenchConfig, [*flags, f"--rounds={rounds}"]))
    rows = rows_of(tmp_path)
    assert {what for what, _ in rows} == {
        bench.SEQUENTIAL,
        bench.INDEXED,
        bench.STAGE,
        bench.AHEAD,
        bench.INDEXED_STAGE,
    }
    sequential = next(row for (what, _), row in rows.items() if what == bench.SEQUENTIAL)
    assert sequential["ratio"] > 1 and sequential["ratio_to"] == bench.INDEXED
    with pytest.raises(DeasError, match="6 episodes, 4 rounds of 2"):
        bench.main(parse(bench.BenchConfig, [*flags, "--rounds=4"]))


@pytest.mark.slow
def test_workers_ahead_of_a_device_make_the_same_features(tmp_path: Path) -> None:
    bench = load_script("eval/bench_pipeline.py")
    settings = {"device_ms": [1.0], "workers": [1], "pixels": 64, "episodes": 1, "rounds": 1}
    bench.main(bench.BenchConfig(**settings, output_dir=tmp_path))  # refuses other ones itself
    serial, ahead = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert ahead["ratio_to"] == serial["what"] and ahead["ratio"] > 0
    with pytest.raises(DeasError, match=r"and a warm-up take .*: use fewer --rounds"):
        bench.main(bench.BenchConfig(**settings | {"episodes": 300}, output_dir=tmp_path))


@pytest.mark.slow
def test_tokens_bench(tiny_dataset: Path, tmp_path: Path) -> None:
    bench = load_script("eval/bench_tokens.py")
    flags = [f"--dataset.root={tiny_dataset}", "--dataset.repo_id=test/tiny", "--episodes=2"]
    flags += ["--batch_size=8", "--updates=1", "--rounds=2", "--workers=[1]"]
    bench.main(parse(bench.BenchConfig, [*flags, f"--output_dir={tmp_path}"]))
    rows = rows_of(tmp_path)
    assert rows.keys() == {(bench.CACHED, 8), ("online, 1 workers", 8)}
    assert rows["online, 1 workers", 8]["ratio"] < 1  # cached tokens are faster


@pytest.mark.slow
def test_updates_bench(tiny_dataset: Path, tmp_path: Path) -> None:
    bench = load_script("eval/bench_updates.py")
    flags = [f"--dataset.root={tiny_dataset}", "--dataset.repo_id=test/tiny", *TINY]
    flags += ["--dataset.episodes=4", f"--output_dir={tmp_path}"]
    bench.main(parse(bench.BenchConfig, flags))
    rows = rows_of(tmp_path)
    assert rows.keys() == {(what, 16) for what in (bench.CACHED, bench.PLAIN, bench.IN_LOOP)}
    assert rows[bench.CACHED, 16]["ratio"] > 1  # than the backbone in the loop


def test_the_full_size_backbone_at_nano_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code with another configuration: inputs of its own fit it, part by part."""
    from lerobot.policies.groot import groot_n1_7

    said = json.loads((NANO / "config.json").read_text())
    names = ("select_layer", "backbone_embedding_dim", "image_target_size")
    small = groot_n1_7.GR00TN17Config(
        model_name=str(NANO / "backbone"), **{name: said[name] for name in names}
    )
    monkeypatch.setattr(groot_n1_7, "GR00TN17Config", lambda: small)
    backbone = full_size_backbone(2, 3, "float32", torch.device("cpu"), seed=0)
    parts = backbone.inputs(np.arange(5))
    assert [len(part["input_ids"]) for part in parts] == [3, 2]
    pooled = backbone.run(parts)
    assert pooled.shape == (5, backbone.width) and bool(pooled.isfinite().all())
    assert not torch.equal(pooled[0], pooled[1])  # every frame has noise of its own


@pytest.mark.slow
def test_scaling_bench(tmp_path: Path) -> None:
    bench = load_script("eval/bench_scaling.py")
    flags = ["--transitions=[1000,5000]", "--feature_dim=16", *TINY]
    bench.main(parse(bench.BenchConfig, [*flags, f"--output_dir={tmp_path}"]))
    rows = rows_of(tmp_path)
    assert rows.keys() == {(what, n) for what in (bench.UPDATE, bench.DRAW) for n in (1000, 5000)}
    assert (tmp_path / "scaling.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("script", "flag", "message"),
    [
        ("updates", "--backbone=huge", "backbone 'huge'"),
        ("updates", "--micro_batch=0", "micro_batch 0"),
        ("scaling", "--transitions=[999]", "use 1000 or more"),
        ("memory", "--updates=0", "updates 0"),
        ("memory", "--frames=999", "use 1000 or more"),
    ],
)
def test_what_cannot_be_timed_is_said(script: str, flag: str, message: str) -> None:
    bench = load_script(f"eval/bench_{script}.py")
    with pytest.raises(DeasError, match=message):
        bench.main(parse(bench.BenchConfig, [flag]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_on_mapped_features_holds_no_copy_of_them(tmp_path: Path) -> None:
    """The mechanism of a million frames at a twentieth of the size, in a process of its own."""
    flags = ["--frames=150000", "--updates=10", *TINY]
    script = str(ROOT / "eval/bench_memory.py")
    subprocess.run(
        [sys.executable, script, *flags, f"--output_dir={tmp_path}", f"--scratch={tmp_path}"],
        check=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    memory = json.loads((tmp_path / "results.json").read_text())["memory"]
    assert memory["file_gb"] > 0.6
    assert memory["peak_anonymous_gb"] - memory["imported_anonymous_gb"] < 0.5 * memory["file_gb"]
    assert memory["peak_rss_gb"] < 6.0
    rows_of(tmp_path)


def test_memory_by_counting(tmp_path: Path) -> None:
    script = load_script("eval/lora_memory.py")
    flags = ["--batch_sizes=[2,4]", f"--output_dir={tmp_path}"]
    script.main(parse(script.MemoryConfig, flags))
    record = json.loads((tmp_path / "results.json").read_text())
    two, four = record["rows"]
    assert 3.0e9 < record["parameters"]["backbone"] + record["parameters"]["head"] < 3.3e9
    assert record["parameters"]["trained"] == 16 * 901_120  # rank x (in + out) of 192 layers
    assert four["activations_gb"] == pytest.approx(2 * two["activations_gb"], rel=0.05)
    assert two["activations_checkpointed_gb"] < 0.2 * two["activations_gb"]


@pytest.mark.slow
def test_latency_bench(tmp_path: Path) -> None:
    bench = load_script("eval/latency.py")
    flags = ["--candidates=[1,3]", "--naive=[3]", "--rounds=1", "--threads=1"]
    bench.main(parse(bench.LatencyConfig, [*flags, f"--output_dir={tmp_path}"]))
    record = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["what"], row["candidates"]): row for row in record["rows"]}
    many = {bench.FUSED, bench.COPIES, bench.NAIVE}
    assert set(rows) == {(bench.FUSED, 1)} | {(way, 3) for way in many}
    for row in rows.values():
        assert 0 < row["median_ms"] <= row["p95_ms"] and row["ratio_to"] == "base policy"
        assert set(row["split_ms"]) == set(bench.STAGES)
        assert sum(row["split_ms"].values()) == pytest.approx(row["median_ms"], rel=0.2)
    assert rows[bench.FUSED, 1]["times_base"] == 1.0
    counted = {(row["what"], row["candidates"]): row for row in record["counted"]}
    base, fused, copies, naive = (counted[key] for key in rows)
    for name in ("operations", "traffic"):
        assert base[name] < fused[name] < copies[name] < naive[name]
    assert naive["operations"] == pytest.approx(3 * base["operations"], rel=0.05)
    assert fused["peak"] <= copies["peak"] <= naive["peak"] < 4 * base["peak"]
    for flag, said in (("--size=huge", "size 'huge'"), ("--candidates=[0,2]", "candidates")):
        with pytest.raises(DeasError, match=said):
            bench.main(parse(bench.LatencyConfig, [*flags, flag]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_stage_holds_the_dataset(tmp_path: Path) -> None:
    """Ten times the frames, the same memory: chunks alone would be 0.8 GB, features 82 MB."""
    flags = ["--frames=[2000,20000]", "--episode=100", "--long_episodes=[100]", "--steps=2"]
    flags += ["--recipe.policy.batch_size=4", "--recipe.dataset.holdout=0", "--pooled_tokens=1"]
    script = str(ROOT / "eval/bench_stages.py")
    subprocess.run(
        [sys.executable, script, *flags, f"--output_dir={tmp_path}", f"--scratch={tmp_path}"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    record = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["what"], row["size"]): row for row in record["rows"]}
    for stage in ("features", "policy", "critic"):
        small, large = (rows[stage, frames]["anonymous_gb"] for frames in (2000, 20000))
        assert large - small < 0.05, stage
