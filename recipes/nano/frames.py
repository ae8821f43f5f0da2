"""What the nano GR00T is pretrained on: frames of one robot, and questions about them."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from robots import HORIZON

from deas_vla.errors import DeasError


@dataclass
class Frames:
    """What one process has seen of one robot; parts of several are joined by `load`.

    Attributes:
        images: uint8 (n, C, H, W, 3), cameras in the robot's order.
        state: float32 (n, S).
        actions: float32 (n, `HORIZON`, A) from this step on, zeros behind the episode's end.
        valid: bool (n, `HORIZON`), false behind it.
        imitate: bool (n,), whether the actions are worth imitating.
        text: (n,) instruction of the frame's episode.
        hand: float32 (n, 3) where the hand is, metres in the robot's frame.
        episode: int64 (n,) seed of its episode.
        pair_frame: int64 (m,) frame of each question "where is it?".
        pair_text: (m,) instruction that names what is asked for.
        pair_target: float32 (m, 3) where it is, metres in the robot's frame.
    """

    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    valid: NDArray[np.bool_]
    imitate: NDArray[np.bool_]
    text: NDArray[np.str_]
    hand: NDArray[np.float32]
    episode: NDArray[np.int64]
    pair_frame: NDArray[np.int64]
    pair_text: NDArray[np.str_]
    pair_target: NDArray[np.float32]

    @classmethod
    def of(cls, rows: list[dict[str, object]], pairs: list[tuple[int, str, object]]) -> "Frames":
        """From one dictionary per frame and (frame, text, target) per pair."""
        columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        frame, text, target = zip(*pairs, strict=True)
        return cls(
            **columns,
            pair_frame=np.array(frame),
            pair_text=np.array(text),
            pair_target=np.array(target, dtype=np.float32),
        )

    def save(self, folder: Path, part: int) -> None:
        np.savez(folder / f"part_{part}.npz", **vars(self))

    @classmethod
    def load(cls, folder: Path) -> "Frames":
        """All parts in ``folder``, joined.

        Raises:
            DeasError: There are none.
        """
        parts = [dict(np.load(file)) for file in sorted(folder.glob("part_*.npz"))]
        if not parts:
            raise DeasError(f"no part_*.npz in {folder}: run recipes/nano/make_*_data.py first")
        first = 0
        for part in parts:
            part["pair_frame"] = part["pair_frame"] + first
            first += len(part["state"])
        return cls(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def chunk_at(actions: NDArray[np.float32], step: int) -> dict[str, NDArray]:
    """``actions`` (`HORIZON`, A) and ``valid`` from one step of an episode on."""
    chunk = actions[step : step + HORIZON]
    padded = np.zeros((HORIZON, actions.shape[1]), np.float32)
    padded[: len(chunk)] = chunk
    return {"actions": padded, "valid": np.arange(HORIZON) < len(chunk)}


def in_processes(simulate: Callable[[Any, int], None], config: Any) -> None:
    """Run ``simulate(config, worker)`` for each of ``config.workers`` processes; the parts that
    they save in ``config.output`` are then all that are there.

    Raises:
        DeasError: One of them failed.
    """
    for part in config.output.glob("part_*.npz"):  # of an earlier run with more workers, perhaps
        part.unlink()
    spawn = multiprocessing.get_context("spawn")  # a forked process has its parent's GL context
    workers = [spawn.Process(target=simulate, args=(config, k)) for k in range(config.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise DeasError("a simulator process failed: see its error above")
