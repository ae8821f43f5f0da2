"""Frames on their way to the backbone: decoded and preprocessed ahead, in worker processes."""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import FrameBlock, iter_frame_blocks
from deas_vla.errors import DeasError
from deas_vla.policies.vla import VLA, Encoding
from deas_vla.training.config import FeaturesConfig

_MOST_WORKERS = 8
_AHEAD = 2  # batches of a worker that wait for the device


@dataclass(frozen=True)
class Piece:
    """Some frames of an episode, or that there is none to be had.

    Attributes:
        episode: Its row in the table.
        last: Whether the episode ends with it.
        inputs: What `VLA.preprocess` makes of the observations; the observations themselves where
            the device does that.
        state: float32 (n, S), environment units.
        error: Why the episode cannot be read, else empty.
        ends: Whether that ends the extraction.
    """

    episode: int
    last: bool = False
    inputs: dict[str, Any] | None = None
    state: Tensor | None = None
    error: str = ""
    ends: bool = False


class FrameInputs(IterableDataset[Piece]):
    """Pieces of episodes in order; each worker process has a contiguous share, so that it seeks
    once and reads on.

    Args:
        table: The dataset.
        image_keys: Cameras.
        episodes: Rows.
        size: Frames of a piece.
        prepare: `VLA.preprocess` or its like; None leaves observations as they are.
        skip: Whether an episode that cannot be read is left out.
    """

    def __init__(
        self,
        table: EpisodeTable,
        image_keys: Sequence[str],
        episodes: Sequence[int],
        size: int,
        prepare: Callable[[dict[str, Any]], dict[str, Any]] | None,
        skip: bool,
    ) -> None:
        self._table, self._keys, self._episodes = table, image_keys, episodes
        self._size, self._prepare, self._skip = size, prepare, skip

    def __iter__(self) -> Iterator[Piece]:
        worker, mine = get_worker_info(), np.asarray(self._episodes, np.int64)
        if worker is not None:
            mine = np.array_split(mine, worker.num_workers)[worker.id]
        failed: list[Piece] = []

        def skip(row: int, error: DeasError) -> None:
            failed.append(Piece(row, error=str(error)))

        blocks = iter_frame_blocks(
            self._table.root,
            self._table,
            self._keys,
            self._size,
            mine.tolist(),
            skip=skip if self._skip else None,
        )
        try:
            for block in blocks:
                yield from _taken(failed)
                yield self._piece(block)
        except DeasError as error:  # a process cannot hand it over but as text
            yield Piece(-1, error=str(error), ends=True)
        yield from _taken(failed)

    def _piece(self, block: FrameBlock) -> Piece:
        table, row = self._table, block.episode
        count = len(next(iter(block.images.values())))
        at = int(table.episode_start[row]) + block.first
        observation: dict[str, Any] = {
            name: torch.from_numpy(pictures).permute(0, 3, 1, 2)
            for name, pictures in block.images.items()
        }
        state = torch.from_numpy(table.state[at : at + count])
        observation["observation.state"] = state
        observation["task"] = [table.task(row)] * count
        inputs = self._prepare(observation) if self._prepare else observation
        return Piece(row, at + count == int(table.episode_end[row]), inputs, state)


def _taken(pieces: list[Piece]) -> Iterator[Piece]:
    while pieces:
        yield pieces.pop(0)


def encoded_episodes(
    vla: VLA,
    table: EpisodeTable,
    episodes: Sequence[int],
    config: FeaturesConfig,
    workers: int,
) -> Generator[tuple[Piece, Encoding | None]]:
    """What the backbone makes of episodes, in pieces of ``config.batch_size`` frames.

    With ``workers`` processes ahead of it, pieces of different episodes alternate; those of one
    episode come in order.

    Yields:
        A piece and its encoding, on the device; None where the episode cannot be read.

    Raises:
        DeasError: A video that cannot be read without ``config.skip_unreadable``.
    """
    prepare = vla.host_preprocessor() if workers else vla.preprocess
    frames = FrameInputs(
        table, vla.spec.image_keys, episodes, config.batch_size, prepare, config.skip_unreadable
    )
    loader: DataLoader[Piece] = DataLoader(
        frames,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_alone,
        generator=torch.Generator(),  # the run's own random stream stays where it is
    )
    for piece in loader:
        if piece.ends:
            raise DeasError(piece.error)
        if piece.inputs is None or piece.state is None:
            yield piece, None
        elif prepare is None:
            yield piece, vla.encode(piece.inputs)
        else:
            yield piece, vla.encode_inputs(piece.inputs, piece.state)


def worker_count(asked: int | None, accelerator: Accelerator) -> int:
    """How many processes read ahead: as asked, else none on a CPU, which they would take from the
    backbone, and on a GPU one for each core that this process of the run has to spare."""
    if asked is not None:
        return asked
    if accelerator.device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return min(_MOST_WORKERS, max(1, (cores or 1) // beside - 1))


def _alone(_: int) -> None:
    """Libraries keep to the worker's one thread: their parent's did not come along."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


def _as_it_is(piece: Any) -> Any:
    return piece
