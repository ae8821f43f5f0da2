"""Time critic training: cached features, the backbone in the loop, dataset sizes, memory.

python eval/bench_critic.py --output_dir outputs/bench_critic

- ``updates``: the recipe's update on cached features, against the same update with the frozen
  backbone run on the pictures of s and s' every time, and against a plain PyTorch loop. Pictures
  are decoded and preprocessed beforehand, which a real loop would have to do as well.
- ``scaling``: an update and its index draw from 10^4 to 10^7 transitions of one synthetic file.
- ``memory``: host memory of critic training on mapped features, in a process of its own, and what
  reading ahead saves where the file is not in the page cache.

On a GPU, ``--backbone=full --critic.compile=true --dtype=bfloat16`` builds GR00T N1.7's own
backbone with random weights.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from deas_vla.cli import make_output_dir, run
from deas_vla.critic.base import Critic
from deas_vla.critic.batch import ChunkBatch
from deas_vla.critic.deas import cross_entropy, expectile_weight
from deas_vla.critic.registry import make_critic
from deas_vla.critic.support import ValueSupport
from deas_vla.data.dataset import TransitionDataset
from deas_vla.data.episodes import EpisodeTable, load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.data.pooling import PoolingConfig, pool_tokens
from deas_vla.errors import DeasError
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page
from deas_vla.evaluation.timing import Arm, interleave, text_lines, timing_cells, timing_row
from deas_vla.files import write_json
from deas_vla.policies.config import VLAConfig, load_vla
from deas_vla.provenance import provenance
from deas_vla.training.config import CriticTrainingConfig, FeaturesConfig
from deas_vla.training.critic_data import critic_config, make_transitions, new_critic
from deas_vla.training.features import dataset_statistics, extract_features
from deas_vla.training.loop import index_batches
from deas_vla.training.update import CriticUpdate

PARTS = ("updates", "scaling", "memory")
CACHED, PLAIN, IN_LOOP = "cached features", "plain PyTorch loop", "backbone in the loop"
DRAW, AHEAD, ONE_BY_ONE = (
    "index draw",
    "wait for a mapped batch, read ahead",
    "wait, not read ahead",
)
EPISODE = 500  # frames of a synthetic episode


@dataclass
class SourceConfig:
    """A LeRobotDataset v3 with videos, and how many of its episodes to use."""

    repo_id: str = "deas_vla/lift_demos"
    root: str | None = "deas_vla/assets/lift_demos"
    episodes: int = 30


@dataclass
class VLASource:
    """The checkpoint behind ``--backbone=nano``."""

    path: str = "deas_vla/assets/groot_nano"
    embodiment: str = "robosuite_panda"


@dataclass
class ScalingConfig:
    """Synthetic datasets: the first rows of one file.

    Attributes:
        transitions: Sizes, ascending.
        feature_dim: Width F; the file takes 2 F bytes a transition.
    """

    transitions: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000, 10_000_000])
    feature_dim: int = 256


@dataclass
class MemoryConfig:
    """The mapped dataset whose training is measured."""

    frames: int = 1_000_000
    feature_dim: int = 2048
    updates: int = 300


@dataclass
class BenchConfig:
    """What to time.

    Attributes:
        parts: Some of updates, scaling and memory.
        backbone: ``nano``, the checkpoint of ``vla``; or ``full``, GR00T N1.7's own size with
            random weights.
        dtype: Of the backbone's weights.
        micro_batch: Frames per forward pass of the backbone.
        critic: Network sizes, batch and algorithm; as in the recipe.
        rounds: Timed rounds of a comparison.
        updates_per_round: Of the fast arms, in every round.
        scratch: Directory for synthetic features; a temporary one when left out.
        output_dir: Where results go.
    """

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    backbone: str = "nano"
    dtype: str = "float32"
    micro_batch: int = 64
    dataset: SourceConfig = field(default_factory=SourceConfig)
    vla: VLASource = field(default_factory=VLASource)
    critic: CriticTrainingConfig = field(default_factory=CriticTrainingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    rounds: int = 20
    updates_per_round: int = 5
    scratch: Path | None = None
    seed: int = 0
    output_dir: Path = Path("outputs/bench_critic")

    def check(self) -> None:
        """DeasError for a value that nothing could be timed with."""
        for part in self.parts:
            if part not in PARTS:
                raise DeasError(f"part '{part}' is unknown: --parts takes some of {list(PARTS)}")
        if self.backbone not in ("nano", "full"):
            raise DeasError(f"backbone '{self.backbone}' is unknown: use nano or full")
        for name in ("rounds", "updates_per_round", "micro_batch"):
            if getattr(self, name) < 1:
                raise DeasError(f"{name} {getattr(self, name)}: use 1 or more")
        if min(self.scaling.transitions, default=0) < 2 * EPISODE:
            raise DeasError(f"scaling.transitions {self.scaling.transitions}: use 1000 or more")


def main(config: BenchConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    rows: list[dict[str, Any]] = []
    memory: dict[str, float] = {}
    if "updates" in config.parts:
        rows += time_updates(config, Accelerator())
    if "scaling" in config.parts:
        with scratch(config) as folder:
            rows += time_scaling(config, Accelerator(), folder)
    if config.parts == ["memory"]:
        with scratch(config) as folder:
            found, memory = measure_memory(config, Accelerator(), folder)
            rows += found
    elif "memory" in config.parts:  # a fresh process, so that its peak is its own
        record = alone(config, output)
        rows, memory = rows + record["rows"], record["memory"]
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        **provenance(),
        "device": str(Accelerator().device),
        "threads": torch.get_num_threads(),
        "wall_seconds": time.time() - started,
        "rows": rows,
        "memory": memory,
    }
    write_json(output / "results.json", record)
    write_report(record, output)
    print(text_lines(rows))
    for name, value in memory.items():
        print(f"{name:28s} {value:.2f}")
    print(f"results in {output}")


def alone(config: BenchConfig, output: Path) -> dict[str, Any]:
    """The memory part by the same command in a process of its own."""
    settings = {
        "parts": "[memory]",
        "output_dir": output / "memory",
        "seed": config.seed,
        "rounds": config.rounds,
        "updates_per_round": config.updates_per_round,
        "critic.batch_size": config.critic.batch_size,
        "critic.hidden": str(config.critic.hidden).replace(" ", ""),
        **{f"memory.{name}": value for name, value in asdict(config.memory).items()},
    }
    if config.scratch is not None:
        settings["scratch"] = config.scratch
    flags = [f"--{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, __file__, *flags], check=True)
    record: dict[str, Any] = json.loads((output / "memory/results.json").read_text())
    return record


@contextmanager
def scratch(config: BenchConfig) -> Iterator[Path]:
    with TemporaryDirectory(dir=config.scratch) as folder:
        yield Path(folder)


# Updates: cached, plain, and with the backbone in the loop.


def time_updates(config: BenchConfig, accelerator: Accelerator) -> list[dict[str, Any]]:
    table = load_episodes(
        config.dataset.repo_id, config.dataset.root, list(range(config.dataset.episodes))
    )
    everything = np.arange(table.num_episodes)
    transitions = make_transitions(table, everything, config.critic)
    device = accelerator.device
    build = nano_backbone if config.backbone == "nano" else full_backbone
    backbone = build(config, table, accelerator)
    data = TransitionDataset(
        table, backbone.cached, transitions, config.critic.horizon, device=device
    )
    draws = draw_rows(data, config)
    few = list(islice(draws, 3))  # pictures of a few batches fit in memory
    pictures = [
        backbone.inputs(np.concatenate([transitions.start[rows], transitions.next[rows]]))
        for rows in (rows.numpy() for rows in few)
    ]

    def updater() -> CriticUpdate:
        critic = new_critic(table, backbone.cached, everything, config.critic, config.seed)
        return CriticUpdate(critic.to(device), config.critic, accelerator, None)

    cached, in_loop = updater(), updater()
    plain = PlainLoop(cached.critic, config.critic.lr).to(device)

    def train_cached(turn: int) -> None:
        for _ in range(config.updates_per_round):
            cached(data.batch(next(draws)))

    def train_plain(turn: int) -> None:
        for _ in range(config.updates_per_round):
            plain.update(data.batch(next(draws)))

    def train_in_loop(turn: int) -> None:
        which = turn % len(few)
        feature, following = backbone.run(pictures[which]).chunk(2)
        batch = data.batch(few[which])
        if backbone.checked and not close(batch.feature, feature):
            raise DeasError("cached features differ from the backbone's own")
        in_loop(replace(batch, feature=feature, next_feature=following))

    several = lambda _: config.updates_per_round  # noqa: E731
    seconds = interleave(
        {CACHED: Arm(train_cached, several), PLAIN: Arm(train_plain, several)},
        config.rounds,
        warm_up=3,
        label="updates",
    )
    batch_size = config.critic.batch_size
    rows = [
        timing_row(CACHED, batch_size, seconds[CACHED], PLAIN, seconds[PLAIN]),
        timing_row(PLAIN, batch_size, seconds[PLAIN]),
    ]
    seconds = interleave(
        {CACHED: Arm(train_cached, several), IN_LOOP: Arm(train_in_loop)},
        max(3, config.rounds // 4),
        warm_up=4 if config.critic.compile else 1,  # a CUDA graph is captured in the fourth
        label="backbone",
    )
    rows += [
        timing_row(CACHED, batch_size, seconds[CACHED], IN_LOOP, seconds[IN_LOOP]),
        timing_row(IN_LOOP, batch_size, seconds[IN_LOOP]),
    ]
    return rows


def draw_rows(data: TransitionDataset, config: BenchConfig) -> Iterator[Tensor]:
    """Batches of rows without end, as the recipe draws them."""
    return index_batches(len(data), config.critic.batch_size, range(sys.maxsize), config.seed)


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to float16, in which features are cached."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().max()))


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone, twice.

    Attributes:
        cached: float16 (T, F), what it makes of every frame of the table.
        inputs: What it reads of the given frames, on the device: a list of micro-batches.
        run: Its pooled features of such inputs, float32 (B, F).
        checked: Whether ``cached`` really came from ``run``; random weights have no pictures.
    """

    cached: NDArray[np.float16]
    inputs: Callable[[NDArray[np.int64]], list[dict[str, Tensor]]]
    run: Callable[[list[dict[str, Tensor]]], Tensor]
    checked: bool


