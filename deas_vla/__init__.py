"""Value-guided GR00T-style policies: DEAS critics over a policy's own frozen features."""

__version__ = "0.1.0"
