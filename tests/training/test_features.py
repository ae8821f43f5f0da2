"""The features stage: instructions, videos that cannot be read, data that change, small disks."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from recipe_cases import CAMERAS, recipe

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.data.episodes import load_episodes
from deas_vla.data.pooling import PoolingConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.episodes import fitting_critic
from deas_vla.policies.groot import GrootVLA
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.features import cache_of_run, extract_features, task_masks


def test_masks_of_many_instructions_are_those_of_one_batch(bundle: Path) -> None:
    """Thousands of instructions are encoded in parts, of different lengths here."""
    vla = open_bundle(bundle).vla
    tasks = ("lift", "lift the red cube and put it down again", "lift the cube", "lift it")
    whole, parts = task_masks(vla, tasks), task_masks(vla, tasks, batch_size=1)
    for ours, theirs in zip(parts, whole, strict=True):
        assert torch.equal(ours, theirs) and ours.shape[0] == len(tasks)
    assert len({int(row.sum()) for row in whole[0]}) > 1  # some are padded


def test_features_are_looked_for_where_the_run_put_them(tmp_path: Path) -> None:
    told = {"config": {"features": {"cache": str(tmp_path / "elsewhere")}}}
    # A bundle on another machine: the directory is not there.
    assert cache_of_run(tmp_path / "bundle", told) == tmp_path / "bundle" / "cache"
    (tmp_path / "elsewhere").mkdir()
    assert cache_of_run(tmp_path / "bundle", told) == tmp_path / "elsewhere"
    told["config"]["features"].pop("cache")
    assert cache_of_run(tmp_path / "bundle", told) == tmp_path / "bundle" / "cache"


def damage(root: Path, episode: int) -> None:
    """Zeros over some frames of an episode in one camera's video."""
    import av

    (video,) = (root / "videos" / CAMERAS[0]).glob("*/*.mp4")
    with av.open(str(video)) as container:
        at = [packet.pos for packet in container.demux(video=0) if packet.size]
    first = int(load_episodes("test/tiny", root).episode_start[episode]) + 2
    content = bytearray(video.read_bytes())
    content[at[first] : at[first + 3]] = bytes(at[first + 3] - at[first])
    video.write_bytes(content)


