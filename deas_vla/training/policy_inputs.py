"""Where the backbone's half of a policy's batch comes from: cached tokens, or pictures.

Both give the same frames for the same draws. Which picture a row is and how it is augmented
depends on the run's seed, the step and the row's place in the batch alone, so that neither the
number of worker processes or of training processes nor a resumed run changes them.
"""

import os
import random
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.image_transforms import ImageTransformsConfig, image_transforms
from deas_vla.data.single_frames import FrameReader
from deas_vla.errors import DeasError
from deas_vla.policies.vla import VLA, TrainingInputs
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.encodings import Encodings


@dataclass(frozen=True)
class Part:
    """The rows of one forward pass.

    Attributes:
        frames: int64 (B,), rows of the table.
        seeds: int64 (B,), of each row's augmentation; None for pictures as they are.
    """

    frames: NDArray[np.int64]
    seeds: Tensor | None


class PolicyInputs(Protocol):
    """What stands for the observations of a batch."""

    def stream(self, parts: Iterable[Part], device: torch.device) -> Generator[dict[str, Tensor]]:
        """For each part what `FlowMatching` reads of its observations, on ``device``.

        To be closed by who does not read it to its end: worker processes end with it. Where it
        holds ``readable``, bool (B,), false rows stand for nothing.
        """


class CachedTokens:
    """Tokens of the frozen backbone, computed once a frame.

    Args:
        encodings: With tokens.
    """

    def __init__(self, encodings: Encodings) -> None:
        self._encodings = encodings

    def stream(self, parts: Iterable[Part], device: torch.device) -> Generator[dict[str, Tensor]]:
        for part in parts:
            yield self._encodings.batch(part.frames, device)


class OnlinePictures:
    """Pictures, decoded, augmented and preprocessed by worker processes ahead of the training.

    Args:
        vla: The policy.
        table: The dataset.
        augmented: Whether pictures are augmented as the checkpoint says.
        transforms: LeRobot's, before that.
        workers: Processes; 0 does it all in this one, between two steps.
        skip_unreadable: Whether rows whose pictures cannot be decoded are marked, not raised.
    """

    def __init__(
        self,
        vla: VLA,
        table: EpisodeTable,
        *,
        augmented: bool = False,
        transforms: ImageTransformsConfig | None = None,
        workers: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        self._vla = vla
        self._table = table
        self._augmented = augmented
        self._transforms = transforms or ImageTransformsConfig()
        self._workers = workers
        self._skip = skip_unreadable

    def stream(self, parts: Iterable[Part], device: torch.device) -> Generator[dict[str, Tensor]]:
        """See `PolicyInputs`.

        Raises:
            DeasError: A picture that cannot be decoded.
        """
        from torch.utils.data import DataLoader

        rows: Any = _Rows(
            FrameReader(self._table, self._vla.spec.image_keys),
            self._table,
            self._vla.training_inputs(augmented=False),
            self._vla.training_inputs(self._augmented),
            self._transforms,
            self._skip,
        )
        loader: Any = DataLoader(
            rows,
            batch_sampler=map(_requests, parts),  # read as it is needed
            collate_fn=_as_it_is,
            num_workers=self._workers,
            worker_init_fn=_begin_worker if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,
            generator=torch.Generator(),  # of its own: the run's stays where it is
            pin_memory=device.type == "cuda",
        )
        with _quiet_tokenizers():
            batches = iter(loader)  # forks
        try:
            for batch in batches:
                if "error" in batch:
                    raise DeasError(batch["error"])
                yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        finally:  # whoever holds the iterator, or the error that ended it
            if self._workers:
                batches._shutdown_workers()


def online_pictures(config: FinetuneConfig, vla: VLA, table: EpisodeTable) -> OnlinePictures:
    """`OnlinePictures` of a run."""
    return OnlinePictures(
        vla,
        table,
        augmented=config.policy.augment == "checkpoint",
        transforms=config.dataset.image_transforms,
        workers=config.policy.workers,
        skip_unreadable=config.features.skip_unreadable,
    )


class _Rows:
    """A DataLoader's dataset: indexed by all (frame, seed) of a batch at once."""

    def __init__(
        self,
        reader: FrameReader,
        table: EpisodeTable,
        plain: TrainingInputs,
        augmented: TrainingInputs,
        transforms: ImageTransformsConfig,
        skip: bool,
    ) -> None:
        self._reader = reader
        self._table = table
        self._plain = plain
        self._augmented = augmented
        self._transform = image_transforms(transforms)
        self._skip = skip

    def __getitems__(self, rows: Sequence[tuple[int, int | None]]) -> dict[str, Any]:
        pictures, readable = [], []
        for frame, seed in rows:
            try:
                read = self._reader.read(frame)
            except DeasError as error:
                if not self._skip:
                    return {"error": str(error)}
                sizes = self._reader.picture_sizes()
                read = {key: np.zeros((*size, 3), np.uint8) for key, size in sizes.items()}
                readable.append(False)
            else:
                readable.append(True)
            pictures.append(self._augment(read, seed))
        observation: dict[str, Any] = {
            key: torch.stack([each[key] for each in pictures]) for key in pictures[0]
        }
        observation["task"] = [
            self._table.tasks[int(self._table.task_index[frame])] for frame, _ in rows
        ]
        inputs = self._plain if rows[0][1] is None else self._augmented
        return inputs(observation) | {"readable": torch.tensor(readable)}

    def _augment(self, read: dict[str, NDArray[np.uint8]], seed: int | None) -> dict[str, Tensor]:
        pictures = {key: torch.from_numpy(each).permute(2, 0, 1) for key, each in read.items()}
        if seed is None:
            return pictures
        with seeded(seed):
            if self._transform is not None:
                pictures = {key: self._transform(each / 255) for key, each in pictures.items()}
            return self._augmented.augment(pictures)


def _requests(part: Part) -> list[tuple[int, int | None]]:
    seeds = [None] * len(part.frames) if part.seeds is None else part.seeds.tolist()
    return list(zip(part.frames.tolist(), seeds, strict=True))


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it Python's and torch's CPU generators start from ``seed``; they come back after."""
    state = random.getstate()
    with torch.random.fork_rng([]):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def _begin_worker(_: int) -> None:
    # What a scheduler or a keyboard tells the whole group is the main process' to answer: it saves
    # what there is, and ends its workers. They notice by themselves where it was killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if "cv2" in sys.modules:  # LeRobot resizes by it; its threads did not survive the fork
        sys.modules["cv2"].setNumThreads(0)


@contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """Forks within it are no news to the tokenizers library, which would remark on each."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
