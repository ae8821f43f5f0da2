"""Chunks that the policy proposes at recorded frames."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from deas_vla.bundle import open_bundle
from deas_vla.data.episodes import load_episodes
from deas_vla.training.candidates import candidates_by_frame, sample_candidates
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.features import extract_features


def test_another_backbone_s_candidates_are_not_taken(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor another embodiment's: both decide what the head proposes."""
    vla, table = open_bundle(bundle).vla, load_episodes("test/tiny", tiny_dataset)
    accelerator = Accelerator()
    encodings = extract_features(
        vla, table, FeaturesConfig(), bundle / "cache", accelerator, keep_tokens=True
    )

    def caches() -> int:
        candidates_by_frame(
            vla,
            encodings,
            table,
            np.array([0]),
            tmp_path,
            candidates=1,
            horizon=8,
            seed=0,
            accelerator=accelerator,
        )
        return len(list(tmp_path.iterdir()))

    assert caches() == caches() == 1
    other = replace(vla.spec, embodiment="another")
    monkeypatch.setattr(type(vla), "spec", property(lambda _: other))
    assert caches() == 2
    monkeypatch.setattr(vla, "backbone_fingerprint", lambda: "another")
    assert caches() == 3


def test_candidates_depend_on_frame_and_seed_alone(bundle: Path, tiny_dataset: Path) -> None:
    policy, table = open_bundle(bundle), load_episodes("test/tiny", tiny_dataset)
    encodings = extract_features(
        policy.vla, table, FeaturesConfig(), bundle / "cache", Accelerator(), keep_tokens=True
    )

    def sample(frames: list[int], candidates: int, seed: int = 0) -> torch.Tensor:
        return sample_candidates(
            policy.vla,
            encodings,
            table,
            np.array(frames),
            candidates=candidates,
            horizon=8,
            seed=seed,
        )

    several = sample([3, 20, 40], 4)
    assert several.shape == (3, 4, 8, 7) and bool(several.isfinite().all())
    torch.testing.assert_close(sample([20], 2)[0], several[1, :2], atol=1e-5, rtol=0)
    assert not torch.allclose(sample([20], 2, seed=1)[0], several[1, :2], atol=1e-3)
