"""One policy for all servers of these tests, made of the tiny bundle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_cases import service_of

from deas_vla.bundle import open_bundle
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.serving.running import in_background
from deas_vla.serving.service import Service
from deas_vla.serving.zmq_server import ZmqServer


@pytest.fixture(scope="session")
def policy(bundle: Path) -> ValueGuidedPolicy:
    policy = open_bundle(bundle)
    policy.config.candidates = 2
    return policy


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Server, policy and clients share few cores: threads that wait for each other are slow."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def service(policy: ValueGuidedPolicy) -> Iterator[Service]:
    """Without a socket; its policy's thread runs."""
    pytest.importorskip("msgpack")
    made = service_of(policy)
    made.batcher.start()
    yield made
    assert made.batcher.stop()


@pytest.fixture
def server(policy: ValueGuidedPolicy) -> Iterator[ZmqServer]:
    """On a free port of the loopback address."""
    pytest.importorskip("msgpack")
    pytest.importorskip("zmq")
    made = ZmqServer(service_of(policy), port=0)
    thread = in_background(made)
    yield made
    made.stop()
    thread.join(30)
    assert not thread.is_alive()
