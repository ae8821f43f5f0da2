"""What a robot's monitor would have shown along recorded episodes, on their pictures or others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.frames import iter_episode_frames
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline.intervals import Floats, Indices
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.judging import judge
from deas_vla.guidance.noise import CandidateNoise

Pictures = dict[str, NDArray[np.uint8]]  # camera to (T, height, width, 3)
Change = Callable[[Pictures], Pictures]
_Opinion = tuple[Floats, Floats, Floats]


@dataclass(frozen=True)
class Watched:
    """The stream of `serving.monitor` over episodes, a number for each decision.

    Attributes:
        values: For each episode (T_e,), V.
        disagreement: Likewise, standard deviation of the members' Q of the chosen chunk.
        distance: Likewise, of the observation from the training data.
        solved_at: int64 (E,), the decision whose chunk solves the task; -1 never.
    """

    values: Sequence[Floats]
    disagreement: Sequence[Floats]
    distance: Sequence[Floats]
    solved_at: Indices

    def part(self, rows: Indices) -> "Watched":
        """Some of the episodes."""
        return Watched(
            [self.values[row] for row in rows],
            [self.disagreement[row] for row in rows],
            [self.distance[row] for row in rows],
            self.solved_at[rows],
        )


def watch(
    policy: ValueGuidedPolicy,
    table: EpisodeTable,
    episodes: Indices,
    changes: Mapping[str, Change],
    *,
    candidates: int,
    seed: int,
) -> dict[str, Watched]:
    """Let the policy decide at an episode's decisions, once for every change of its pictures.

    Args:
        policy: With a critic; decides every ``n_action_steps`` frames, as on the robot.
        table: The dataset.
        episodes: Episode rows.
        changes: By name, what becomes of an episode's pictures; every video is decoded once.
        candidates: N of each decision.
        seed: Of the candidates' noise, which is the same for every change.

    Raises:
        DeasError: A bundle without a critic.
    """
    if policy.critic is None:
        raise DeasError("a bundle without a critic has nothing to watch: use one that has a critic")
    every = policy.config.n_action_steps
    found: dict[str, list[_Opinion]] = {name: [] for name in changes}
    keys = policy.vla.spec.image_keys
    for row, pictures in iter_episode_frames(table.root, table, keys, [int(e) for e in episodes]):
        frames = np.arange(table.episode_start[row], table.episode_end[row], every)
        seen = {key: pictures[key][::every] for key in keys}
        for name, change in changes.items():
            batch: dict[str, Any] = {
                key: torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
                for key, images in change(seen).items()
            }
            batch["observation.state"] = torch.from_numpy(table.state[frames])
            batch["task"] = [table.task(row)] * len(frames)
            noise = CandidateNoise([seed + row] * len(frames), range(len(frames)))
            found[name].append(_judged(policy, batch, noise, candidates))
    solved_at = np.array([_solved_at(table, int(row), every) for row in episodes], dtype=np.int64)
    return {
        name: Watched(
            [value for value, _, _ in series],
            [disagreement for _, disagreement, _ in series],
            [distance for _, _, distance in series],
            solved_at,
        )
        for name, series in found.items()
    }


def _judged(
    policy: ValueGuidedPolicy, batch: dict[str, Any], noise: CandidateNoise, candidates: int
) -> _Opinion:
    """V, disagreement and distance, each (T,)."""
    opinion = judge(policy, policy.decide(batch, noise, candidates))
    assert opinion is not None
    value, members, distance = (each.double().cpu() for each in opinion)
    return value.numpy(), members.std(0, correction=0).numpy(), distance.numpy()


def _solved_at(table: EpisodeTable, row: int, every: int) -> int:
    frames = np.arange(table.episode_start[row], table.episode_end[row])
    ends = np.flatnonzero(table.terminated[frames])
    return int(ends[0]) // every if len(ends) else -1


# ---- pictures that the training data do not hold ------------------------------------------------


def disturbances(seed: int) -> dict[str, Change]:
    """Changes of pictures by name; `undisturbed` is none.

    Args:
        seed: Of the noise.
    """

    def each(change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Change:
        return lambda pictures: {key: change(images) for key, images in pictures.items()}

    def noise(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        drawn = np.random.default_rng(seed).normal(0, 50, images.shape)
        return np.clip(images + drawn, 0, 255).astype(np.uint8)

    def exchanged(pictures: Pictures) -> Pictures:
        keys = list(pictures)
        return {key: pictures[other] for key, other in zip(keys, keys[1:] + keys[:1], strict=True)}

    def covered(pictures: Pictures) -> Pictures:
        first = next(iter(pictures))
        return pictures | {first: np.zeros_like(pictures[first])}

    return {
        "undisturbed": lambda pictures: pictures,
        "dark": each(lambda images: (images * 0.3).astype(np.uint8)),
        "noise": each(noise),
        "colours": each(lambda images: images[..., [1, 2, 0]]),
        "moved camera": each(lambda images: np.roll(images, images.shape[2] // 4, axis=2)),
        "cameras exchanged": exchanged,
        "first camera covered": covered,
    }


def pictures_of(table: EpisodeTable) -> Change:
    """Pictures of another dataset in place of the episode's, its cameras in turn, in order.

    Args:
        table: Of the other dataset; its first episode's frames are stretched over the decisions.
    """
    _, seen = next(_episodes(table))
    cameras = list(seen.values())

    def change(pictures: Pictures) -> Pictures:
        out = {}
        for number, (key, images) in enumerate(pictures.items()):
            theirs = cameras[number % len(cameras)]
            out[key] = theirs[np.linspace(0, len(theirs) - 1, len(images)).astype(int)]
        return out

    return change


def _episodes(table: EpisodeTable) -> Iterator[tuple[int, Pictures]]:
    return iter_episode_frames(table.root, table, table.image_keys, [0])
