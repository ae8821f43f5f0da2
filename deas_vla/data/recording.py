"""Recording episodes as a LeRobotDataset v3 with rewards and outcomes."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from deas_vla.data.layout import ORIGIN
from deas_vla.errors import DeasError

if TYPE_CHECKING:
    from lerobot.configs.video import RGBEncoderConfig

_FLAGS = ("next.done", "next.success", "next.terminated", "next.truncated")


def small_video_encoder() -> "RGBEncoderConfig":
    """Encoder for simulator images of 64 to 128 pixels.

    On 64x64 robosuite frames: 240 bytes a frame at 41.7 dB PSNR; LeRobot's default (AV1, crf 30,
    a keyframe every 2 frames) needs 370 bytes for 37 dB. Full chroma resolution, because at this
    size a subsampled colour is a smeared object; no B-frames, so that timestamps start at 0.
    """
    from lerobot.configs.video import RGBEncoderConfig

    return RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", crf=18, g=20, extra_options={"bf": 0})


class EpisodeRecorder:
    """Writes finished episodes beside `root` and renames them into place on `finish()`.

    Besides LeRobot's own columns a frame holds `next.reward` (float32), `next.done`,
    `next.success`, `next.terminated` and `next.truncated` (bool, all after the frame's action),
    `episode_seed` (int64, the seed of the episode's initial state) and `policy_revision` (string,
    who acted); LeRobot has no place for the last two per episode.

    Used as a context manager it finishes at the end of the block and discards on an exception.

    Args:
        root: directory of the new dataset; must not exist.
        repo_id: `user/name`.
        fps: frames per second, that is control steps per second.
        image_shapes: camera key `observation.images.<camera>` to (height, width) in pixels.
        state_names, action_names: one name per dimension.
        robot_type: e.g. `panda`.
        rgb_encoder: video settings; `small_video_encoder()` when None.
        assets: whose models the simulator's scenes are of, for `meta/origin.json`; empty where that
            is no question.

    Raises:
        DeasError: `root` exists, cannot be written, or a camera key is not LeRobot's.
    """

    def __init__(
        self,
        root: str | Path,
        repo_id: str,
        fps: int,
        image_shapes: Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot_type: str,
        rgb_encoder: "RGBEncoderConfig | None" = None,
        assets: str = "",
    ) -> None:
        from lerobot.datasets import LeRobotDataset

        self._root = Path(root)
        self._assets = assets
        self._image_shapes = dict(image_shapes)
        self._state_dim = len(state_names)
        self._action_dim = len(action_names)
        features = _features(self._image_shapes, state_names, action_names)
        self._staging = staging_directory(self._root)
        try:
            self._dataset = LeRobotDataset.create(
                repo_id=repo_id,
                root=self._staging / "dataset",
                fps=fps,
                features=features,
                robot_type=robot_type,
                rgb_encoder=rgb_encoder or small_video_encoder(),
                streaming_encoding=bool(image_shapes),
                video_backend="pyav",  # read by nobody; a search for others may alarm
                # LeRobot drops frames when its queue is full. Whole episodes are in memory here
                # anyway, so an episode's frames always fit.
                encoder_queue_maxsize=1_000_000,
                encoder_threads=1,
            )
        except BaseException:
            self.discard()
            raise

    def add_episode(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.floating],
        action: NDArray[np.floating],
        reward: NDArray[np.floating],
        success: NDArray[np.bool_],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        task: str,
        seed: int,
        policy_revision: str = "",
    ) -> None:
        """Appends one episode of `T` frames.

        Args:
            images: camera key to uint8 (T, height, width, 3) RGB.
            state: (T, S) proprioceptive state, before the action.
            action: (T, A).
            reward: (T,) reward after the action.
            success: (T,) bool, solved after the action.
            terminated: (T,) bool, a true terminal; only where `success` holds.
            truncated: (T,) bool, cut by the time limit; only the last frame, and only if nothing
                terminated.
            task: the instruction.
            seed: of the initial state.
            policy_revision: which policy acted; empty for people and scripted experts.

        Raises:
            DeasError: shapes or flags that contradict each other, or values that are not finite.
        """
        columns = {
            "observation.state": np.asarray(state, dtype=np.float32),
            "action": np.asarray(action, dtype=np.float32),
            "next.reward": np.asarray(reward, dtype=np.float32)[:, None],
            "next.done": (np.asarray(terminated) | np.asarray(truncated))[:, None],
            "next.success": np.asarray(success, dtype=bool)[:, None],
            "next.terminated": np.asarray(terminated, dtype=bool)[:, None],
            "next.truncated": np.asarray(truncated, dtype=bool)[:, None],
            "episode_seed": np.full((len(action), 1), seed, dtype=np.int64),
            **images,
        }
        self._check_shapes(columns)
        _check_flags(np.asarray(success), np.asarray(terminated), np.asarray(truncated))
        with quiet_lerobot():
            for t in range(len(action)):
                frame: dict[str, Any] = {name: values[t] for name, values in columns.items()}
                frame |= {"task": task, "policy_revision": policy_revision}
                self._dataset.add_frame(frame)
            self._dataset.save_episode(parallel_encoding=False)

    def finish(self) -> Path:
        """Closes all files, puts the dataset into place, and returns its directory.

        Raises:
            DeasError: nothing was recorded.
        """
        if self._dataset.meta.total_episodes == 0:
            self.discard()
            raise DeasError(f"nothing was recorded for {self._root}: add at least one episode")
        self._dataset.finalize()
        write_assets(self._staging / "dataset", self._assets)
        os.replace(self._staging / "dataset", self._root)
        shutil.rmtree(self._staging)
        return self._root

    def discard(self) -> None:
        """Removes everything recorded so far."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()

    def _check_shapes(self, columns: Mapping[str, NDArray[Any]]) -> None:
        length = len(columns["action"])
        shapes: dict[str, tuple[int, ...]] = {
            "observation.state": (length, self._state_dim),
            "action": (length, self._action_dim),
            "next.reward": (length, 1),
            **dict.fromkeys(_FLAGS, (length, 1)),
            **{key: (length, *shape, 3) for key, shape in self._image_shapes.items()},
        }
        for name, shape in shapes.items():
            have = columns[name].shape if name in columns else None
            if length == 0 or have != shape:
                raise DeasError(
                    f"episode's {name} has shape {have}, expected {shape}: "
                    "pass one value per frame of a non-empty episode"
                )
        for name in ("observation.state", "action", "next.reward"):
            if not np.isfinite(columns[name]).all():
                frame = int(np.argwhere(~np.isfinite(columns[name]))[0, 0])
                raise DeasError(f"episode's {name} is not finite at step {frame}: do not record it")


def _features(
    image_shapes: Mapping[str, tuple[int, int]],
    state_names: Sequence[str],
    action_names: Sequence[str],
) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        "observation.state": _vector("float32", state_names),
        "action": _vector("float32", action_names),
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        **{name: {"dtype": "bool", "shape": (1,), "names": None} for name in _FLAGS},
        "episode_seed": {"dtype": "int64", "shape": (1,), "names": None},
        "policy_revision": {"dtype": "string", "shape": (1,), "names": None},
    }
    for key, (height, width) in image_shapes.items():
        if not key.startswith("observation.images."):
            raise DeasError(f"camera key is {key}: name it observation.images.<camera>")
        features[key] = {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    return features


def _vector(dtype: str, names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (len(names),), "names": list(names)}


def write_assets(root: Path, assets: str) -> None:
    """Say whose models a dataset's scenes are of, in a file of ours; nothing where that is ``""``.

    LeRobot warns of what it does not know in its own `meta/info.json`, and writes that anew.
    """
    if assets:
        (root / ORIGIN).write_text(json.dumps({"assets": assets}))


def staging_directory(root: Path) -> Path:
    """An empty directory on the same file system, so that the final rename is atomic."""
    if root.exists():
        raise DeasError(f"dataset root {root} exists: choose another directory or remove it")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as error:
        raise DeasError(
            f"dataset root {root} cannot be written ({error.strerror}): choose another directory"
        ) from error


def _check_flags(
    success: NDArray[np.bool_], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> None:
    if (terminated & ~success).any():
        step = int(np.flatnonzero(terminated & ~success)[0])
        raise DeasError(
            f"episode terminated at step {step} without success: flag time limits as truncated"
        )
    if truncated[:-1].any() or bool(truncated[-1]) == bool(terminated.any()):
        raise DeasError(
            f"episode of {len(success)} steps has {int(terminated.sum())} terminated and "
            f"{int(truncated.sum())} truncated flags: it ends by success or by truncation of its "
            "last step, never by both"
        )


@contextmanager
def quiet_lerobot() -> Iterator[None]:
    """Without LeRobot's progress bars and the video encoder's report on every episode."""
    import av.logging
    from lerobot.utils.utils import SuppressProgressBars

    av.logging.set_libav_level(av.logging.ERROR)
    try:
        with SuppressProgressBars():
            yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # libav's own default
