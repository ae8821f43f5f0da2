"""From flags to a running server: a bundle, its service, sockets, signals."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deas_vla.bundle import open_bundle
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.agents import blank_batch
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.remote.layout import wire_layout
from deas_vla.serving.config import LOOPBACK, ServeConfig
from deas_vla.serving.service import Service
from deas_vla.serving.zmq_server import ZmqServer

_log = logging.getLogger(__name__)


def make_service(config: ServeConfig, policy: ValueGuidedPolicy) -> Service:
    """The service of a policy, which is made ready for the largest call that may come.

    Raises:
        DeasError: As `ServeConfig.check` and `ValueGuidedPolicy.start`.
    """
    config.check()
    own = policy.config
    own.selection = config.selection.over(own.selection)
    own.speed = config.guidance.over(own.speed)
    own.candidates = config.candidates or own.candidates
    most = config.most_candidates or own.candidates
    if most < own.candidates:
        raise DeasError(
            f"most_candidates {most} are fewer than the {own.candidates} of a request that names "
            f"none: use --candidates={most} with it"
        )
    if config.guidance.warm_every:
        raise DeasError(
            "guidance.warm_every: a server keeps no robot's last chunk to go on from, leave it out"
        )
    own.speed.warm_every = 0  # the bundle's own, likewise
    policy.check_candidates(own.candidates)
    # A budget is of one robot's decision, which a compiled policy fills up to the batch.
    rows = config.batch if own.speed.budget_ms == 0 or own.speed.compile else 1
    most = policy.start(blank_batch(policy.vla, rows), most)
    return Service(
        policy,
        wire_layout(policy.vla.spec, config.modality),
        most_candidates=most,
        most_waiting=config.queue,
        most_rows=config.batch,
        timeout_s=config.timeout_s,
        token=config.token,
        limit=config.max_message_mb * 2**20,
        text_modalities=config.generation == "n1.5",
    )


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM, SIGINT or, where it is allowed, ``kill``; then answer what waits.

    Raises:
        DeasError: What is wrong with bundle, flags, ports or packages.
    """
    config.check()
    policy = open_bundle(config.bundle, device=config.device, base=config.base)
    service = make_service(config, policy)
    server = ZmqServer(service, config.host, config.port)
    if config.allow_kill:
        service.allow_kill(server.stop)
    if config.host not in LOOPBACK and config.token is None:
        _log.warning("everybody who reaches %s may use this policy: give a --token", config.host)
    with stopped_by_signals(server), lerobot_beside(config, service):
        print(f"serving {config.bundle} at {server.endpoint}", flush=True)
        server.run()
    print("server stopped", flush=True)


@contextmanager
def stopped_by_signals(server: ZmqServer) -> Iterator[None]:
    """SIGTERM and SIGINT end the server in order; a second one ends it as they usually do."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        restore()
        server.stop()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


@contextmanager
def lerobot_beside(config: ServeConfig, service: Service) -> Iterator[None]:
    """LeRobot's server while the block runs, where it is asked for."""
    if not config.lerobot.port:
        yield
        return
    from deas_vla.serving.lerobot_server import LeRobotServer

    server = LeRobotServer(service, config.lerobot)
    print(f"LeRobot's robot client: --server_address=127.0.0.1:{server.port}", flush=True)
    server.start()
    try:
        yield
    finally:
        server.stop()


def in_background(server: ZmqServer) -> threading.Thread:
    """Run a server on a thread of this process; ``stop`` it, then join."""
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    return thread
