"""A bundle on robosuite's Lift: what its evaluation, the oracle and collection have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deas_vla.envs.gl import check_gl
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv, lift_spec
from deas_vla.evaluation.engine.trials import paired_trials
from deas_vla.evaluation.engine.workers import Trial
from deas_vla.evaluation.runs import PolicyRun
from deas_vla.guidance.config import SelectionOverride
from deas_vla.guidance.speed import SpeedOverride

if TYPE_CHECKING:  # simulator processes import this file, and LeRobot takes long
    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.guidance.guided import ValueGuidedPolicy

TASK = "Lift"


def make_lift(task: str) -> LiftEnv:
    """The simulator, in any process."""
    return LiftEnv(LiftConfig())


def lift_trials(seeds: Sequence[int], episodes: int, candidates: Sequence[int]) -> list[Trial]:
    """`paired_trials` of Lift: an evaluation seed's episodes are the same in every script."""
    return paired_trials([TASK], seeds, episodes, candidates, per_task=False)


def lift_run(
    launch: "Launch",
    policy: "ValueGuidedPolicy",
    output: Path,
    trials: Sequence[Trial],
    *,
    workers: int,
    batch_size: int,
    **more: Any,
) -> PolicyRun:
    """`PolicyRun.claim` in Lift's simulator; arguments as there."""
    return PolicyRun.claim(
        launch,
        policy,
        LiftConfig(),
        output,
        make_env=make_lift,
        trials=trials,
        workers=workers,
        batch_size=batch_size,
        **more,
    )


def open_on_lift(
    bundle: Path,
    device: str,
    selection: SelectionOverride,
    guidance: SpeedOverride | None = None,
    n_action_steps: int = 0,
) -> "ValueGuidedPolicy":
    """A bundle's policy, after checking that it is of Lift's robot and that pictures can be had.

    Args:
        bundle: Its directory.
        device: Where it runs.
        selection: What replaces parts of its own selection.
        guidance: What replaces parts of its compilation, latency budget and warm starts.
        n_action_steps: Steps executed of a chunk; the bundle's own number when 0.

    Raises:
        DeasError: It cannot be loaded, is of another robot, or no renderer starts.
    """
    from deas_vla.bundle import open_bundle
    from deas_vla.evaluation.engine.agents import check_embodiment

    policy = open_bundle(bundle, device=device, n_action_steps=n_action_steps or None)
    check_embodiment(policy.vla.spec, lift_spec(LiftConfig()), f"bundle {bundle}")
    check_gl()
    policy.config.selection = selection.over(policy.config.selection)
    policy.config.speed = (guidance or SpeedOverride()).over(policy.config.speed)
    return policy
