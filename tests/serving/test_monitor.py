"""The stream of values, and how it reads in a terminal."""

import numpy as np
import pytest
from wire_cases import nested

from deas_vla.errors import DeasError
from deas_vla.guidance.watch import WatchConfig
from deas_vla.policies.remote.client import PolicyClient
from deas_vla.serving.deciding import Answer
from deas_vla.serving.monitor import MonitorConfig, Trace, View, bars, follow
from deas_vla.serving.zmq_server import ZmqServer


def answer(value: float) -> Answer:
    one = np.array([value], np.float32)
    chunk = np.zeros((1, 2, 1), np.float32)
    return Answer(chunk, np.zeros(1, np.int64), None, one, one, 0 * one + 0.1, one, None, 1)


def test_episodes_and_sessions_are_kept_apart() -> None:
    trace = Trace()
    for value in (-5, -4):
        trace.add("left", answer(value))
    trace.add("right", answer(-9))
    trace.reset("left")
    trace.add("left", answer(-1))
    found = trace.since(1)
    assert found["next"] == 4
    assert [(r["session"], r["episode"], r["decision"], r["value"]) for r in found["records"]] == [
        ("left", 0, 1, -4),
        ("right", 0, 0, -9),
        ("left", 1, 0, -1),
    ]
    view = View(WatchConfig(done=-2, patience=1))
    view.add(trace.since(0)["records"])
    head, left, right = view.text().splitlines()
    assert "state" in head and "done" in left and "running" in right
    assert left.split()[:3] == ["left", "1", "-1.000"] and left.endswith("▁")


def test_bars_rise_with_values() -> None:
    assert bars([]) == "" and bars([3.0, 3.0]) == "▁▁" and bars([0, 0.5, 1]) in ("▁▄█", "▁▅█")


def test_the_view_follows_a_server(server: ZmqServer) -> None:
    with PolicyClient(port=server.port) as robot:
        robot.reset({"session": "arm"})
        for _ in range(2):
            robot.get_action(nested(1), {"session": "arm", "candidates": 1})
    shown: list[str] = []
    follow(MonitorConfig(port=server.port, every_s=0), shown.append, looks=2)
    assert shown[0] == shown[1] and "arm" in shown[0] and "running" in shown[0]
    with pytest.raises(DeasError, match="no reply"):
        follow(MonitorConfig(port=1, timeout_s=0.05), shown.append, looks=1)
