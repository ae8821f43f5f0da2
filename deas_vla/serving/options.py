"""What a request may ask for besides an action: N, temperature, seed, selection."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deas_vla.errors import DeasError
from deas_vla.guidance.checks import check_candidates
from deas_vla.guidance.config import SelectionConfig, SelectionOverride
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.noise import episode_seed

_KNOWN = (
    "candidates",
    "temperature",
    "seed",
    "plan",
    "selection",
    "return_candidates",
    "session",
    "embodiment",
)
_SELECTION = ("rule", "temperature", "ensemble", "kappa")


@dataclass(frozen=True)
class Options:
    """How B observations of a request are decided.

    Attributes:
        candidates: N.
        selection: How one is chosen.
        seeds: Of each row's noise.
        plan: Decision of the episode that these are; noise depends on seed and plan alone.
        keep: Whether all candidates go into the reply.
        session: Whose values these are, for the monitor; empty is the connection's.
    """

    candidates: int
    selection: SelectionConfig
    seeds: tuple[int, ...]
    plan: int = 0
    keep: bool = False
    session: str = ""


def read_options(
    told: Any, policy: ValueGuidedPolicy, rows: int, most: int, request: int
) -> Options:
    """Check a request's ``options`` against the policy.

    Args:
        told: A map or None.
        policy: Its settings stand where nothing is told.
        rows: B.
        most: Candidates at most.
        request: Its number, from which seeds follow where none is given.

    Raises:
        DeasError: An unknown option, or a value out of its range.
    """
    told = {} if told is None else told
    if not isinstance(told, Mapping):
        raise DeasError(f"options is {type(told).__name__}, not a map: use {list(_KNOWN)}")
    unknown = sorted(str(name)[:40] for name in set(told) - set(_KNOWN))
    if unknown:
        raise DeasError(f"option '{unknown[0]}' is unknown: use {list(_KNOWN)}")
    candidates = _whole(told, "candidates", 1, most, min(policy.config.candidates, most))
    rule = _selection(told, policy.config.selection)
    check_candidates(candidates, policy.critic, rule)
    session = told.get("session", "")
    if not isinstance(session, str) or len(session) > 80:
        raise DeasError("option session: use a string of at most 80 characters")
    keep = told.get("return_candidates", False)
    if not isinstance(keep, bool):
        raise DeasError(f"option return_candidates {keep!r}: use true or false")
    return Options(
        candidates,
        rule,
        _seeds(told.get("seed"), rows, policy.config.seed, request),
        _whole(told, "plan", 0, 2**31, 0),
        keep,
        session,
    )


def _whole(told: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = told.get(name)
    if value is None:
        return default
    if not _is_whole(value) or not least <= value <= most:
        raise DeasError(f"option {name} {_short(value)}: use a whole number, {least} to {most}")
    return int(value)


def _selection(told: Mapping[str, Any], own: SelectionConfig) -> SelectionConfig:
    said = told.get("selection")
    given: Any = {"rule": said} if isinstance(said, str) else {} if said is None else said
    if not isinstance(given, Mapping) or set(given) - set(_SELECTION):
        raise DeasError(
            f"option selection {_short(said)}: use a rule's name, or a map of {list(_SELECTION)}"
        )
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if told.get("temperature") is not None:
        values["temperature"] = told["temperature"]
    for name, value in values.items():
        if name in ("rule", "ensemble"):
            if not isinstance(value, str):
                raise DeasError(f"option selection.{name} {_short(value)}: use its name")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DeasError(f"option {name} {_short(value)}: use a number")
        elif not math.isfinite(value):
            raise DeasError(f"option {name} {value}: use a finite number")
    if "temperature" in values and "rule" not in values and own.asks_critic:
        values["rule"] = "softmax" if values["temperature"] > 0 else "best"
    elif values.get("rule") not in (None, "softmax"):
        values.setdefault("temperature", 0.0)  # the bundle's own may be a softmax
    return SelectionOverride(**values).over(own)


def _seeds(told: Any, rows: int, own: int, request: int) -> tuple[int, ...]:
    if told is None:
        return tuple(episode_seed(own, request, row) for row in range(rows))
    if _is_whole(told) and 0 <= told < 2**63:
        return tuple(episode_seed(int(told), 0, row) for row in range(rows))
    fitting = isinstance(told, list) and len(told) == rows
    if fitting and all(_is_whole(seed) and 0 <= seed < 2**63 for seed in told):
        return tuple(told)
    raise DeasError(
        f"option seed {_short(told)}: use a whole number from 0, or one for each of {rows} robots"
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return repr(value)[:60]
