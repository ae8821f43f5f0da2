"""LeRobot's pickles, read without running what they say.

A pickle names functions and calls them. This one may name six classes that only hold data, and
numpy's three ways to make an array or a number; anything else ends the reading.
"""

import io
import pickle
from typing import Any

import numpy as np

from deas_vla.errors import DeasError

_HELPERS = "lerobot.async_inference.helpers"
_LEROBOT = {
    (_HELPERS, "RemotePolicyConfig"),
    (_HELPERS, "TimedObservation"),
    ("lerobot.configs.types", "PolicyFeature"),
    ("lerobot.configs.types", "FeatureType"),
}
_NUMPY = {"ndarray": np.ndarray, "dtype": np.dtype}


def unpickle(raw: bytes) -> Any:
    """The object in ``raw``: LeRobot's messages, numpy arrays and plain Python values.

    Raises:
        DeasError: No pickle, or one that names anything else.
    """
    try:
        return _Unpickler(io.BytesIO(raw)).load()
    except DeasError:
        raise
    except Exception as error:  # whatever a broken pickle runs into
        raise DeasError(
            f"message is no pickle of LeRobot's client ({type(error).__name__}): use LeRobot 0.6"
        ) from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _LEROBOT:
            return super().find_class(module, name)
        if module == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if module.startswith(("numpy.core.", "numpy._core.")) and name in _MAKERS:
            return _MAKERS[name]
        raise DeasError(
            f"message names {module[:60]}.{name[:60]}, and LeRobot's client does not: refused"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DeasError("message refers to something outside itself: refused")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """An empty array, which its state then fills: pickles of numpy ask for no other."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise DeasError("message holds an array of another class or size than numpy's: refused")
    return np.ndarray((0,), np.int8)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any, *more: Any) -> Any:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(raw) != dtype.itemsize:
        raise DeasError("message holds a number that is none of numpy's: refused")
    return np.frombuffer(raw, dtype)[0]


_MAKERS = {"_reconstruct": _reconstruct, "_frombuffer": _frombuffer, "scalar": _scalar}


def pickled(value: Any) -> bytes:
    """What LeRobot's client reads."""
    return pickle.dumps(value)
