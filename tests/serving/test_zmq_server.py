"""The server over a real socket: clients that come and go, two at once, signals, ports."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_cases import TOKEN, service_of
from wire_cases import flat, nested

from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.remote.client import PolicyClient
from deas_vla.policies.remote.wire import pack, unpack
from deas_vla.serving.running import in_background
from deas_vla.serving.zmq_server import ZmqServer

REQUEST = {"endpoint": "get_action", "data": {"observation": nested(1), "options": {"seed": 4}}}


def test_a_client_of_either_generation(server: ZmqServer) -> None:
    with PolicyClient(port=server.port) as robot:
        assert robot.ping()["model"] == "groot_nano"
        assert robot.get_modality_config()["video"]["modality_keys"] == ["agentview", "eye_in_hand"]
        assert robot.reset() == {}
        action, info = robot.get_action(nested(1), {"seed": 4})
        assert action["eef_delta"].shape == (1, 16, 6) and info["seeds"] == [4]
        with pytest.raises(DeasError, match=r"answered: observation lacks video\.agentview"):
            robot.get_action(nested(1) | {"video": {}})
        robot.get_action(nested(1))  # the connection is still good
    with PolicyClient(port=server.port, generation="n1.5") as old:
        action, info = old.get_action(flat(nested(1), robots=False))
        assert action["action.gripper"].shape == (16, 1) and info == {}
        with pytest.raises(DeasError, match=r"options with generation n1\.5"):
            old.get_action(flat(nested(1)), {"seed": 1})


def test_a_client_vanishes_another_reconnects_a_third_asks_twice(server: ZmqServer) -> None:
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context:
        for _ in range(3):
            gone = context.socket(zmq.REQ)
            gone.linger = 0
            gone.connect(f"tcp://127.0.0.1:{server.port}")
            gone.send(pack(REQUEST))
            time.sleep(0.02)
            gone.close()
        with context.socket(zmq.DEALER) as eager:
            eager.linger = 0
            eager.connect(f"tcp://127.0.0.1:{server.port}")
            for _ in range(2):
                eager.send_multipart([b"", pack(REQUEST)])
            replies = []
            for _ in range(2):
                assert eager.poll(30000)
                replies.append(unpack(eager.recv_multipart()[-1]))
        np.testing.assert_allclose(replies[0][0]["gripper"], replies[1][0]["gripper"], atol=1e-5)
    with PolicyClient(port=server.port) as robot:
        robot.ping()
        robot.close()
        assert robot.ping()["status"] == "ok"


def test_a_message_far_too_large_costs_the_client_alone(server: ZmqServer) -> None:
    with PolicyClient(port=server.port, timeout_s=0.3) as greedy:
        with pytest.raises(DeasError, match="at most 1048576 are taken"):
            greedy.call("get_action", {"observation": b"x" * (2**20 + 1)})
        with pytest.raises(DeasError, match="no reply"):
            greedy.call("get_action", {"observation": b"x" * (5 * 2**20)})
        assert greedy.ping()["status"] == "ok"


def test_stopping_answers_what_waits(policy: ValueGuidedPolicy) -> None:
    """Requests that came before the stop get actions, and the port is free again."""
    pytest.importorskip("zmq")
    server = ZmqServer(service_of(policy), port=0)
    thread = in_background(server)
    found: dict[int, Any] = {}

    def robot(number: int) -> None:
        with PolicyClient(port=server.port) as client:
            found[number] = client.get_action(nested(number))

    robots = [threading.Thread(target=robot, args=(k,)) for k in range(4)]
    for each in robots:
        each.start()
    while server.service.batcher.counts.answered == 0:
        time.sleep(0.001)
    server.stop()
    thread.join(30)
    for each in robots:
        each.join(30)
    assert not thread.is_alive() and len(found) == 4
    ZmqServer(service_of(policy), port=server.port)._socket.close(linger=0)


def test_mistakes_are_one_line_on_the_clients_side(server: ZmqServer) -> None:
    with pytest.raises(DeasError, match=rf"port {server.port} on 127.0.0.1 is in use"):
        ZmqServer(server.service, port=server.port)
    with pytest.raises(DeasError, match=r"cannot listen on 192\.0\.2\.1"):
        ZmqServer(server.service, host="192.0.2.1", port=server.port)
    with pytest.raises(DeasError, match="generation 'n2' is unknown"):
        PolicyClient(generation="n2")
    closed = PolicyClient(port=1, timeout_s=0.05)
    with closed, pytest.raises(DeasError, match=r"no reply from tcp://127.0.0.1:1 within 0.05 s"):
        closed.ping()


@pytest.fixture
def foreign() -> Any:
    """A server of another's: answers each message with the next of its replies."""
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        replies: list[bytes] = []

        def answer() -> None:
            for _ in range(len(replies)):
                socket.recv()
                socket.send(replies.pop(0))

        yield port, replies, answer


@pytest.mark.parametrize(
    ("generation", "reply", "said"),
    [
        ("n1.7", pack({"action.x": np.zeros((16, 1))}), "as GR00T N1.5 does"),
        ("n1.7", pack({"error": "'observation'"}), "if this server is of GR00T N1.5"),
        ("n1.5", pack([{}, {}]), "as GR00T N1.6 and N1.7 do: use generation='n1.7'"),
        ("n1.7", b"ERROR", "server at tcp://127.0.0.1:"),
        ("n1.7", pack([1]), r"no \[action, info\]"),
    ],
)
def test_a_server_of_another_generation(
    foreign: Any, generation: str, reply: bytes, said: str
) -> None:
    port, replies, answer = foreign
    replies.append(reply)
    thread = threading.Thread(target=answer)
    thread.start()
    client = PolicyClient(port=port, generation=generation, timeout_s=5)
    with client, pytest.raises(DeasError, match=said):
        client.get_action({})
    thread.join(5)


@pytest.mark.slow
def test_the_command_serves_drains_on_sigterm_and_ends(bundle: Path, repo_root: Path) -> None:
    zmq = pytest.importorskip("zmq")
    command = [
        *(sys.executable, "-m", "deas_vla.serve", f"--bundle={bundle}", "--port=0"),
        *("--candidates=2", "--batch=2", f"--token={TOKEN}"),
    ]
    path = os.pathsep.join([str(repo_root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, cwd=repo_root, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if line.startswith("serving "))
        port = int(line.rsplit(":", 1)[1])
        with PolicyClient(port=port, token=TOKEN, timeout_s=60) as robot:
            robot.get_action(nested(1))
        stranger = PolicyClient(port=port, timeout_s=60)
        with stranger, pytest.raises(DeasError, match="Invalid API token"):
            stranger.ping()
        with zmq.Context() as context, context.socket(zmq.DEALER) as eager:
            eager.linger = 0
            eager.connect(f"tcp://127.0.0.1:{port}")
            for _ in range(4):
                eager.send_multipart([b"", pack(REQUEST | {"api_token": TOKEN})])
            assert eager.poll(60000)  # the first is answered, others wait
            server.send_signal(signal.SIGTERM)
            for _ in range(4):
                assert eager.poll(60000)
                assert isinstance(unpack(eager.recv_multipart()[-1]), list)
        assert server.wait(60) == 0 and "server stopped" in server.stdout.read()
    finally:
        server.kill()
        server.wait()
