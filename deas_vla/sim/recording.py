"""Rollouts as a LeRobotDataset: the one way from an `Episode` to a recorded one."""

from pathlib import Path

import numpy as np

from deas_vla.data.recording import EpisodeRecorder
from deas_vla.sim.env import EnvSpec
from deas_vla.sim.rollout import Episode


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
    )


def record_episode(recorder: EpisodeRecorder, episode: Episode) -> None:
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
    )
