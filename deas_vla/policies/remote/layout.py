"""Names on the wire and where they stand in LeRobot's observation: cameras, state, action."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deas_vla.errors import DeasError
from deas_vla.policies.remote.wire import modality_config
from deas_vla.policies.vla import VLASpec

Groups = dict[str, tuple[int, int]]  # name to [start, end) of a vector


@dataclass(frozen=True)
class WireLayout:
    """How a policy's observation and action are called by GR00T's clients.

    Attributes:
        embodiment: Tag.
        videos: Name on the wire to ``observation.images.*`` key.
        state: Name to its part of ``observation.state``.
        action: Name to its part of the action.
        state_dim: S.
        action_dim: A.
        horizon: Steps H of a chunk.
    """

    embodiment: str
    videos: Mapping[str, str]
    state: Groups
    action: Groups
    state_dim: int
    action_dim: int
    horizon: int

    def modality_config(self, *, text: bool) -> dict[str, Any]:
        """What ``get_modality_config`` answers; ``text`` is N1.5's way."""
        keys = {"video": self.videos, "state": self.state, "action": self.action}
        steps = {"action": list(range(self.horizon))}
        found = {
            name: modality_config(list(names), steps.get(name, [0]), text=text)
            for name, names in keys.items()
        }
        return found | {"language": modality_config(["task"], [0], text=text)}


def wire_layout(spec: VLASpec, modality_file: Path | None = None) -> WireLayout:
    """The layout of a policy.

    Args:
        spec: Of the policy; the checkpoint's groups, where it has any, else one of the whole.
        modality_file: GR00T's ``modality.json`` of the robot, which replaces them.

    Raises:
        DeasError: The file is not to be read, or does not cover this policy.
    """
    videos = {key.removeprefix("observation.images."): key for key in spec.image_keys}
    state = _in_order(spec.state_groups or (("state", spec.state_dim),))
    action = _in_order(spec.action_groups or (("action", spec.action_dim),))
    if modality_file is not None:
        told = _read(modality_file)
        state = _told(told, "state", spec.state_dim, modality_file)
        action = _told(told, "action", spec.action_dim, modality_file)
        named = {
            name: entry.get("original_key", f"observation.images.{name}")
            for name, entry in told.get("video", {}).items()
        }
        missing = sorted(set(spec.image_keys) - set(named.values()))
        if missing:
            raise DeasError(
                f"{modality_file} names no camera for {missing[0]}: give one this original_key"
            )
        videos = {name: key for name, key in named.items() if key in spec.image_keys}
    return WireLayout(
        spec.embodiment, videos, state, action, spec.state_dim, spec.action_dim, spec.action_horizon
    )


def _in_order(groups: tuple[tuple[str, int], ...]) -> Groups:
    found: Groups = {}
    at = 0
    for name, width in groups:
        found[name] = (at, at + width)
        at += width
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeasError(
            f"modality file {file} cannot be read ({error}): give a dataset's meta/modality.json"
        ) from None
    return told


def _told(told: Mapping[str, Any], modality: str, dim: int, file: Path) -> Groups:
    try:
        groups = {
            name: (int(entry["start"]), int(entry["end"])) for name, entry in told[modality].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DeasError(
            f'{file} lacks "{modality}": {{name: {{"start", "end"}}}}: give a meta/modality.json'
        ) from None
    covered = sorted(step for start, end in groups.values() for step in range(start, end))
    if covered != list(range(dim)):
        raise DeasError(
            f"{file} splits a {modality} of {len(covered)} dimensions, the policy has {dim}: each "
            "must be in one part"
        )
    return groups
