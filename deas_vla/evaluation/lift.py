"""A bundle on robosuite's Lift: what its evaluation, the oracle and collection have in common."""

from pathlib import Path
from typing import TYPE_CHECKING

from deas_vla.envs.gl import check_gl
from deas_vla.envs.robosuite.lift import LiftConfig, LiftEnv, lift_spec
from deas_vla.guidance.config import SelectionOverride

if TYPE_CHECKING:  # simulator processes import this file, and LeRobot takes long
    from deas_vla.guidance.guided import ValueGuidedPolicy

TASK = "Lift"
ROBOT_TYPE = "Panda"


def make_lift(task: str) -> LiftEnv:
    """The simulator, in any process."""
    return LiftEnv(LiftConfig())


def open_on_lift(
    bundle: Path, device: str, selection: SelectionOverride, n_action_steps: int = 0
) -> "ValueGuidedPolicy":
    """A bundle's policy, after checking that it is of Lift's robot and that pictures can be had.

    Args:
        bundle: Its directory.
        device: Where it runs.
        selection: What replaces parts of its own selection.
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
    return policy
