"""The servers' settings in these tests."""

from typing import Any

from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.remote.layout import wire_layout
from deas_vla.serving.service import Service

TOKEN = "open sesame"


def service_of(policy: ValueGuidedPolicy, **changes: Any) -> Service:
    values: dict[str, Any] = {"most_candidates": 6, "most_rows": 8, "most_waiting": 8}
    return Service(policy, wire_layout(policy.vla.spec), **(values | {"limit": 2**20} | changes))
