"""Messages that a server must refuse, made from a seed: bytes, structures, arrays, options."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from wire_cases import CAMERAS, GROUPS, flat, nested, npy

from deas_vla.policies.remote.wire import pack

JUNK: list[Any] = [
    None,
    True,
    -1,
    3.5,
    float("inf"),
    "",
    "x" * 5000,
    b"\x00\xff",
    [],
    [[1], {"a": None}],
    {},
    {"__ndarray_class__": True},
    {"__ndarray_class__": True, "as_npy": "text"},
    {"__ndarray_class__": True, "as_npy": b"PK\x03\x04 a zip"},
    npy(np.zeros(0, np.float32)),
    npy(np.zeros((2, 2, 2), np.int8)),
    npy(np.full((1, 1, 3), np.nan)),
]


def malformed(seed: int, count: int, limit: int) -> Iterator[bytes]:
    """``count`` messages, each of them certain to be wrong."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[np.random.Generator], bytes]] = [
        _garbage,
        _cut,
        _surplus,
        _claims,
        _broken_part,
        _broken_array,
        _broken_options,
        _broken_envelope,
    ]
    yield b"\xc4" + b"\x00" * limit
    for number in range(count - 1):
        yield kinds[number % len(kinds)](rng)


def _valid(rng: np.random.Generator) -> dict[str, Any]:
    look = nested(int(rng.integers(4)))
    observation = flat(look) if rng.random() < 0.3 else look
    return {"endpoint": "get_action", "data": {"observation": observation, "options": {}}}


def _pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _garbage(rng: np.random.Generator) -> bytes:
    return b"\xc1" + rng.bytes(int(rng.integers(300)))  # a byte that msgpack never uses


def _cut(rng: np.random.Generator) -> bytes:
    raw = pack(_valid(rng))
    return raw[: int(rng.integers(len(raw)))]


def _surplus(rng: np.random.Generator) -> bytes:
    return pack(_valid(rng)) + rng.bytes(int(rng.integers(1, 50)))


def _claims(rng: np.random.Generator) -> bytes:
    """A few bytes that ask for a lot of memory or depth."""
    return _pick(
        rng,
        [
            b"\x91" * int(rng.integers(600, 6000)),
            b"\xdd\xff\xff\xff\xff" * int(rng.integers(1, 200)),
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\xdd\x00\x01\x00\x00" + b"\xc0" * 65536,
        ],
    )


def _broken_part(rng: np.random.Generator) -> bytes:
    request = _valid(rng)
    look = nested(0)
    modality = _pick(rng, ["video", "state", "language"])
    names = {"video": list(CAMERAS), "state": list(GROUPS), "language": ["task"]}[modality]
    name = _pick(rng, names)
    if rng.random() < 0.2:
        del look[modality][name]
    else:
        wrong = [junk for junk in JUNK if not (modality == "language" and junk == "")]
        look[modality][name] = _pick(rng, wrong)
    request["data"]["observation"] = flat_or_nested(look, rng)
    return pack(request)


def flat_or_nested(look: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.5:
        return look
    return {f"{kind}.{name}": value for kind in look for name, value in look[kind].items()}


def _broken_array(rng: np.random.Generator) -> bytes:
    """A picture whose header lies."""
    request = copy.deepcopy(_valid(rng))
    request["data"]["observation"] = look = nested(1)
    raw = npy(look["video"]["agentview"])["as_npy"]
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (1, 1, 64, 64, 3)}
    described |= _pick(
        rng,
        [
            {"shape": (10**12,)},
            {"shape": (-1, 4)},
            {"descr": "|O"},
            {"descr": "<U0"},
            {"descr": [("a", "<f4")]},
            {"shape": (0,) * 40},
            {"descr": "<M8[ns]"},
        ],
    )
    np.lib.format.write_array_header_1_0(header, described)
    raw = _pick(
        rng,
        [
            header.getvalue() + raw[128:],
            raw[: int(rng.integers(len(raw)))],
            raw[:6] + bytes([9, 9]) + raw[8:],
            raw[:10] + rng.bytes(60) + raw[70:],
            b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535,
        ],
    )
    look["video"]["agentview"] = {"__ndarray_class__": True, "as_npy": raw}
    return pack(request)


def _broken_options(rng: np.random.Generator) -> bytes:
    request = _valid(rng)
    wrong: list[Any] = [
        "best",
        [1],
        {"candidates": _pick(rng, [0, -3, 10**9, 2.5, "many", [2], {}])},
        {"temperature": _pick(rng, [-1.0, float("nan"), "hot", [1], {}])},
        {"seed": _pick(rng, [-1, 2**64 - 1, 1.5, "x", [1, 2], [None], {}])},
        {"selection": _pick(rng, ["luck", 5, {"rule": "luck"}, {"x": 1}, {"kappa": -1}, []])},
        {"plan": _pick(rng, [-1, 2**60, "a"])},
        {"return_candidates": _pick(rng, [1, "yes", []])},
        {"session": _pick(rng, [1, "x" * 81, {}])},
        {"embodiment": _pick(rng, ["gr1", 3, []])},
        {str(rng.bytes(4).hex()): 1},
    ]
    request["data"]["options"] = _pick(rng, wrong)
    return pack(request)


def _broken_envelope(rng: np.random.Generator) -> bytes:
    return pack(
        _pick(
            rng,
            [
                [1, 2, 3],
                "ping",
                7,
                None,
                {
                    "endpoint": _pick(
                        rng, ["", "kill", "eval", 3, None, ["ping"], {"a": 1}, "x" * 99]
                    )
                },
                {"endpoint": "get_action"},
                {"endpoint": "get_action", "data": _pick(rng, [None, [], "x", 3, {}])},
                {"data": {"observation": _pick(rng, [None, [], "x", 3, {}, {"video": 3}])}},
                {"data": {"observation": nested(0), "surplus": 1}},
            ],
        )
    )
