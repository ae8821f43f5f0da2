"""pi0 and pi0.5 behind the ``VLA`` protocol."""

from deas_vla.policies.pi0.adapter import Pi0VLA, Pi05VLA

__all__ = ["Pi0VLA", "Pi05VLA"]
