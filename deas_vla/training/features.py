"""The ``features`` stage: every frame through the frozen backbone once."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.feature_cache import (
    FeatureCache,
    Fingerprint,
    fingerprint_key,
    joining_bytes,
    size,
)
from deas_vla.data.pooling import feature_dim
from deas_vla.data.unchanged import Unchanged
from deas_vla.errors import DeasError
from deas_vla.guidance.features import pool_encoding
from deas_vla.guidance.guided import STATS_FILE
from deas_vla.policies.vla import VLA
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.encodings import Encodings, join_encodings
from deas_vla.training.locking import sole_extractor
from deas_vla.training.memory import told_memory, told_workers
from deas_vla.training.pipeline import encoded_episodes, worker_count


@dataclass(frozen=True)
class Source:
    """One dataset on its way through the backbone.

    Attributes:
        table: Its episodes.
        token_mask: bool (K, L) per instruction, false on padding.
        image_mask: bool (K, L) per instruction.
        caches: ``pooled``, and ``tokens`` where they are kept.
        missing: Episodes that a cache lacks, the same list on every process.
    """

    table: EpisodeTable
    token_mask: Tensor
    image_mask: Tensor
    caches: dict[str, FeatureCache]
    missing: list[int]


def cache_of_run(bundle: Path, manifest: Mapping[str, Any]) -> Path:
    """Where the run that wrote ``bundle`` keeps features: as it was told to, else in the bundle.

    A bundle that was moved to another machine has no such directory; what is missing is then
    computed into its own.
    """
    told = manifest["config"].get("features", {}).get("cache")
    return Path(told) if told and Path(told).is_dir() else bundle / "cache"


def extract_features(
    vla: VLA,
    table: EpisodeTable,
    config: FeaturesConfig,
    directory: Path,
    accelerator: Accelerator,
    *,
    keep_tokens: bool,
) -> Encodings:
    """Compute what the cache lacks, and open it.

    Args:
        vla: Its backbone is frozen, so a frame's tokens are a constant.
        table: The dataset. Each part of a joined one has a cache of its own, so that a mixture
            with one more dataset computes that one alone.
        config: Pooling and batch size.
        directory: Parent of the caches, which are named by their fingerprint.
        accelerator: Missing episodes are shared out over its processes.
        keep_tokens: Cache the tokens themselves too: training the action head reads them.

    Raises:
        DeasError: A disk that is too small, a dataset that changes, or a video that cannot be read
            without ``config.skip_unreadable``.
    """
    with sole_extractor(directory, accelerator):
        sources = [
            _prepare(vla, part, config, directory, accelerator, keep_tokens)
            for part in table.sources
        ]
        check_room(sources, vla, config, directory)
        encodings = [_extract(vla, source, config, accelerator) for source in sources]
    return join_encodings(encodings, table.parts, table) if table.parts else encodings[0]


def _prepare(
    vla: VLA,
    table: EpisodeTable,
    config: FeaturesConfig,
    directory: Path,
    accelerator: Accelerator,
    keep_tokens: bool,
) -> Source:
    token_mask, image_mask = task_masks(vla, table.tasks)
    dims = {"pooled": feature_dim(config.pooling, len(vla.spec.image_keys), vla.spec.token_dim)}
    if keep_tokens:
        dims["tokens"] = token_mask.shape[1] * vla.spec.token_dim
    with accelerator.main_process_first():
        keys = cache_keys(vla, table, config)
        caches = {
            name: FeatureCache(
                directory / f"{name}-{fingerprint_key(keys[name])[:12]}",
                keys[name],
                table.episode_lengths,
                dim,
                token_type(vla) if name == "tokens" else "float16",
            )
            for name, dim in dims.items()
        }
    missing = work_list(accelerator, list(caches.values()))
    for name, cache in caches.items():
        accelerator.print(f"features: {name}, {cache.disk_space(missing)}")
    accelerator.print(
        f"features: {len(missing)} of {table.num_episodes} episodes to compute, {table.repo_id}"
    )
    return Source(table, token_mask, image_mask, caches, missing)


def _extract(
    vla: VLA, source: Source, config: FeaturesConfig, accelerator: Accelerator
) -> Encodings:
    table, caches = source.table, source.caches
    # Contiguous shares: a reader that has to skip episodes seeks.
    shares = np.array_split(np.asarray(source.missing, np.int64), accelerator.num_processes)
    mine = shares[accelerator.process_index].tolist()
    if mine:
        _fill(vla, source, mine, config, accelerator)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        arrays = {name: cache.assemble() for name, cache in caches.items()}
    unreadable = caches["pooled"].unreadable
    _tell_unreadable(source, unreadable, config, accelerator)
    return Encodings(
        arrays["pooled"],
        arrays.get("tokens"),
        source.token_mask,
        source.image_mask,
        table.task_index,
        tuple(unreadable),
    )


def _fill(
    vla: VLA,
    source: Source,
    episodes: list[int],
    config: FeaturesConfig,
    accelerator: Accelerator,
) -> None:
    """Compute some episodes; each piece leaves the device and the memory as soon as it is there."""
    caches, length, unchanged = source.caches, source.token_mask.shape[1], Unchanged(source.table)
    bar = tqdm(total=len(episodes), desc="features", disable=not accelerator.is_local_main_process)
    workers = min(worker_count(config.workers, accelerator), len(episodes))
    pieces = encoded_episodes(vla, source.table, episodes, config, workers)
    memory = told_memory(
        f"a pass of features.batch_size={config.batch_size} frames",
        f"use --features.batch_size={max(1, config.batch_size // 2)}",
    )
    fewer = f"use --features.workers={workers // 2} or a smaller batch"
    processes = told_workers("features.workers", workers, fewer)
    with processes, bar, memory, OpenEpisodes(caches) as shards, closing(pieces):
        for piece, encoding in pieces:
            if encoding is None:
                shards.drop(piece.episode)
                unchanged.check()
                for cache in caches.values():
                    cache.write_unreadable(piece.episode, piece.error)
                bar.update()
                continue
            write = shards.of(piece.episode)
            write["pooled"](stored(pool_encoding(vla, encoding, config.pooling), "float16"))
            if "tokens" in caches:
                short = length - encoding.tokens.shape[1]
                padded = pad(encoding.tokens, (0, 0, short, 0)).flatten(1)
                write["tokens"](stored(padded, token_type(vla)))
            if piece.last:
                unchanged.check()
                shards.keep(piece.episode)
                bar.update()


class OpenEpisodes:
    """Shards under way, a set for each episode that some worker is in; a context manager.

    What is not kept by the end leaves nothing on the disk.
    """

    def __init__(self, caches: dict[str, FeatureCache]) -> None:
        self._caches = caches
        self._stacks: dict[int, ExitStack] = {}
        self._writers: dict[int, dict[str, Callable[[NDArray[Any]], None]]] = {}

    def __enter__(self) -> "OpenEpisodes":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as rest:  # an error at one of them leaves no other behind
            for episode in self._stacks:
                rest.callback(self.drop, episode)

    def of(self, episode: int) -> dict[str, Callable[[NDArray[Any]], None]]:
        """What takes the episode's next rows, by the name of the cache."""
        if episode not in self._writers:
            stack = self._stacks[episode] = ExitStack()
            self._writers[episode] = {
                name: stack.enter_context(cache.writing(episode))
                for name, cache in self._caches.items()
            }
        return self._writers[episode]

    def keep(self, episode: int) -> None:
        """All rows of the episode are there."""
        self._writers.pop(episode)
        self._stacks.pop(episode).close()

    def drop(self, episode: int) -> None:
        """Forget what is there of the episode."""
        self._writers.pop(episode, None)
        gone = DeasError("dropped")
        if episode in self._stacks:
            self._stacks.pop(episode).__exit__(DeasError, gone, None)


