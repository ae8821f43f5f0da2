"""Messages of NVIDIA's GR00T policy server: plain msgpack, arrays as ``numpy.save`` writes them.

Everything is checked before memory is asked for: what comes from a network may claim any size.
Nothing here can run code: arrays of Python objects are refused both ways.
"""

import io
import json
import math
import tokenize
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError

ARRAY = "__ndarray_class__"
MODALITY = "__ModalityConfig_class__"
MAX_MESSAGE_BYTES = 64 * 2**20
_MOST_ITEMS = 4096  # of one list or map: numbers travel in arrays
# What numpy's reader of headers, which parses them as Python literals, answers to nonsense.
_BAD_HEADER = (
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_KINDS = "biufUS"  # bool, integers, floats, text; no objects, dates or records


class MessageError(DeasError):
    """Bytes that are no message of this protocol."""


def pack(message: Any) -> bytes:
    """A message as bytes.

    Args:
        message: Maps with string keys, lists, strings, numbers, None, numpy arrays and scalars.

    Raises:
        DeasError: It holds anything else.
    """
    import msgpack

    try:
        packed: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise DeasError(
            f"message cannot be sent ({error}): use numpy arrays, strings, numbers, lists and maps"
        ) from None
    return packed


def unpack(raw: bytes, limit: int = MAX_MESSAGE_BYTES) -> Any:
    """The message in ``raw``, arrays as writable numpy arrays.

    Raises:
        MessageError: More than ``limit`` bytes, no msgpack, or an array that is not what it says.
    """
    import msgpack

    if len(raw) > limit:
        raise MessageError(
            f"message has {len(raw)} bytes, at most {limit} are taken: send smaller pictures, or "
            "raise --max_message_mb on the server"
        )
    try:
        return msgpack.unpackb(
            raw, object_hook=_decode, max_array_len=_MOST_ITEMS, max_map_len=_MOST_ITEMS
        )
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise MessageError(f"message is not msgpack ({said}): speak GR00T's protocol") from None


def modality_config(keys: list[str], steps: list[int], *, text: bool) -> dict[str, Any]:
    """One entry of ``get_modality_config``.

    Args:
        keys: Names within the modality.
        steps: Time steps of an observation or chunk, relative to now.
        text: As N1.5's clients read it (JSON text), else as N1.6's and N1.7's (a map).
    """
    values = {"delta_indices": steps, "modality_keys": keys}
    return {MODALITY: True, "as_json": json.dumps(values) if text else values}


def read_array(raw: bytes) -> NDArray[Any]:
    """An array that ``numpy.save`` wrote.

    Raises:
        MessageError: Anything else, objects among it, or another size than its header says.
    """
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, column_major, dtype = read(stream)
    except _BAD_HEADER as error:
        said = " ".join(str(error).split())[:80]
        raise MessageError(f"array is not what numpy.save writes ({said}): send numpy's") from None
    start = stream.tell()
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise MessageError(f"array has dtype {dtype}: send booleans, numbers or text")
    if len(shape) > 8 or min(shape, default=0) < 0:
        raise MessageError(f"array has shape {shape}: send at most 8 dimensions")
    size = math.prod(shape) * dtype.itemsize
    if size != len(raw) - start:
        raise MessageError(
            f"array says {shape} of {dtype}, {size} bytes, and carries {len(raw) - start}"
        )
    flat = np.frombuffer(raw, dtype, offset=start) if size else np.zeros(0, dtype)
    return flat.reshape(shape, order="F" if column_major else "C").copy()


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"array of dtype {value.dtype}")
        stream = io.BytesIO()
        np.save(stream, value, allow_pickle=False)
        return {ARRAY: True, "as_npy": stream.getvalue()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"value of type {type(value).__name__}")


def _decode(value: Mapping[str, Any]) -> Any:
    if ARRAY in value:
        raw = value.get("as_npy")
        if not isinstance(raw, bytes):
            raise MessageError("array without its bytes (as_npy): send what numpy.save writes")
        return read_array(raw)
    return value
