"""From an observation on the wire, of either generation, to the pictures and states of B robots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.policies.remote.layout import WireLayout

_LANGUAGE = ("language.", "annotation.")
_LONGEST_TASK = 4096  # characters
_SIDES = (8, 4096)  # pixels of a picture
_MODALITIES = ("video", "state", "language", "annotation")


@dataclass(frozen=True)
class Seen:
    """B observations that passed the checks.

    Attributes:
        images: ``observation.images.*`` key to uint8 (B, H, W, 3).
        state: float32 (B, S), environment units.
        tasks: B instructions.
        flat: They came with flat keys (``video.front``): so go the actions.
        single: They came without a dimension of robots: so go the actions.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    tasks: tuple[str, ...]
    flat: bool = False
    single: bool = False

    def __len__(self) -> int:
        """B."""
        return len(self.state)

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What has to agree for observations to share a call: the sizes of pictures."""
        return tuple((key, self.images[key].shape[1:]) for key in sorted(self.images))


def read_observation(observation: Any, layout: WireLayout, most: int) -> Seen:
    """Check and convert.

    Args:
        observation: Nested (``{"video": {name: array}}``) or flat (``{"video.name": array}``):
            pictures uint8 ([B,] 1, H, W, 3), states ([B,] 1, D), an instruction for each robot.
        layout: The policy's names.
        most: Observations of one request.

    Raises:
        DeasError: What is missing or wrong, its value and what is wanted.
    """
    if not isinstance(observation, Mapping):
        raise DeasError(
            f"observation is {type(observation).__name__}, not a map: send video, state and "
            "language"
        )
    flat, values = _flat(observation)
    _check_embodiment(values, layout)
    states = {
        name: _numbers(values, f"state.{name}", end - start, layout.state)
        for name, (start, end) in layout.state.items()
    }
    single = next(iter(states.values())).ndim == 2  # N1.5: (1, D) of one robot
    count = 1 if single else len(next(iter(states.values())))
    if not 1 <= count <= most:
        raise DeasError(f"{count} observations in one request: send 1 to {most}")
    state = np.empty((count, layout.state_dim), np.float32)
    for name, (start, end) in layout.state.items():
        state[:, start:end] = _rows(states[name], f"state.{name}", count, single)
    images = {
        key: _rows(_pictures(values, f"video.{name}", layout), f"video.{name}", count, single)
        for name, key in layout.videos.items()
    }
    if not np.isfinite(state).all():
        raise DeasError("state holds a value that is not a finite number: check the robot's driver")
    return Seen(images, state, _tasks(values, count), flat, single)


def _flat(observation: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    values: dict[str, Any] = {}
    nested = False
    for key, value in observation.items():
        if isinstance(value, Mapping) and key in _MODALITIES:
            nested = True
            values.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            values[str(key)] = value
    return not nested, values


def _check_embodiment(values: Mapping[str, Any], layout: WireLayout) -> None:
    for key in ("embodiment", "embodiment_tag"):
        check_embodiment(values.get(key), layout)


def check_embodiment(said: Any, layout: WireLayout) -> None:
    """DeasError where a request names another embodiment than the policy's."""
    if said is not None and said != layout.embodiment:
        raise DeasError(
            f"embodiment {str(said)[:60]!r} is not served here: this policy is of "
            f"'{layout.embodiment}'"
        )


def _array(values: Mapping[str, Any], key: str, names: Mapping[str, Any]) -> NDArray[Any]:
    if key not in values:
        kind = key.split(".")[0]
        there = sorted(k for k in values if k.startswith(f"{kind}."))[:8]
        raise DeasError(
            f"observation lacks {key}: it has {there}, this policy wants "
            f"{[f'{kind}.{name}' for name in names]}"
        )
    value = values[key]
    if not isinstance(value, np.ndarray):
        raise DeasError(f"{key} is {type(value).__name__}: send a numpy array")
    return value


def _numbers(
    values: Mapping[str, Any], key: str, width: int, names: Mapping[str, Any]
) -> NDArray[Any]:
    value = _array(values, key, names)
    if value.dtype.kind not in "fiu":
        raise DeasError(f"{key} has dtype {value.dtype}: send float32")
    if value.ndim not in (2, 3) or value.shape[-1] != width or value.shape[-2] != 1:
        raise DeasError(f"{key} has shape {value.shape}: send (robots, 1, {width})")
    return value


def _pictures(values: Mapping[str, Any], key: str, layout: WireLayout) -> NDArray[Any]:
    value = _array(values, key, layout.videos)
    if value.dtype != np.uint8:
        raise DeasError(f"{key} has dtype {value.dtype}: send uint8, 0 to 255")
    if value.ndim not in (4, 5) or value.shape[-1] != 3 or 0 in value.shape:
        raise DeasError(f"{key} has shape {value.shape}: send (robots, 1, height, width, 3)")
    if min(value.shape[-3:-1]) < _SIDES[0] or max(value.shape[-3:-1]) > _SIDES[1]:
        height, width = value.shape[-3:-1]
        raise DeasError(f"{key} is {height} x {width} pixels: send {_SIDES[0]} to {_SIDES[1]}")
    if value.shape[-4] != 1:
        raise DeasError(
            f"{key} holds {value.shape[-4]} pictures of a camera (shape {value.shape}), this "
            "policy looks at one: send the last alone"
        )
    return value


def _rows(value: NDArray[Any], key: str, count: int, single: bool) -> NDArray[Any]:
    """Without the dimension of time: (B, ...)."""
    robots = 2 if key.startswith("state.") else 4  # dimensions where there is none of robots
    if (value.ndim == robots) != single:
        raise DeasError(
            f"{key} has shape {value.shape}, other parts of the observation "
            f"{'lack' if single else 'have'} the dimension of robots: give it to all or none"
        )
    if single:
        return value
    if len(value) != count:
        raise DeasError(f"{key} is of {len(value)} robots, the state of {count}: send as many")
    return value[:, 0]


def _tasks(values: Mapping[str, Any], count: int) -> tuple[str, ...]:
    keys = [key for key in ("language.task", "task") if key in values]
    keys += sorted(key for key in values if key.startswith(_LANGUAGE))
    if not keys:
        raise DeasError("observation has no instruction: send language.task, one for each robot")
    key, value = keys[0], values[keys[0]]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise DeasError(f"{key} is {type(value).__name__}: send one string for each robot")
    tasks = [x[0] if isinstance(x, list) and len(x) == 1 else x for x in texts]
    if not all(isinstance(task, str) and len(task) <= _LONGEST_TASK for task in tasks):
        raise DeasError(
            f"{key} holds something else than strings of {_LONGEST_TASK} characters at most: send "
            "one string for each robot"
        )
    if len(tasks) != count:
        raise DeasError(f"{key} holds {len(tasks)} instructions for {count} robots: send as many")
    return tuple(tasks)