def test_an_unreadable_video_is_left_out_only_when_asked_for(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    damage(copy, 1)
    with pytest.raises(DeasError, match=r"lacks frame \d+ of episode 1 .*--features.skip_unread"):
        recipe(copy, tmp_path / "run")
    stages = ["--stages=[features,critic]", "--dataset.holdout=0"]
    output = recipe(
        copy, tmp_path / "run", "--features.skip_unreadable=true", "--resume=false", *stages
    )
    said = capsys.readouterr().out
    assert "1 of 6 episodes of dataset" in said and "  episode 1: video" in said
    assert read_manifest(output)["data"]["unreadable_episodes"] == [1]
    # Its zeros are in no statistic of the critic's, and an evaluation knows of it.
    policy, manifest = open_bundle(output), read_manifest(output)
    table = load_episodes("test/tiny", copy)
    fitting_critic(policy, manifest, table, output)
    pooled = np.load(next((output / "cache").glob("pooled-*/features.npy")))
    kept = np.delete(pooled, np.r_[table.frames(1)], axis=0).astype(np.float64)
    assert not pooled[table.frames(1)].any()
    mean = policy.critic.normalizer.feature_mean.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(mean, kept.mean(0), atol=1e-3)
    with pytest.raises(DeasError, match=r"could not be read \(first: episode 1\): leave them out"):
        recipe(copy, tmp_path / "other", f"--features.cache={output / 'cache'}", *stages)


def test_a_dataset_that_changes_under_the_extraction_is_refused(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    table, vla = load_episodes("test/tiny", copy), open_bundle(bundle).vla
    encode, calls = GrootVLA.encode_inputs, []
    info = copy / "meta/info.json"

    def changing(model: GrootVLA, inputs: Any, state: Any) -> Any:
        calls.append(len(state))
        if len(calls) == 3:  # masks, the first episode, the second
            info.touch()  # the same content: goes on
        if len(calls) == 4:
            info.write_text(json.dumps(json.loads(info.read_text()) | {"splits": {}}))
        return encode(model, inputs, state)

    monkeypatch.setattr(GrootVLA, "encode_inputs", changing)

    def extract() -> Any:
        directory = tmp_path / "cache"
        return extract_features(
            vla, table, FeaturesConfig(), directory, Accelerator(), keep_tokens=False
        )

    with pytest.raises(DeasError, match=r"changes while its features .*info\.json is not what"):
        extract()
    kept = sorted(path.name for path in (tmp_path / "cache").glob("*/episode-*.npy"))
    assert kept == ["episode-000000.npy", "episode-000001.npy"]
    with pytest.raises(DeasError, match="changes while its features"):
        extract()  # the table is that of before the change


def test_of_two_runs_at_one_cache_the_second_waits_and_computes_nothing(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vla, encode, waits = open_bundle(bundle).vla, GrootVLA.encode_inputs, threading.Event()
    calls: dict[int, int] = {}

    def extract(keep_tokens: bool = False) -> Any:
        table = load_episodes("test/tiny", tiny_dataset)
        directory, accelerator = tmp_path / "cache", Accelerator()
        return extract_features(
            vla, table, FeaturesConfig(), directory, accelerator, keep_tokens=keep_tokens
        )

    def counted(model: GrootVLA, inputs: Any, state: Any) -> Any:
        mine = threading.get_ident()
        calls[mine] = calls.get(mine, 0) + 1
        if mine == first and calls[mine] == 3:  # masks, an episode, and amidst the second one
            results.append(pool.submit(extract))
            assert waits.wait(60)
        return encode(model, inputs, state)

    first, results = threading.get_ident(), []
    clock = SimpleNamespace(sleep=lambda seconds: waits.set() or time.sleep(seconds))
    monkeypatch.setattr("deas_vla.training.locking.time", clock)
    monkeypatch.setattr(GrootVLA, "encode_inputs", counted)
    with ThreadPoolExecutor(1) as pool:
        whole = extract()
        (found,) = (result.result() for result in results)
    np.testing.assert_array_equal(found.pooled, whole.pooled)
    assert calls.pop(first) == 7 and list(calls.values()) == [1]  # the second: masks alone


def test_a_finished_cache_is_read_where_nothing_can_be_written(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vla, table = open_bundle(bundle).vla, load_episodes("test/tiny", tiny_dataset)

    def extract() -> Any:
        directory = tmp_path / "cache"
        return extract_features(
            vla, table, FeaturesConfig(), directory, Accelerator(), keep_tokens=False
        )

    pooled, opened = np.array(extract().pooled), Path.open

    def read_only(path: Path, mode: str = "r", **more: Any) -> Any:
        if mode[0] != "r":
            raise OSError(30, "Read-only file system")
        return opened(path, mode, **more)

    monkeypatch.setattr(Path, "open", read_only)
    np.testing.assert_array_equal(extract().pooled, pooled)


@pytest.mark.parametrize(
    ("kind", "free", "message"),
    [
        (
            "mean",
            200_000,
            r"or use --policy.tokens=online \(pooled features alone\), which needs 0.06 MB",
        ),
        (
            "grid",
            200_000,
            "or use --policy.tokens=online --features.pooling.kind=mean, which needs 0.06",
        ),
        ("mean", 1_000, "; no setting fits this one"),
    ],
)
def test_a_small_disk_is_told_what_fits(
    bundle: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    free: int,
    message: str,
) -> None:
    table, vla = load_episodes("test/tiny", tiny_dataset), open_bundle(bundle).vla
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    config = FeaturesConfig(PoolingConfig(kind))
    with pytest.raises(DeasError, match=message) as error:
        extract_features(vla, table, config, tmp_path, Accelerator(), keep_tokens=True)
    text = str(error.value)
    assert "tokens " in text and "pooled " in text and "--features.cache=DIR" in text
    assert "\n" not in text
