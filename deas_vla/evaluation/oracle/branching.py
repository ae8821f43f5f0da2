"""What would have become of every candidate: the simulator branched at decision points.

At some decisions of a base policy's episode each of N candidates is executed from the saved state,
followed by the base policy to the end, several times. The k-th continuation has the same noise for
all candidates of a state, so that what differs between them is the candidate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.envs.env import SimEnv
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.planning import Look
from deas_vla.evaluation.engine.workers import RemoteAgent, Trial


@dataclass(frozen=True)
class DecisionPoint:
    """One decision, its N candidates and what became of each in R continuations.

    Attributes:
        plan: How many decisions the episode had had.
        step: And how many steps.
        feature: float32 (F,), what the critic sees of pictures and instruction.
        state: float32 (S,), proprioceptive state.
        candidates: float32 (N, H, A), environment units.
        success: bool (N, R), whether the episode was solved.
        steps: int64 (N, R), steps from the decision to the end.
    """

    plan: int
    step: int
    feature: NDArray[np.float32]
    state: NDArray[np.float32]
    candidates: NDArray[np.float32]
    success: NDArray[np.bool_]
    steps: NDArray[np.int64]


@dataclass(frozen=True)
class BranchEpisode:
    """The work of a job: one base policy's episode, branched at every ``stride``-th decision.

    Attributes:
        candidates: N.
        repeats: R, continuations of each candidate.
        stride: Decisions from one branching point to the next.
        points: Most branching points in an episode.
    """

    candidates: int
    repeats: int
    stride: int
    points: int

    def __call__(self, env: SimEnv, agent: RemoteAgent, trial: Trial) -> list[DecisionPoint]:
        env.reset(trial.seed)
        check_restores(env)
        env.reset(trial.seed)
        found: list[DecisionPoint] = []
        plan = step = 0
        solved = False
        while not solved and step < env.spec.horizon:
            branches = plan % self.stride == 0 and len(found) < self.points
            look = Look(
                env.observe(), trial.seed, plan, self.candidates if branches else 1, keep=branches
            )
            chosen = agent.ask(look)
            executed = len(chosen.actions)
            base = chosen.actions
            if branches:
                found.append(self._branch(env, agent, trial, plan, step, chosen.info, executed))
                base = chosen.info["candidates"][0, :executed]
            solved, taken = _execute(env, base, env.spec.horizon - step)
            step, plan = step + taken, plan + 1
        return found

    def _branch(
        self,
        env: SimEnv,
        agent: RemoteAgent,
        trial: Trial,
        plan: int,
        step: int,
        info: dict[str, Any],
        executed: int,
    ) -> DecisionPoint:
        candidates = info["candidates"]  # (N, H, A)
        shape = (len(candidates), self.repeats)
        success, steps = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
        here = env.save_state()
        for k, repeat in np.ndindex(*shape):
            seed = _continuation_seed(trial.seed, plan, repeat)
            success[k, repeat], steps[k, repeat] = _finish(
                env, agent, seed, candidates[k, :executed], env.spec.horizon - step
            )
            env.restore_state(here)
        return DecisionPoint(plan, step, info["feature"], info["state"], candidates, success, steps)


def _finish(
    env: SimEnv, agent: RemoteAgent, seed: int, chunk: NDArray[np.float32], left: int
) -> tuple[bool, int]:
    """Execute a chunk, then the base policy until the task is solved or ``left`` steps are gone."""
    solved, taken = _execute(env, chunk, left)
    plan = 0
    while not solved and taken < left:
        actions = agent.ask(Look(env.observe(), seed, plan, 1)).actions
        solved, more = _execute(env, actions, left - taken)
        taken, plan = taken + more, plan + 1
    return solved, taken


def _execute(env: SimEnv, actions: NDArray[np.float32], left: int) -> tuple[bool, int]:
    """Run at most ``left`` actions; whether the task was solved, and how many were run."""
    for taken, action in enumerate(actions[:left], 1):
        if env.step(action):
            return True, taken
    return False, min(len(actions), left)


def _continuation_seed(seed: int, plan: int, repeat: int) -> int:
    entropy = (seed, plan, repeat, 1)  # the last apart from the episodes' own seeds
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0]) >> 1


def check_restores(env: SimEnv, steps: int = 6) -> None:
    """Check that a restored simulator goes on bit for bit as it did before.

    Args:
        env: Just reset; moved by this check.
        steps: Random steps before the state is saved, and after.

    Raises:
        DeasError: It does not.
    """
    rng = np.random.default_rng(0)
    moves = rng.uniform(-1, 1, (2 * steps, len(env.spec.action_names))).astype(np.float32)
    for action in moves[:steps]:
        env.step(action)
    here = env.save_state()
    first = list(_trace(env, moves[steps:]))
    env.restore_state(here)
    again = list(_trace(env, moves[steps:]))
    if any(not np.array_equal(a, b) for a, b in zip(first, again, strict=True)):
        raise DeasError(
            f"the simulator of {env.spec.name} does not go on bit for bit from a restored state: "
            "its candidates cannot be compared; use a task of eval/robosuite.py"
        )


def _trace(env: SimEnv, actions: NDArray[np.float32]) -> Iterator[NDArray[Any]]:
    for action in actions:
        env.step(action)
        yield env.observe(images=False).state
        yield from env.privileged().values()


def check_affordable(decisions: int, candidates: int, repeats: int, budget: int) -> None:
    """DeasError where branching asks for more continuations than ``budget`` allows.

    Args:
        decisions: Most decision points in all.
        candidates: N.
        repeats: R.
        budget: Most continuations.
    """
    wanted = decisions * candidates * repeats
    if wanted > budget:
        most = budget // (decisions * repeats)
        remedy = f"--candidates={most}" if most > 1 else "fewer --episodes or --points"
        raise DeasError(
            f"candidates {candidates} at {decisions} decision points, {repeats} times each, are "
            f"{wanted} continuations, above the budget of {budget}: use {remedy}, or a larger "
            "--budget"
        )