def nano_backbone(config: BenchConfig, table: EpisodeTable, accelerator: Accelerator) -> Backbone:
    """The checkpoint's own backbone on the dataset's own pictures."""
    vla = load_vla(
        VLAConfig(
            path=config.vla.path,
            embodiment=config.vla.embodiment,
            image_keys=list(table.image_keys),
            state_dim=table.state.shape[1],
            action_dim=table.action.shape[1],
            dtype=config.dtype,
        ),
        dataset_stats=dataset_statistics(table, np.arange(table.num_episodes)),
        device=str(accelerator.device),
    )
    with TemporaryDirectory() as folder:
        features = FeaturesConfig(batch_size=config.micro_batch)
        cached = extract_features(
            vla, table, features, Path(folder), accelerator, keep_tokens=False
        ).pooled
        cached = np.array(cached)
    keys = vla.spec.image_keys
    decoded = [part for _, part in iter_episode_frames(table.root, table, keys)]
    pictures = {key: np.concatenate([part[key] for part in decoded]) for key in keys}

    def inputs(frames: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        batches = []
        for at in range(0, len(frames), config.micro_batch):
            part = frames[at : at + config.micro_batch]
            batch: dict[str, Any] = {
                key: torch.from_numpy(pictures[key][part]).permute(0, 3, 1, 2) for key in keys
            }
            batch["observation.state"] = torch.from_numpy(table.state[part])
            batch["task"] = [table.tasks[task] for task in table.task_index[part]]
            batches.append(vla.preprocess(batch) | {"raw_state": batch["observation.state"]})
        return batches

    def pooled(batches: list[dict[str, Tensor]]) -> Tensor:
        parts = []
        for batch in batches:
            encoding = vla.encode_inputs(batch, batch["raw_state"])
            parts.append(
                pool_tokens(
                    encoding.tokens,
                    encoding.attention_mask,
                    encoding.image_mask,
                    len(keys),
                    PoolingConfig(),
                )
            )
        return torch.cat(parts)

    return Backbone(cached, inputs, pooled, checked=True)


def full_backbone(config: BenchConfig, table: EpisodeTable, accelerator: Accelerator) -> Backbone:
    """GR00T N1.7's backbone with random weights, on pictures and words of noise.

    The shapes are those of the public checkpoint (256 x 256 pixels, 64 tokens a camera, an
    instruction of 16 tokens): time does not depend on what stands in them.
    """
    from lerobot.policies.groot.groot_n1_7 import GR00TN17Config, Qwen3Backbone

    settings = GR00TN17Config()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with accelerator.device:
            model = Qwen3Backbone(
                settings.model_name,
                select_layer=settings.select_layer,
                load_pretrained_weights=False,
            )
    finally:
        torch.set_default_dtype(default)
    model = model.to(accelerator.device, dtype).requires_grad_(False).eval()
    vision = model.model.config.vision_config
    ids = model.model.config
    side = settings.image_target_size[0] // vision.patch_size
    tokens = (side // vision.spatial_merge_size) ** 2
    cameras = len(table.image_keys)
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    picture = [ids.vision_start_token_id, *[ids.image_token_id] * tokens, ids.vision_end_token_id]
    words = torch.cat([torch.tensor(picture * cameras), torch.arange(100, 116)])
    generator = torch.Generator(accelerator.device).manual_seed(config.seed)

    def inputs(frames: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        batches = []
        for at in range(0, len(frames), config.micro_batch):
            count = len(frames[at : at + config.micro_batch])
            grid = torch.tensor([[1, side, side]]).repeat(count * cameras, 1)
            pixels = torch.randn(
                count * cameras * side**2,
                patch,
                device=accelerator.device,
                dtype=dtype,
                generator=generator,
            )
            batch = {
                "input_ids": words.repeat(count, 1),
                "attention_mask": torch.ones(count, len(words), dtype=torch.long),
                "image_grid_thw": grid,
            }
            batches.append(
                {k: v.to(accelerator.device) for k, v in batch.items()} | {"pixel_values": pixels}
            )
        return batches

    @torch.no_grad()
    def pooled(batches: list[dict[str, Tensor]]) -> Tensor:
        parts = []
        for batch in batches:
            out = model(model.prepare_input(dict(batch)))
            parts.append(
                pool_tokens(
                    out["backbone_features"],
                    out["backbone_attention_mask"],
                    out["image_mask"],
                    cameras,
                    PoolingConfig(),
                )
            )
        return torch.cat(parts)

    width = settings.backbone_embedding_dim
    cached = np.random.default_rng(config.seed).standard_normal((table.num_frames, width))
    return Backbone(cached.astype(np.float16), inputs, pooled, checked=False)


class PlainLoop(nn.Module):
    """DEAS as one would write it down first: the yardstick for our own update.

    Two Q networks and V, each 4 x 512 with LayerNorm and GELU, behind the same feature encoder;
    torch's Adam as it comes, and a Python loop for the EMA.
    """

    def __init__(self, like: Critic, lr: float) -> None:
        super().__init__()
        config = like.config
        self.support: ValueSupport = like.support
        self.expectile, self.rate = config.expectile, config.ema
        self.statistics = like.normalizer
        width = config.feature_encoder_hidden
        self.encoder = nn.Sequential(
            nn.Linear(config.feature_dim, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, config.feature_encoder_dim),
            nn.Tanh(),
        )
        seen = config.feature_encoder_dim + config.state_dim
        acted = seen + config.horizon * config.action_dim
        self.q = nn.ModuleList(self.mlp(acted, config.bins) for _ in range(2))
        self.target = nn.ModuleList(self.mlp(acted, config.bins) for _ in range(2))
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)
        self.v = self.mlp(seen, config.bins)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=lr)

    @staticmethod
    def mlp(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Linear(inputs, 512), nn.LayerNorm(512), nn.GELU()]
            inputs = 512
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def observe(self, feature: Tensor, state: Tensor) -> Tensor:
        encoded = self.encoder(self.statistics.feature(feature))
        return torch.cat([encoded, self.statistics.state(state)], dim=-1)

    def update(self, batch: ChunkBatch) -> None:
        expect = lambda logits: self.support.expectation(F.softmax(logits, -1))  # noqa: E731
        obs = self.observe(batch.feature, batch.state)  # (B, D)
        chunk = self.statistics.actions(batch.actions, batch.action_valid).flatten(1)
        acted = torch.cat([obs, chunk], dim=-1)
        v = self.v(obs)  # (B, m)
        with torch.no_grad():
            next_v = expect(self.v(self.observe(batch.next_feature, batch.next_state)))
            y = batch.reward + batch.bootstrap * next_v * ~batch.terminated
            projected = self.support.project(y)
            targets = torch.stack([F.softmax(q(acted), -1) for q in self.target])  # (2, B, m)
            expected = self.support.expectation(targets)  # (2, B)
            member = expected.argmin(0)
            every = torch.arange(len(member), device=member.device)
            weight = expectile_weight(expected[member, every] - expect(v), self.expectile)
        loss = (weight * cross_entropy(targets[member, every], v)).mean()
        for q in self.q:
            loss = loss + cross_entropy(projected, q(acted)).mean() / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.q.parameters(), strict=True):
                old.copy_((1 - self.rate) * old + self.rate * new)


