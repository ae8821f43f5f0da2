"""Small pictures for walls, floors, counters and cabinets, drawn from a pattern and its colours."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError

SIZE = 64  # pixels
Picture = NDArray[np.uint8]


def draw(name: str, pattern: str, colors: list[list[int]]) -> Picture:
    """A texture (64, 64, 3).

    Args:
        name: Seeds what is random in it.
        pattern: ``flat``, ``grain``, ``planks``, ``tiles``, ``bricks`` or ``speckle``.
        colors: One or two colours, 0 to 255.

    Raises:
        DeasError: An unknown pattern.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    low, high = np.array(colors[-1], float), np.array(colors[0], float)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if pattern == "flat":
        mix: NDArray[np.float64] = np.ones((SIZE, SIZE))
    elif pattern == "grain":
        waves = sum(np.sin(2 * np.pi * (k * x / SIZE + rng.random())) / k for k in (3, 5, 11))
        mix = 0.5 + 0.3 * np.asarray(waves)
    elif pattern == "planks":
        shade = rng.uniform(0.3, 1.0, 4)[y // 16]
        mix = np.where((y % 16 == 0) | ((x + 32 * (y // 16 % 2)) % SIZE == 0), 0.0, shade)
    elif pattern == "tiles":
        mix = np.where((x % 32 < 2) | (y % 32 < 2), 0.0, 1.0)
    elif pattern == "bricks":
        mix = np.where((y % 16 < 2) | ((x + 16 * (y // 16 % 2)) % 32 < 2), 0.0, 1.0)
    elif pattern == "speckle":
        mix = rng.random((SIZE // 2, SIZE // 2)).repeat(2, axis=0).repeat(2, axis=1)
    else:
        raise DeasError(f"texture '{name}': pattern '{pattern}' is unknown")
    picture = low + np.clip(mix, 0, 1)[..., None] * (high - low)
    return np.asarray(picture.round(), dtype=np.uint8)


def write_all(folder: Path, described: dict[str, Any]) -> None:
    """Draw every texture of ``textures.yaml`` as ``folder/<name>.png``."""
    from PIL import Image

    for name, about in described.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(name, about["pattern"], about["colors"])).save(path)
