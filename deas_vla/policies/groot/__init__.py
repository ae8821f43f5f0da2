"""GR00T N1.7 behind the ``VLA`` protocol."""

from deas_vla.policies.groot.adapter import GrootVLA
from deas_vla.policies.places import checkpoint_directory

__all__ = ["GrootVLA", "checkpoint_directory"]
