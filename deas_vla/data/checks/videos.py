"""Video files against the plan, one look at each file's head: nothing is decoded."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from deas_vla.data.checks.finding import Finding, cause
from deas_vla.data.checks.plan import File, Plan

_INFO = "correct meta/info.json or restore the file"


def check_video(plan: Plan, file: File) -> Iterator[Finding]:
    """What is wrong with one video: cut, of another size or rate, or too short for its episodes."""
    if not file.path.is_file():
        last = f" to {file.episodes[-1]}" if len(file.episodes) > 1 else ""
        yield Finding(file.path, f"is missing (episode {file.episodes[0]}{last} of {file.camera})")
        return
    have, want = file.path.stat().st_size, _told_size(file.path)
    if want > have:
        yield Finding(file.path, f"is cut: {have} bytes of {want}")
        return
    try:
        with av.open(str(file.path)) as container:
            yield from _check_stream(plan, file, container)
    except (OSError, av.FFmpegError) as error:
        yield Finding(file.path, f"cannot be read ({cause(error)})")


def _check_stream(
    plan: Plan, file: File, container: "av.container.InputContainer"
) -> Iterator[Finding]:
    if not container.streams.video:
        yield Finding(file.path, "holds no video")
        return
    stream = container.streams.video[0]
    size, declared = (stream.height, stream.width), plan.picture_size(file.camera)
    if size != declared:
        yield Finding(
            file.path,
            f"holds pictures of {size[0]} x {size[1]}, meta/info.json declares "
            f"{declared[0]} x {declared[1]}",
            _INFO,
        )
    rate = float(stream.average_rate or 0)
    if rate and abs(rate - plan.fps) > 0.05 * plan.fps:
        yield Finding(
            file.path, f"has {rate:g} frames a second, meta/info.json says {plan.fps:g}", _INFO
        )
    assert file.begin is not None
    needed = np.round(file.begin * plan.fps).astype(np.int64) + plan.lengths[file.episodes]
    short = np.flatnonzero(needed > stream.frames)
    for k in short[:1] if stream.frames else ():
        yield Finding(
            file.path,
            f"holds {stream.frames} frames, episode {file.episodes[k]} needs {needed[k]}",
        )


def _told_size(path: Path) -> int:
    """Bytes that an MP4 file's boxes add up to (ISO/IEC 14496-12, 4.2); 0 for other files.

    LeRobot writes the index before the pictures, so that a file that was cut opens like a whole
    one.
    """
    total, actual = 0, path.stat().st_size
    with path.open("rb") as file:
        while total < actual:
            file.seek(total)
            head = file.read(16)
            if total == 0 and head[4:8] != b"ftyp":
                return 0
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8:  # 0: up to the end of the file
                return actual
            total += size
    return total