def _tell_unreadable(
    source: Source, unreadable: dict[int, str], config: FeaturesConfig, accelerator: Accelerator
) -> None:
    """List what is left out; refuse it where it was not asked for."""
    if not unreadable:
        return
    ids = source.table.episode_ids
    counted = f"{len(unreadable)} of {len(ids)} episodes of dataset {source.table.root}"
    if not config.skip_unreadable:
        places = " and ".join(str(cache.directory) for cache in source.caches.values())
        raise DeasError(
            f"the videos of {counted} could not be read (first: episode "
            f"{ids[next(iter(unreadable))]}): leave them out with --features.skip_unreadable=true, "
            f"or restore the videos and remove {places}"
        )
    accelerator.print(f"features: {counted} are left out, their videos cannot be read:")
    for row, reason in unreadable.items():
        accelerator.print(f"  episode {ids[row]}: {reason}")


def check_room(
    sources: Sequence[Source], vla: VLA, config: FeaturesConfig, directory: Path
) -> None:
    """Compare what all caches still need with what the disk has, before any work.

    Raises:
        DeasError: Not enough; says how much of what, and which flag fits.
    """
    need: dict[str, int] = {}
    for source in sources:
        for name, cache in source.caches.items():
            need[name] = need.get(name, 0) + cache.required_bytes(source.missing)
    total, free = sum(need.values()), shutil.disk_usage(directory).free
    if total <= free:
        return
    frames = sum(source.table.num_frames for source in sources)
    smaller = {"--policy.tokens=online (pooled features alone)": need["pooled"]}
    if config.pooling.kind != "mean":
        row = 2 * vla.spec.token_dim
        longest = max(int(source.table.episode_lengths.max()) for source in sources)
        small = frames * row + joining_bytes(frames * row, longest * row)
        smaller["--policy.tokens=online --features.pooling.kind=mean"] = small
    if "tokens" not in need:
        smaller = {k.removeprefix("--policy.tokens=online "): v for k, v in smaller.items()}
        smaller.pop("(pooled features alone)", None)
    fitting = [
        f"{flag}, which needs {size(count)}" for flag, count in smaller.items() if count <= free
    ]
    parts = ", ".join(f"{name} {size(count)}" for name, count in need.items())
    raise DeasError(
        f"disk too small for features of {frames} frames: {size(total)} needed at {directory} "
        f"while they are joined ({parts}), {size(free)} free: give --features.cache=DIR on a disk "
        "with room" + (f", or use {fitting[0]}" if fitting else "; no setting fits this one")
    )


