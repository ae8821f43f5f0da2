"""Frames into features through worker processes, and in which precision."""

import os
import shutil
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from groot_cases import config as vla_config
from recipe_cases import CAMERAS
from test_features import damage

from deas_vla.bundle import open_bundle
from deas_vla.data.episodes import load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.errors import DeasError
from deas_vla.evaluation.benches.synthetic import synthetic_table
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.config import load_vla
from deas_vla.policies.vla import VLA
from deas_vla.training import memory, pipeline
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.encodings import Encodings
from deas_vla.training.features import OpenEpisodes, extract_features
from deas_vla.training.memory import told_workers
from deas_vla.training.policy import chunk_starts


@pytest.fixture(scope="module")
def policy(bundle: Path) -> ValueGuidedPolicy:
    return open_bundle(bundle)


def extract(
    vla: VLA, root: Path, directory: Path, episodes: list[int], **settings: Any
) -> Encodings:
    table = load_episodes("test/tiny", root, episodes)
    config = FeaturesConfig(batch_size=12, **settings)
    return extract_features(vla, table, config, directory, Accelerator(), keep_tokens=True)


@pytest.mark.slow
def test_workers_make_the_same_features(
    policy: ValueGuidedPolicy, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Also where one of them meets a video that cannot be read, and they leave no random trace."""
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    damage(copy, 1)
    made = {}
    for workers in (0, 2):
        torch.manual_seed(3)
        place = tmp_path / f"cache{workers}"
        made[workers] = extract(
            policy.vla, copy, place, [0, 1, 2], workers=workers, skip_unreadable=True
        )
        assert made[workers].unreadable == (1,)
        assert torch.rand(1).item() == torch.rand(1, generator=_seeded(3)).item()
    np.testing.assert_array_equal(made[2].pooled, made[0].pooled)
    np.testing.assert_array_equal(made[2].tokens, made[0].tokens)
    with pytest.raises(DeasError, match=r"lacks frame \d+ of episode 1 ") as error:
        extract(policy.vla, copy, tmp_path / "refused", [0, 1], workers=2)
    assert "\n" not in str(error.value) and not list((tmp_path / "refused").glob("*/.*"))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_worker_that_the_system_kills_is_one_line(
    policy: ValueGuidedPolicy,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the kernel does when memory is full; finished episodes stay."""
    piece = pipeline.FrameInputs._piece

    def killed(frames: pipeline.FrameInputs, block: Any) -> pipeline.Piece:
        if block.episode == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece(frames, block)

    monkeypatch.setattr(pipeline.FrameInputs, "_piece", killed)
    # Which signal it was, torch knows only where the loader itself saw the process end.
    told = r"worker process \d+ of features.workers=1 was killed by the system \(.+\).*workers=0"
    with pytest.raises(DeasError, match=told) as error:
        extract(policy.vla, tiny_dataset, tmp_path, [0, 1], workers=1)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    left = {path.stem for path in tmp_path.glob("pooled-*/episode-*.npy")}
    assert left <= {"episode-000000"} and not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize("when", ["keep", "drop"])
def test_a_death_that_is_told_elsewhere_is_the_same_line(
    policy: ValueGuidedPolicy,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Torch's handler of SIGCHLD raises wherever the program is: in writing, or in clearing up."""
    told, done = False, getattr(OpenEpisodes, when)

    def signalled(shards: OpenEpisodes, episode: int) -> None:
        nonlocal told
        if not told:
            told = True
            done(shards, episode)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        done(shards, episode)

    def broken(frames: pipeline.FrameInputs, block: Any) -> pipeline.Piece:
        if when == "drop" and (block.episode, block.first) == (1, 12):
            raise ConnectionResetError("of a process that is gone")
        return piece(frames, block)

    piece = pipeline.FrameInputs._piece
    monkeypatch.setattr(OpenEpisodes, when, signalled)
    monkeypatch.setattr(pipeline.FrameInputs, "_piece", broken)
    with pytest.raises(DeasError, match=r"worker process 7 of features.workers=0 .*Killed"):
        extract(policy.vla, tiny_dataset, tmp_path, [0, 1], workers=0)
    assert told and not list(tmp_path.glob("*/.*"))


def test_a_connection_that_ends_waits_for_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, raising)
    try:
        with pytest.raises(DeasError, match="worker process 7"), told_workers("w", 1, "use none"):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            raise ConnectionResetError
        monkeypatch.setattr(memory, "_UNTIL_SIGCHLD", 0.01)
        with pytest.raises(ConnectionResetError), told_workers("w", 1, "use none"):
            raise ConnectionResetError("the Hub's")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_robot_sees_the_features_that_the_critic_was_trained_on(
    policy: ValueGuidedPolicy, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Bit by bit, rounded by one function; and a bfloat16 backbone's tokens likewise."""
    half = load_vla(vla_config(dtype="bfloat16", image_keys=list(CAMERAS)))
    table = load_episodes("test/tiny", tiny_dataset, [1])
    _, images = next(iter_episode_frames(tiny_dataset, table, CAMERAS))
    batch: dict[str, Any] = {
        key: torch.from_numpy(pictures[:12]).permute(0, 3, 1, 2) for key, pictures in images.items()
    }
    batch["observation.state"] = torch.from_numpy(table.state[:12])
    batch["task"] = [table.task(0)] * 12
    for name, vla in (("float", policy.vla), ("half", half)):
        made = extract(vla, tiny_dataset, tmp_path / name, [1])
        encoding = vla.encode(batch)
        guided = ValueGuidedPolicy(replace(policy.config, candidates=1), vla, None)
        seen = guided.feature(encoding)
        assert torch.equal(seen, torch.from_numpy(np.array(made.pooled[:12])).float())
        assert not torch.equal(seen, seen.bfloat16().float())
        cached = made.batch(np.arange(12), torch.device("cpu"))["tokens"]
        expected = encoding.tokens if name == "half" else encoding.tokens.half()
        assert torch.equal(cached, expected)


def test_starts_take_eight_bytes_a_frame() -> None:
    """Not an array of all frames for each episode, 14 GB of a million in episodes of 500."""
    table = synthetic_table(100_000, 100)
    tracemalloc.start()
    try:
        starts = chunk_starts(table, np.arange(0, 1000, 2), "all")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(starts, np.flatnonzero(table.episode_index % 2 == 0))
