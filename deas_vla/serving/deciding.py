"""Questions of several clients, decided in one call of the policy."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.guidance.judging import judge
from deas_vla.guidance.noise import CandidateNoise
from deas_vla.serving.observations import Seen
from deas_vla.serving.options import Options

Floats = NDArray[np.float32]
_KEPT_LENGTHS = 1024  # instructions whose number of tokens is remembered


@dataclass(frozen=True)
class Question:
    """B observations of one request, and how they are to be decided."""

    seen: Seen
    options: Options

    @property
    def company(self) -> Hashable:
        """Questions with the same may share a call."""
        rule = self.options.selection
        return (
            self.options.candidates,
            (rule.rule, rule.temperature, rule.ensemble, rule.kappa),
            self.seen.shapes,
        )


@dataclass(frozen=True)
class Answer:
    """What was decided for B observations.

    Attributes:
        chunk: float32 (B, H, A), environment units.
        chosen: int64 (B,).
        scores: float32 (B, N) of the candidates, or None where no critic was asked.
        q: float32 (B,) of the chosen chunk, the smallest member's; None without a critic.
        value: float32 (B,), V of the observation; None without a critic.
        disagreement: float32 (B,), standard deviation of the members' Q of the chosen chunk.
        distance: float32 (B,), of the observation from the training data: 1 is an ordinary one.
        candidates: float32 (B, N, H, A), where they were asked for.
        rows: Observations that the policy's call decided, whosever they were.
    """

    chunk: Floats
    chosen: NDArray[np.int64]
    scores: Floats | None
    q: Floats | None
    value: Floats | None
    disagreement: Floats | None
    distance: Floats | None
    candidates: Floats | None
    rows: int


class Decider:
    """The policy, asked for questions of one company at once.

    Each row has its own instruction and its own noise, which depends on its seed and plan alone.
    Rows whose instructions have the same number of tokens share a call. Others do not: GR00T's
    action head attends to the padding of a shorter instruction (LeRobot's class gives its
    self-attention over the tokens no mask), and the chunk would depend on the company.

    Args:
        policy: In evaluation mode.
        fill: Rows that a call is filled up to, by repeating the last: a compiled policy has one
            graph for each number of them.
    """

    def __init__(self, policy: ValueGuidedPolicy, fill: int = 0) -> None:
        self._policy = policy
        self._fill = fill
        self._lengths: OrderedDict[str, int] = OrderedDict()

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions, which are of one company."""
        rows = [_Row(question, row) for question in questions for row in range(len(question.seen))]
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(self._length(row), []).append(number)
        decided: dict[int, Answer] = {}
        for numbers in groups.values():
            decided |= zip(numbers, self._decide([rows[n] for n in numbers]), strict=True)
        answers, at = [], 0
        for question in questions:
            part = [decided[n] for n in range(at, at + len(question.seen))]
            at += len(part)
            answers.append(_joined(part))
        return answers

    def _length(self, row: "_Row") -> int:
        """Tokens of an observation with this instruction, found out once."""
        found = self._lengths.get(row.task)
        if found is None:
            encoding = self._policy.vla.encode(_batch([row]))
            found = self._lengths[row.task] = encoding.attention_mask.shape[1]
            while len(self._lengths) > _KEPT_LENGTHS:
                self._lengths.popitem(last=False)
        return found

    def _decide(self, rows: Sequence["_Row"]) -> list[Answer]:
        """One call; an answer of one observation for each row."""
        filled = [*rows, *[rows[-1]] * max(0, self._fill - len(rows))]
        options = rows[0].question.options
        streams = CandidateNoise(
            [row.question.options.seeds[row.number] for row in filled],
            [row.question.options.plan for row in filled],
        )
        decision = self._policy.decide(
            _batch(filled), streams, options.candidates, selection=options.selection
        )
        opinion = judge(self._policy, decision)
        value, members, distance = opinion or (None, None, None)
        chunk, candidates = _numbers(decision.chunk), _numbers(decision.candidates)
        return [
            Answer(
                chunk=chunk[k : k + 1],
                chosen=decision.chosen[k : k + 1].cpu().numpy(),
                scores=None if decision.scores is None else _numbers(decision.scores[k : k + 1]),
                q=None if members is None else _numbers(members[:, k : k + 1].amin(0)),
                value=None if value is None else _numbers(value[k : k + 1]),
                disagreement=(
                    None
                    if members is None
                    else _numbers(members[:, k : k + 1].std(0, correction=0))
                ),
                distance=None if distance is None else _numbers(distance[k : k + 1]),
                candidates=candidates[k : k + 1] if row.question.options.keep else None,
                rows=len(rows),
            )
            for k, row in enumerate(rows)
        ]


@dataclass(frozen=True)
class _Row:
    """One observation of a question."""

    question: Question
    number: int

    @property
    def task(self) -> str:
        return self.question.seen.tasks[self.number]


def _batch(rows: Sequence[_Row]) -> dict[str, Any]:
    """As a LeRobot batch: pictures uint8 (B, C, H, W), state float32 (B, S)."""
    batch: dict[str, Any] = {
        key: torch.from_numpy(np.stack([r.question.seen.images[key][r.number] for r in rows]))
        .permute(0, 3, 1, 2)
        for key in rows[0].question.seen.images
    }  # fmt: skip
    state = np.stack([row.question.seen.state[row.number] for row in rows])
    return {**batch, "observation.state": torch.from_numpy(state), "task": [r.task for r in rows]}


def _joined(part: Sequence[Answer]) -> Answer:
    """The answers of a question's rows as one."""
    columns: dict[str, Any] = {}
    names = ("chunk", "chosen", "scores", "q", "value", "disagreement", "distance", "candidates")
    for name in names:
        values = [getattr(answer, name) for answer in part]
        columns[name] = None if values[0] is None else np.concatenate(values)
    return Answer(**columns, rows=max(answer.rows for answer in part))


def _numbers(values: Tensor) -> Floats:
    found: Floats = values.detach().float().cpu().numpy()
    return found
