"""An episode as mp4, with the critic's opinion drawn in."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deas_vla.sim.rollout import Episode

_SCALE_TO = 256  # pixels of one camera's shorter side
_PANEL = 72  # pixels of the strip below the pictures


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
    scale = _SCALE_TO // min(min(image.shape[:2]) for image in look.images.values())
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
