"""Operations and bytes of a computation, counted while it runs: the same on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from deas_vla.guidance.memory import peak_bytes


@dataclass(frozen=True)
class Count:
    """What a computation takes.

    Attributes:
        operations: Floating-point operations of matrix products and attention, 2 per multiply-add.
        traffic: Bytes that its operations read and write, views left out.
        peak: Most bytes alive at once beside what was there before.
    """

    operations: float
    traffic: float
    peak: float


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            touched = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            self.bytes += sum(x.numel() * x.element_size() for x in touched)
        return out


def count(call: Callable[[], object]) -> Count:
    """Count one run of ``call``; it runs three times."""
    with FlopCounterMode(display=False) as operations:
        call()
    with _Traffic() as traffic:
        call()
    return Count(operations.get_total_flops(), traffic.bytes, peak_bytes(call))
