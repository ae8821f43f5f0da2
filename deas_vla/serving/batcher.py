"""Questions that wait together are decided together: a bounded queue, the policy's own thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deas_vla.errors import DeasError
from deas_vla.serving.deciding import Answer, Question

_log = logging.getLogger(__name__)
_GATHER_S = 0.01
Decide = Callable[[Sequence[Question]], list[Answer]]
Done = Callable[[Answer | DeasError], None]


class Busy(DeasError):
    """The queue is full, or the server is about to stop."""


@dataclass
class Counts:
    """What a batcher did: the last latencies in ms from arrival to answer, calls by their rows."""

    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=2048))
    calls: dict[int, int] = field(default_factory=dict)
    answered: int = 0
    failed: int = 0

    def latency(self, percent: float) -> float | None:
        """A percentile of the last latencies, ms; None before the first."""
        recent = list(self.latencies)
        return float(np.percentile(recent, percent)) if recent else None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "answered": self.answered,
            "failed": self.failed,
            "p50_ms": self.latency(50),
            "p95_ms": self.latency(95),
            "calls_by_rows": {str(rows): n for rows, n in sorted(self.calls.items())},
        }


@dataclass(frozen=True)
class _Waiting:
    question: Question
    done: Done
    arrived: float


class Batcher:
    """Runs ``decide`` on one thread, over all questions of one company that wait.

    Args:
        decide: From questions to answers, in their order.
        most_waiting: Questions in the queue; one more is answered with `Busy`.
        most_rows: Observations of one call.
        timeout_s: A question that has waited longer is answered with an error instead.
    """

    def __init__(
        self,
        decide: Decide,
        *,
        most_waiting: int = 32,
        most_rows: int = 16,
        timeout_s: float = 10.0,
    ) -> None:
        self.counts = Counts()
        self.most_rows = most_rows
        self._decide = decide
        self._most_waiting = most_waiting
        self._timeout_s = timeout_s
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._queue)

    def submit(self, question: Question, done: Done) -> None:
        """Queue a question; ``done`` is called once, on the policy's thread.

        Raises:
            Busy: It cannot wait here; ``done`` will not be called.
        """
        with self._changed:
            if self._stopping:
                raise Busy("server is stopping: connect to another")
            if len(self._queue) >= self._most_waiting:
                raise Busy(
                    f"server is busy, {len(self._queue)} requests wait: try again later, or raise "
                    "--queue"
                )
            self._queue.append(_Waiting(question, done, time.monotonic()))
            self._changed.notify()

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Take no more questions, answer those that wait; whether that was done in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether answers may still come."""
        return self._thread.is_alive()

    def _run(self) -> None:
        company = 0
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                self._gather(company)
                group = self._next_group()
            company = len(group)
            self._answer(group)

    def _gather(self, company: int) -> None:
        """Wait a moment for as many questions as the last call had: their robots ask again.

        Without it the first of them to come back would be decided alone, each time. One robot by
        itself is never kept waiting.
        """
        if company > 1 and not self._stopping:
            self._changed.wait_for(lambda: len(self._queue) >= company or self._stopping, _GATHER_S)

    def _next_group(self) -> list[_Waiting]:
        """The oldest question and its company among those that wait; the others stay in order."""
        first = self._queue[0]
        rows = 0
        group: list[_Waiting] = []
        rest: list[_Waiting] = []
        for each in self._queue:
            fits = not group or (
                each.question.company == first.question.company
                and rows + len(each.question.seen) <= self.most_rows
            )
            (group if fits else rest).append(each)
            rows += len(each.question.seen) if fits else 0
        self._queue = deque(rest)
        return group

    def _answer(self, group: list[_Waiting]) -> None:
        now = time.monotonic()
        late = [each for each in group if now - each.arrived > self._timeout_s]
        for each in late:
            self._finish(
                each,
                Busy(f"request waited longer than {self._timeout_s:g} s: the server is too slow"),
            )
        group = [each for each in group if each not in late]
        if not group:
            return
        try:
            answers = self._decide([each.question for each in group])
        except Exception as error:  # the thread outlives whatever one question does to the policy
            if len(group) > 1:  # which of them it was is found by asking alone
                for each in group:
                    self._answer([each])
                return
            if not isinstance(error, DeasError):
                _log.exception("a request failed")
                error = DeasError(f"policy failed ({type(error).__name__}): see the server's log")
            self._finish(group[0], error)
            return
        self.counts.calls[answers[0].rows] = self.counts.calls.get(answers[0].rows, 0) + 1
        for each, answer in zip(group, answers, strict=True):
            self._finish(each, answer)

    def _finish(self, each: _Waiting, answer: Answer | DeasError) -> None:
        if isinstance(answer, DeasError):
            self.counts.failed += 1
        else:
            self.counts.answered += 1
            self.counts.latencies.append(1000 * (time.monotonic() - each.arrived))
        try:
            each.done(answer)
        except Exception:
            _log.exception("an answer could not be handed over")