# Scaling and memory: synthetic datasets.


def synthetic_table(frames: int) -> EpisodeTable:
    """Episodes of `EPISODE` frames of noise, every second one a success: S = 9, A = 7."""
    frames -= frames % EPISODE
    generator = np.random.default_rng(0)
    end = np.arange(EPISODE, frames + 1, EPISODE)
    last = np.zeros(frames, dtype=bool)
    last[end - 1] = True
    success = last & (np.arange(frames) // EPISODE % 2 == 0)
    episode = np.repeat(np.arange(len(end)), EPISODE)
    return EpisodeTable(
        repo_id="synthetic",
        root=Path("synthetic"),
        fingerprint="",
        state=generator.standard_normal((frames, 9), dtype=np.float32),
        action=generator.standard_normal((frames, 7), dtype=np.float32),
        dataset_reward=None,
        done=last,
        success=success,
        terminated=success,
        truncated=last & ~success,
        episode_index=episode,
        episode_start=end - EPISODE,
        episode_end=end,
        episode_ids=np.arange(len(end)),
        episode_success=success[end - 1],
        task_index=np.zeros(frames, dtype=np.int64),
        tasks=("nothing",),
        image_keys=(),
        fps=20.0,
        state_names=tuple(f"s{k}" for k in range(9)),
        action_names=tuple(f"a{k}" for k in range(7)),
    )


def first_episodes(table: EpisodeTable, episodes: int) -> EpisodeTable:
    """The start of a synthetic table, without a copy."""
    lengths = {table.num_frames: episodes * EPISODE, table.num_episodes: episodes}
    arrays = {k: v for k, v in vars(table).items() if isinstance(v, np.ndarray)}
    return replace(table, **{k: v[: lengths[len(v)]] for k, v in arrays.items()})


def synthetic_features(path: Path, frames: int, width: int) -> NDArray[np.float16]:
    """A mapped float16 (frames, width) file of noise that repeats every 8,192 rows."""
    free, need = os.statvfs(path.parent), 2 * frames * width
    if need > free.f_bavail * free.f_frsize:
        raise DeasError(f"disk too small for {need / 1e9:.1f} GB of features: choose --scratch")
    noise = np.random.default_rng(0).standard_normal((8192, width), dtype=np.float32)
    block = noise.astype(np.float16)
    with path.open("wb") as file:  # not through the map: what is written would count as memory
        header = {"descr": "<f2", "fortran_order": False, "shape": (frames, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for at in range(0, frames, len(block)):
            file.write(block[: min(len(block), frames - at)].data)
        file.flush()
        os.fsync(file.fileno())
    return np.load(path, mmap_mode="r")


def time_scaling(
    config: BenchConfig, accelerator: Accelerator, folder: Path
) -> list[dict[str, Any]]:
    """One critic, datasets of several sizes in turn: each is the first rows of the largest."""
    sizes = sorted(config.scaling.transitions)
    # A chunk that the time limit cuts is dropped: a few more frames than transitions.
    spare = 1 + 2 * config.critic.horizon / EPISODE
    episodes = {size: math.ceil(size * spare / EPISODE) for size in sizes}
    table = synthetic_table(EPISODE * episodes[sizes[-1]])
    features = synthetic_features(
        folder / "features.npy", table.num_frames, config.scaling.feature_dim
    )
    resolved = critic_config(
        table, config.scaling.feature_dim, np.arange(table.num_episodes), config.critic
    )
    update = CriticUpdate(
        make_critic(resolved).to(accelerator.device), config.critic, accelerator, None
    )
    arms: dict[str, Arm] = {}
    count = config.updates_per_round
    for size in sizes:
        part = first_episodes(table, episodes[size])
        found = make_transitions(part, np.arange(part.num_episodes), config.critic)
        data = TransitionDataset(
            part,
            features[: part.num_frames],
            replace(found, **{name: values[:size] for name, values in vars(found).items()}),
            config.critic.horizon,
            device=accelerator.device,
            resident=False,
        )
        draws = draw_rows(data, config)

        def train(
            turn: int, data: TransitionDataset = data, draws: Iterator[Tensor] = draws
        ) -> None:
            for _ in range(count):
                update(data.batch(next(draws)))

        def draw(
            turn: int, data: TransitionDataset = data, draws: Iterator[Tensor] = draws
        ) -> None:
            for _ in range(count):
                data.batch(next(draws))

        arms[f"{CACHED} {size}"] = Arm(train, lambda _: count)
        arms[f"{DRAW} {size}"] = Arm(draw, lambda _: count)
    seconds = interleave(arms, config.rounds, warm_up=3, label="scaling")
    rows = []
    for what in (CACHED, DRAW):
        base = seconds[f"{what} {sizes[0]}"]
        for size in sizes:
            smallest = f"{what}, {sizes[0]:,} transitions"
            rows.append(timing_row(what, size, seconds[f"{what} {size}"], smallest, base))
    return rows


def measure_memory(
    config: BenchConfig, accelerator: Accelerator, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Peak memory of everything that the critic stage does on mapped features, in GB."""
    with MemoryWatch() as watch:
        imported = watch.now()
        table = synthetic_table(config.memory.frames)
        path = folder / "features.npy"
        features = synthetic_features(path, table.num_frames, config.memory.feature_dim)
        everything = np.arange(table.num_episodes)
        transitions = make_transitions(table, everything, config.critic)
        data = TransitionDataset(
            table,
            features,
            transitions,
            config.critic.horizon,
            device=accelerator.device,
            resident=False,
        )
        critic = new_critic(table, features, everything, config.critic, config.seed)
        update = CriticUpdate(critic.to(accelerator.device), config.critic, accelerator, None)
        draws = draw_rows(data, config)
        drawn = islice(draws, config.memory.updates)
        for batch in data.batches(drawn):
            update(batch)
    memory = {
        "file_gb": path.stat().st_size / 1e9,
        "imported_rss_gb": imported["VmRSS"],
        "imported_anonymous_gb": imported["RssAnon"],
        "peak_rss_gb": watch.peak["VmRSS"],
        "peak_anonymous_gb": watch.peak["RssAnon"],
        "peak_mapped_file_gb": watch.peak["RssFile"],
        "updates": config.memory.updates,
    }
    return time_reading_ahead(config, data, features, path, update, draws), memory


def time_reading_ahead(
    config: BenchConfig,
    data: TransitionDataset,
    features: NDArray[np.float16],
    path: Path,
    update: CriticUpdate,
    draws: Iterator[Tensor],
) -> list[dict[str, Any]]:
    """How long updates wait for batches from a file that is on the disk only, by thread or not.

    The first batch after emptying the page cache is left out: nothing could be read ahead of it.
    """
    count = config.updates_per_round + 1
    ways: dict[str, Callable[[], Iterator[ChunkBatch]]] = {
        AHEAD: lambda: data.batches(islice(draws, count)),
        ONE_BY_ONE: lambda: map(data.batch, islice(draws, count)),
    }
    waits: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(config.rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            evict(features, path)
            waits[way].append(float(np.mean(training_waits(ways[way](), update)[1:])))
    seconds = {way: np.asarray(values) for way, values in waits.items()}
    return [
        timing_row(AHEAD, len(features), seconds[AHEAD], ONE_BY_ONE, seconds[ONE_BY_ONE]),
        timing_row(ONE_BY_ONE, len(features), seconds[ONE_BY_ONE]),
    ]


def training_waits(batches: Iterator[ChunkBatch], update: CriticUpdate) -> list[float]:
    """Seconds before each batch is there, between updates that the device has finished."""
    waits = []
    began = time.perf_counter()
    for batch in batches:
        waits.append(time.perf_counter() - began)
        float(update(batch)[0])
        began = time.perf_counter()
    return waits


def evict(features: Any, path: Path) -> None:
    """Drop the file from this process and from the page cache: the next read is the disk's."""
    import mmap

    features._mmap.madvise(mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class MemoryWatch:
    """Samples this process' resident memory in a thread: anonymous, mapped files, and both, GB."""

    def __init__(self) -> None:
        self.peak = dict.fromkeys(("VmRSS", "RssAnon", "RssFile"), 0.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @staticmethod
    def now() -> dict[str, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return {k: int(fields[k].split()[0]) / 1e6 for k in ("VmRSS", "RssAnon", "RssFile")}

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            for name, value in self.now().items():
                self.peak[name] = max(self.peak[name], value)


def write_report(record: dict[str, Any], output: Path) -> None:
    """report.html: opens alone."""
    rows = record["rows"]
    body = html_table(*timing_cells(rows))
    curves = [row for row in rows if "transitions" in (row["ratio_to"] or "")]
    if curves:
        draw_scaling(curves, output / "scaling.png")
        body += html_picture(output / "scaling.png", "cost per update by size of the dataset")
    if record["memory"]:
        cells = [[name, f"{value:.2f}"] for name, value in record["memory"].items()]
        body += "<h2>Memory</h2>" + html_table(["what", "value"], cells)
    settings = record["config"]["critic"]
    note = f"""<p>Milliseconds per update of batch {settings["batch_size"]} on {record["device"]},
{record["threads"]} threads; arms in turn in every round, ratios within a round.</p>"""
    write_page("Critic training", note + body, output / "report.html")


def draw_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    for what in dict.fromkeys(row["what"] for row in rows):
        line = [row for row in rows if row["what"] == what]
        size = [row["size"] for row in line]
        label = "update" if what == CACHED else what
        axes.plot(size, [row["median_ms"] for row in line], marker="o", label=f"{label}, median")
        axes.plot(size, [row["p95_ms"] for row in line], "k:", marker=".", linewidth=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="transitions", ylabel="ms (dotted: 95th percentile)"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main, BenchConfig)
