"""Where LeRobot's factory looks for the policy of ``configuration_guided``."""

from deas_vla.guidance.guided import ValueGuidedPolicy

__all__ = ["ValueGuidedPolicy"]
