"""An episode as mp4, with the critic's opinion drawn in."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import EnvSpec
from deas_vla.envs.rollout import Episode
from deas_vla.evaluation.engine.trials import ERROR, Outcome, outcome_of
from deas_vla.evaluation.engine.workers import Job, RunEpisode, SimulatorPool, Trial, every_step

_SCALE_TO = 256  # pixels of one camera's shorter side
_PANEL = 72  # pixels of the strip below the pictures


def film(
    pool: SimulatorPool, outcomes: Sequence[Outcome], directory: Path, each: int
) -> list[tuple[Path, Outcome, bool]]:
    """Run some episodes again with the cameras on at every step, and write them as mp4.

    An episode is determined by its trial, so it is the same episode; looking changes nothing.

    Args:
        pool: The one that ran them.
        outcomes: What there is to choose from.
        directory: Where ``<episode_id>.mp4`` go.
        each: How many successes and how many failures of each task, with the most candidates.
            Those that the base policy decided otherwise come first.

    Returns:
        File, outcome as filmed, and whether it is the outcome as evaluated.
    """
    chosen = {outcome.episode_id: outcome for outcome in worth_seeing(outcomes, each)}
    if chosen:
        directory.mkdir(exist_ok=True)
    deliver = functools.partial(_write_and_tell, directory)
    trials = [Trial(o.task, o.seed, o.candidates, o.evaluation_seed) for o in chosen.values()]
    films = []
    for end in pool.run([Job(trial, RunEpisode(deliver, every_step)) for trial in trials]):
        if end.result is not None:
            same = end.result == chosen[end.trial.episode_id]
            films.append((directory / f"{end.trial.episode_id}.mp4", end.result, same))
    order = list(chosen)
    return sorted(films, key=lambda each: order.index(each[1].episode_id))


def worth_seeing(outcomes: Sequence[Outcome], each: int) -> list[Outcome]:
    """Successes and failures of every task, ``each`` of both, as `film` takes them."""
    most = max(o.candidates for o in outcomes)
    base = {(o.task, o.seed): o.success for o in outcomes if o.candidates == 1}
    mine = [o for o in outcomes if o.candidates == most and o.outcome != ERROR]
    found = []
    for task in dict.fromkeys(o.task for o in mine):
        for success in (True, False):
            kind = [o for o in mine if o.task == task and o.success == success]
            kind.sort(key=lambda o: base.get((o.task, o.seed), o.success) == o.success)
            found += kind[:each]
    return found


def _write_and_tell(directory: Path, trial: Trial, episode: Episode, spec: EnvSpec) -> Outcome:
    write_episode_video(episode, directory / f"{trial.episode_id}.mp4", spec.fps)
    return outcome_of(trial, episode, spec)


def write_episode_video(episode: Episode, path: Path, fps: int) -> None:
    """Draw every recorded observation: cameras side by side, instruction, time, candidate values.

    Args:
        episode: Recorded with pictures at every step.
        path: The mp4 file.
        fps: Control steps per second.
    """
    frames = [_draw(episode, step, fps) for step in range(episode.steps)]
    frames += [frames[-1]] * fps  # hold the end for a second
    _encode(frames, path, fps)


def _draw(episode: Episode, step: int, fps: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    look = episode.observations[step]
    scale = max(1, _SCALE_TO // min(min(i.shape[:2]) for i in look.images.values()))
    cameras = [np.kron(i, np.ones((scale, scale, 1), np.uint8)) for i in look.images.values()]
    strip = np.zeros((_PANEL, sum(c.shape[1] for c in cameras), 3), np.uint8)
    canvas = Image.fromarray(np.vstack([np.hstack(cameras), strip]))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    top, width = canvas.height - _PANEL, canvas.width
    _, info = max((plan for plan in episode.plans if plan[0] <= step), key=lambda plan: plan[0])
    last = step == episode.steps - 1
    outcome = ("success" if episode.success else "time limit") if last else ""
    draw.text((8, top + 4), f"{look.task}   t = {step / fps:.1f} s   {outcome}", "white", font)
    if "scores" in info:
        scores, chosen = info["scores"], info["chosen"]
        text = (
            f"Q of the chosen chunk {scores[chosen]:.2f}   "
            f"({len(scores)} candidates from {min(scores):.2f} to {max(scores):.2f})"
        )
        draw.text((8, top + 24), text, "white", font)
        _draw_scores(draw, scores, chosen, (8, top + 58, width - 8))
    else:
        draw.text((8, top + 24), "base policy: one candidate, no critic asked", "white", font)
    return np.asarray(canvas)


def _draw_scores(
    draw: object, scores: list[float], chosen: int, line: tuple[int, int, int]
) -> None:
    """Candidates as ticks on a line from the worst to the best of this decision."""
    left, y, right = line
    low, span = min(scores), max(max(scores) - min(scores), 1e-6)
    draw.line((left, y, right, y), "gray")  # type: ignore[attr-defined]
    for index, score in enumerate(scores):
        x = left + (right - left) * (score - low) / span
        tall, colour = (10, "lime") if index == chosen else (6, "white")
        draw.line((x, y - tall, x, y + tall), colour, 2)  # type: ignore[attr-defined]


def _encode(frames: list[NDArray[np.uint8]], path: Path, fps: int) -> None:
    import av

    height, width = (size - size % 2 for size in frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=fps, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture[:height, :width], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
