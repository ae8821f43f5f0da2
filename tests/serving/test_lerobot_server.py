"""LeRobot's own, unmodified robot client against our server of its protocol."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_cases import service_of

from deas_vla.errors import DeasError
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.serving.config import LeRobotConfig, ServeConfig
from deas_vla.serving.unpickle import pickled, unpickle

pytest.importorskip("grpc")

CHUNK = 5


@pytest.fixture(scope="module")
def port(policy: ValueGuidedPolicy) -> Iterator[int]:
    from deas_vla.serving.lerobot_server import LeRobotServer

    service = service_of(policy)
    service.batcher.start()
    server = LeRobotServer(service, LeRobotConfig(port=0, unsafe_pickle=True, fps=20))
    server.start()
    yield server.port
    server.stop(0)
    service.batcher.stop()


@pytest.fixture
def make_client(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)  # LeRobot's client writes logs/ where it is imported
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.async_inference.robot_client import RobotClient
    from toy_robot import ToyRobotConfig

    clients = []

    def make(**robot: Any) -> Any:
        client = RobotClient(
            RobotClientConfig(
                policy_type="groot",
                pretrained_name_or_path="whatever/is_served",
                robot=ToyRobotConfig(id="toy", calibration_dir=tmp_path, **robot),
                actions_per_chunk=CHUNK,
                task="lift the red cube",
                server_address=f"127.0.0.1:{port}",
                fps=20,
            )
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.stop()


def test_lerobots_client_drives_a_robot(make_client: Any) -> None:
    """Its own threads: it sends pictures, gets chunks, executes them, and asks again."""
    client = make_client()
    assert client.start()
    receiving = threading.Thread(target=client.receive_actions, daemon=True)
    driving = threading.Thread(target=client.control_loop, args=("lift the red cube",), daemon=True)
    receiving.start()
    driving.start()
    until = time.monotonic() + 60
    while len(client.robot.actions) <= CHUNK and time.monotonic() < until:
        time.sleep(0.02)
    client.shutdown_event.set()
    driving.join(10)
    receiving.join(10)
    assert len(client.robot.actions) > CHUNK  # more than one chunk
    assert all(len(a) == 7 and np.isfinite(list(a.values())).all() for a in client.robot.actions)


def test_a_robot_of_other_sensors_is_told(
    make_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(eyes=("agentview", "left"))
    assert not client.start()
    assert "robot has no camera observation.images.eye_in_hand" in caplog.text


def test_what_is_no_message_of_lerobots_is_refused(port: int) -> None:
    import grpc
    from lerobot.transport import services_pb2, services_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        harmful = b"cposix\nsystem\n(S'touch harm'\ntR."
        for data, said in ((harmful, "names posix.system"), (b"\x80\x04garbage", "no pickle")):
            with pytest.raises(grpc.RpcError) as caught:
                stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert said in caught.value.details()
        end = services_pb2.TransferState.TRANSFER_END
        huge = [services_pb2.Observation(transfer_state=end, data=b"x" * (2**20 + 1))]
        with pytest.raises(grpc.RpcError, match="message has more than 1048576 bytes"):
            stub.SendObservations(iter(huge))
        assert not Path("harm").exists()


def test_arrays_come_through_the_unpickler_and_nothing_else() -> None:
    values = {
        "picture": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],
        "joint": np.float32(0.25),
        "text": ["a", 1, None],
    }
    found = unpickle(pickled(values))
    np.testing.assert_array_equal(found["picture"], values["picture"])
    assert found["joint"] == np.float32(0.25) and found["text"] == values["text"]
    for raw in (
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfrombuffer\n(S'x'\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I999999999999\ntS'b'\ntR.",
        b"Pid\n.",
    ):
        with pytest.raises(DeasError, match="refused"):
            unpickle(raw)


def test_pickles_are_asked_for_and_ports_are_told(port: int, policy: ValueGuidedPolicy) -> None:
    from deas_vla.serving.lerobot_server import LeRobotServer

    with pytest.raises(DeasError, match=r"made of pickles; say --lerobot.unsafe_pickle=true"):
        ServeConfig(lerobot=LeRobotConfig(port=8080)).check()
    with pytest.raises(DeasError, match=rf"port {port} on 127.0.0.1 is in use"):
        LeRobotServer(service_of(policy), LeRobotConfig(port=port, unsafe_pickle=True))
