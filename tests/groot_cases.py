"""The nano GR00T and what it looks at, for all tests of policies and guidance."""

from pathlib import Path

import torch
from torch import Tensor

from deas_vla.policies.config import VLAConfig
from deas_vla.policies.vla import VLA

ROOT = Path(__file__).parents[1]
NANO = ROOT / "deas_vla/assets/groot_nano"
CAMERAS = ["observation.images.agentview", "observation.images.eye_in_hand"]


def config(path: Path = NANO, **changes: object) -> VLAConfig:
    values = {
        "path": str(path),
        "embodiment": "robosuite_panda",
        "image_keys": CAMERAS,
        "state_dim": 9,
        "action_dim": 7,
    }
    return VLAConfig(**(values | changes))


def observation(batch: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    pictures = {
        key: torch.randint(0, 255, (batch, 3, 64, 64), dtype=torch.uint8, generator=generator)
        for key in CAMERAS
    }
    state = torch.randn(batch, 9, generator=generator) * 0.1
    return {**pictures, "observation.state": state, "task": ["lift the red cube"] * batch}


def noise(vla: VLA, batch: int, candidates: int, seed: int = 1) -> Tensor:
    """What candidates start from, (B, N, H', A')."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, candidates, *vla.spec.noise_shape, generator=generator)
