"""What SmolVLA, pi0 and pi0.5 share: a prefix that is read once, and an action expert over it."""

from deas_vla.policies.prefix.adapter import PrefixVLA

__all__ = ["PrefixVLA"]