def work_list(accelerator: Accelerator, caches: Sequence[FeatureCache]) -> list[int]:
    """Episodes that any of the caches lacks, the same list on every process.

    Listed once and told to all: looking takes seconds (checksums), and a process that looked while
    another one was already writing would take the wrong share.
    """
    missing = None
    if accelerator.is_main_process:
        missing = sorted({e for cache in caches for e in cache.missing_episodes()})
    told = broadcast_object_list([missing])[0]
    assert told is not None
    return list(told)


def stored(features: Tensor, dtype: str) -> NDArray[Any]:
    """Numbers (n, F) off the device at once, as the cache keeps them; infinite where they overflow.

    bfloat16, which numpy does not know, comes as its bits.
    """
    if dtype == "bfloat16":
        return features.bfloat16().contiguous().view(torch.uint16).cpu().numpy()
    return features.half().cpu().numpy()


def token_type(vla: VLA) -> str:
    """How tokens are kept: those of a bfloat16 backbone as they are, others as float16."""
    return "bfloat16" if vla.dtype == torch.bfloat16 else "float16"


def task_masks(vla: VLA, tasks: tuple[str, ...], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Which tokens are valid and which are of a picture, bool (K, L) each, for K instructions.

    A dataset may have thousands of instructions: they are encoded in parts, shorter ones padded on
    the left as in one batch.
    """
    parts = [_masks(vla, tasks[at : at + batch_size]) for at in range(0, len(tasks), batch_size)]
    length = max(valid.shape[1] for valid, _ in parts)
    valid, image = (torch.cat([_padded(masks[k], length) for masks in parts]) for k in range(2))
    return valid, image


def _padded(mask: Tensor, length: int) -> Tensor:
    """A mask (K, L) with false on the left up to ``length``."""
    return pad(mask, (length - mask.shape[1], 0))


def _masks(vla: VLA, tasks: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    height, width = vla.image_size
    batch: dict[str, Any] = {
        key: torch.zeros(len(tasks), 3, height, width, dtype=torch.uint8)
        for key in vla.spec.image_keys
    }
    batch["observation.state"] = torch.zeros(len(tasks), vla.spec.state_dim)
    batch["task"] = list(tasks)
    encoding = vla.encode(batch)
    return encoding.attention_mask.cpu(), encoding.image_mask.cpu()


def cache_keys(vla: VLA, table: EpisodeTable, config: FeaturesConfig) -> dict[str, Fingerprint]:
    """Everything that the cached numbers depend on, of ``pooled`` and of ``tokens``."""
    shared: dict[str, Any] = {
        "backbone": vla.backbone_fingerprint(),
        "cameras": ",".join(vla.spec.image_keys),
        "dataset": table.fingerprint,
    }
    pooling = {f"pooling.{field}": value for field, value in asdict(config.pooling).items()}
    half = {} if token_type(vla) == "float16" else {"dtype": token_type(vla)}
    return {"pooled": shared | pooling, "tokens": shared | half}


def dataset_statistics(
    table: EpisodeTable, episodes: NDArray[np.int64]
) -> dict[str, dict[str, list[float]]]:
    """LeRobot's per-key statistics of state and action over the training episodes."""
    frames = table.frames_of(episodes)
    columns = {"observation.state": table.state, "action": table.action}
    return {key: column_statistics(values[frames]) for key, values in columns.items()}


def column_statistics(values: NDArray[np.floating]) -> dict[str, list[float]]:
    """What GR00T and LeRobot normalise by, of each of D columns of (N, D), in float64."""
    values = values.astype(np.float64)
    rows = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "q01": np.quantile(values, 0.01, axis=0),
        "q99": np.quantile(values, 0.99, axis=0),
    }
    return {name: row.tolist() for name, row in rows.items()}


def check_statistics(policy: Path, statistics: dict[str, dict[str, list[float]]]) -> None:
    """DeasError where the adapter in ``policy`` was trained with statistics of other episodes."""
    file = policy / STATS_FILE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != statistics:
        raise DeasError(
            f"policy {policy} was trained with the statistics of another dataset or split "
            f"({STATS_FILE}): give its --dataset.root, --dataset.holdout and --seed, or another "
            "--output_dir"
        )
