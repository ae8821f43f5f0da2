"""Rollouts as a LeRobotDataset: the one way from an `Episode` to a recorded one.

A collection grows in its directory: every finished episode is at once a small dataset of its own
under ``episodes/``, put there by one rename, so that a killed run loses only the episodes it was
in. `assemble` joins them to ``dataset/``.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.recording import EpisodeRecorder
from deas_vla.envs.env import EnvSpec
from deas_vla.envs.rollout import Episode
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.trials import ERROR, Outcome, outcome_of
from deas_vla.evaluation.engine.workers import Trial
from deas_vla.files import write_json

STAGED, DATASET = "episodes", "dataset"
_INDEX = Path("meta/rollouts.json")  # of a dataset: its episodes' outcomes, in their order


@dataclass
class ScriptedConfig:
    """Episodes of a scripted expert; each recipe has its own defaults.

    Attributes:
        episodes: Episodes in all, or of each task where there are several.
        sloppiness: Share of them that aims beside the object.
        first_seed: Seed of the first episode; no two datasets share one.
        workers: Simulator processes.
        output: New directory.
    """

    episodes: int = 250
    sloppiness: float = 0.5
    first_seed: int = 0
    workers: int = 2
    output: Path = Path("outputs/demos")

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)


def record_in_processes[Job](
    recorder: EpisodeRecorder,
    run: Callable[[Job], Episode],
    jobs: Sequence[Job],
    workers: int,
) -> list[bool]:
    """Run episodes in processes of their own and record them in the order of ``jobs``.

    Args:
        recorder: Finished afterwards; discarded where an episode fails.
        run: Makes an episode, with pictures at every step, in one of the processes.
        jobs: What it is called with.
        workers: Processes.

    Returns:
        Which episodes succeeded.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked process has its parent's GL context
    successes = []
    with recorder, spawn.Pool(workers) as pool:
        for episode in tqdm(pool.imap(run, jobs), total=len(jobs), desc="episodes"):
            record_episode(recorder, episode)
            successes.append(episode.success)
    return successes


def episode_recorder(
    root: str | Path, repo_id: str, spec: EnvSpec, robot_type: str
) -> EpisodeRecorder:
    """A recorder with the cameras, state and action of ``spec``; arguments as `EpisodeRecorder`."""
    return EpisodeRecorder(
        root,
        repo_id=repo_id,
        fps=spec.fps,
        image_shapes=dict(zip(spec.image_keys, spec.image_sizes.values(), strict=True)),
        state_names=spec.state_names,
        action_names=spec.action_names,
        robot_type=robot_type,
        assets=spec.assets,
    )


def record_episode(recorder: EpisodeRecorder, episode: Episode, policy_revision: str = "") -> None:
    """Append ``episode``, rolled out with ``record_images`` true at every step.

    The reward is 1 at the step that solved the task and 0 elsewhere; the instruction is that of
    the episode's own observations.
    """
    looks = episode.observations  # T, one before each action
    last = np.arange(episode.steps) == episode.steps - 1
    success = last & episode.success
    recorder.add_episode(
        images={key: np.stack([look.images[key] for look in looks]) for key in looks[0].images},
        state=np.stack([look.state for look in looks]),
        action=episode.actions,
        reward=success.astype(np.float32),
        success=success,
        terminated=last & episode.terminated,
        truncated=last & episode.truncated,
        task=looks[0].task,
        seed=episode.seed,
        policy_revision=policy_revision,
    )


@dataclass(frozen=True)
class Stage:
    """Puts finished episodes into a collection; the ``deliver`` of its jobs.

    Attributes:
        directory: Of the collection.
        repo_id: Of the dataset.
        robot_type: Of the dataset.
        policy_revision: Who acts; the number of candidates is added to it.
    """

    directory: Path
    repo_id: str
    robot_type: str
    policy_revision: str

    def __call__(self, trial: Trial, episode: Episode, spec: EnvSpec) -> Outcome:
        root = self.directory / STAGED / trial.episode_id
        if root.exists():  # its run was killed before it could say so
            shutil.rmtree(root)
        with episode_recorder(root, self.repo_id, spec, self.robot_type) as recorder:
            record_episode(recorder, episode, f"{self.policy_revision}-n{trial.candidates}")
        return outcome_of(trial, episode, spec)


def recover(directory: Path, outcomes: Sequence[Outcome]) -> None:
    """Clear what a killed run left half done, before any worker starts.

    Args:
        directory: Of the collection.
        outcomes: Episodes that are said to be finished.

    Raises:
        DeasError: One of them is gone.
    """
    dataset, old = directory / DATASET, directory / f"{DATASET}.old"
    if old.exists() and not dataset.exists():
        old.rename(dataset)
    for left in [old, directory / f"{DATASET}.new", *(directory / STAGED).glob(".*")]:
        shutil.rmtree(left, ignore_errors=True)
    assembled = {outcome.episode_id for outcome in assembled_outcomes(directory)}
    for outcome in outcomes:
        there = (directory / STAGED / outcome.episode_id).exists()
        if outcome.outcome != ERROR and not there and outcome.episode_id not in assembled:
            raise DeasError(
                f"episode {outcome.episode_id} of {directory} is neither in {DATASET}/ nor in "
                f"{STAGED}/: put it back, or use another --output_dir"
            )


def assemble(directory: Path, outcomes: Sequence[Outcome], repo_id: str) -> Path:
    """Join all episodes to one dataset; those that it already holds stay in front.

    Args:
        directory: Of the collection.
        outcomes: Its episodes; those in which the simulator failed were not recorded.
        repo_id: Of the dataset.

    Returns:
        The dataset's directory; ``meta/rollouts.json`` there says which episode is which.

    Raises:
        DeasError: There is no episode.
    """
    from deas_vla.data.merge import merge  # pyarrow and pandas, which no worker needs

    dataset, new, old = (directory / f"{DATASET}{end}" for end in ("", ".new", ".old"))
    known = assembled_outcomes(directory)
    names = {outcome.episode_id for outcome in known}
    fresh = [o for o in outcomes if o.outcome != ERROR and o.episode_id not in names]
    if not known and not fresh:
        raise DeasError(
            f"no episode of {directory} could be run: see episodes.jsonl for the errors"
        )
    if fresh:
        staged = [directory / STAGED / outcome.episode_id for outcome in fresh]
        merge([*([dataset] if known else []), *staged], new, repo_id)
        write_json(new / _INDEX, [outcome.to_dict() for outcome in [*known, *fresh]])
        if known:
            dataset.rename(old)
        new.rename(dataset)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(directory / STAGED, ignore_errors=True)
    return dataset


def assembled_outcomes(directory: Path) -> list[Outcome]:
    """The episodes of a collection's dataset, in their order there; none where there is none."""
    index = directory / DATASET / _INDEX
    return [Outcome(**line) for line in json.loads(index.read_text())] if index.exists() else []
