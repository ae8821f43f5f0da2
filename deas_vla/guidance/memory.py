"""How many candidates fit in memory, found out before they are tried."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deas_vla.errors import DeasError

_FEW, _MORE = 2, 4  # candidates that the slope is measured between; one takes another path
_SHARE = 0.9  # of the free memory that may be planned with


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make; ``peak`` is the most alive at once.

    Within it operations run one by one, compiled ones too. What a kernel allocates inside itself is
    not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # a view, or written in place
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that ``call`` has alive at once, beside what was there before."""
    with PeakBytes() as counter:
        call()
    return counter.peak


def bytes_per_candidate(decide: Callable[[int], object]) -> tuple[float, float]:
    """(bytes of a decision whatever N is, bytes of each candidate), by running small ones.

    Args:
        decide: Takes N and decides among so many candidates, of an observation that is encoded
            already: what the backbone takes would hide what they do.
    """
    few, more = peak_bytes(partial(decide, _FEW)), peak_bytes(partial(decide, _MORE))
    each = (more - few) / (_MORE - _FEW)
    return few - _FEW * each, each


def check_memory(
    decide: Callable[[int], object], candidates: int, free: int | None
) -> tuple[float, float]:
    """DeasError, with the number that fits, where N candidates do not fit in memory.

    Args:
        decide: As for `bytes_per_candidate`, whose result is returned.
        candidates: N.
        free: Bytes, as `free_bytes` has it; None where nobody knows, and nothing is refused.
    """
    fixed, each = bytes_per_candidate(decide)
    needed = fixed + candidates * each
    if free is not None and needed > _SHARE * free:
        most = max(int((_SHARE * free - fixed) // max(each, 1)), 1)
        raise DeasError(
            f"candidates {candidates} need {needed / 1e9:.3g} GB beside the weights, "
            f"{free / 1e9:.3g} GB are free: use at most {most}"
        )
    return fixed, each


def free_bytes(device: torch.device) -> int | None:
    """Memory that is left on a GPU, or to this process on the host; None where nobody knows."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    lines = _read("/proc/meminfo").splitlines()
    rows = (line.split() for line in lines if line.startswith("MemAvailable:"))
    free = next((1024 * int(row[1]) for row in rows), None)
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if free is not None and limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return free


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
