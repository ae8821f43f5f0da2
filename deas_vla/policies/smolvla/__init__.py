"""SmolVLA behind the ``VLA`` protocol."""

from deas_vla.policies.smolvla.adapter import SmolVLA

__all__ = ["SmolVLA"]
