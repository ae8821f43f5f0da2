"""Messages that are wrong: each gets its error, and the server lives."""

import numpy as np
import pytest
from malformed_cases import malformed
from wire_cases import ask, exchange, nested

from deas_vla.policies.remote.wire import unpack
from deas_vla.serving.service import Service
from deas_vla.serving.zmq_server import ZmqServer


def test_each_of_2400_malformed_messages_gets_an_error(service: Service) -> None:
    for number, raw in enumerate(malformed(0, 2400, service.limit)):
        reply = unpack(exchange(service, raw, timeout=5))
        assert isinstance(reply, dict) and reply["error"], (number, raw[:80])
        assert "\n" not in reply["error"] and len(reply["error"]) < 500, (number, reply)
    assert service.batcher.counts.answered == service.batcher.counts.failed == 0
    request = {"data": {"observation": nested(0), "options": {"seed": 1}}}
    assert np.isfinite(ask(service, request)[1]["q"]).all()


def test_the_same_over_a_socket_in_any_envelope(server: ZmqServer) -> None:
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context, context.socket(zmq.DEALER) as robot:
        robot.linger = 0
        robot.connect(f"tcp://127.0.0.1:{server.port}")
        for number, raw in enumerate(malformed(1, 96, server.service.limit)):
            envelope = [[b""], [], [b"", b""]][number % 3]
            robot.send_multipart([*envelope, raw])
            assert robot.poll(5000), number
            assert unpack(robot.recv_multipart()[-1])["error"]
        robot.send_multipart([b""])
        assert robot.poll(5000) and unpack(robot.recv_multipart()[-1])["error"]
