"""The socket: ZeroMQ's ROUTER, which clients of a REQ or DEALER socket reach and may leave."""

import logging
import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from deas_vla.errors import DeasError
from deas_vla.policies.remote.client import require_zmq
from deas_vla.serving.service import Service

_log = logging.getLogger(__name__)
_DRAIN_S = 60.0  # for requests that wait when the server is told to stop
_LINGER_MS = 2000  # for replies on their way when the server ends


class ZmqServer:
    """Listens for a `Service`.

    ``run`` owns the socket; ``stop`` may be called from any thread and from a signal handler.
    A client that vanished costs nothing: its reply is dropped. One that sends more than four times
    the service's limit is cut off while it sends; up to there it is told.

    Args:
        service: Its batcher is started and stopped by :meth:`run`.
        host: Address to listen on.
        port: 0 takes a free one; see ``port``.

    Raises:
        DeasError: The port is in use, the address is not this machine's, or no pyzmq.
    """

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 5555) -> None:
        zmq = require_zmq()
        self.service = service
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = _LINGER_MS
        self._socket.setsockopt(zmq.MAXMSGSIZE, 4 * service.limit)
        self._socket.setsockopt(zmq.RCVHWM, 16)  # messages of one client that wait unread
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            self._context.term()
            raise DeasError(_bind_failure(host, port, error, zmq)) from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(self.endpoint.rsplit(":", 1)[1])
        self._replies: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Serve until `stop`; then answer what waits and close."""
        import zmq

        self.service.batcher.start()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(1000))
                self._send_replies()
                if self._socket in ready:
                    self._receive()
            self._drain(poller)
        finally:
            self._socket.close()
            self._context.term()
            self._wake.close()
            self._woken.close()

    def stop(self) -> None:
        """Let `run` end: no more requests are taken, those that wait are answered."""
        self._stopping.set()
        self._nudge()

    def _receive(self) -> None:
        import zmq

        for _ in range(64):  # then look at the replies again
            try:
                frames: list[bytes] = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            envelope, body = frames[:1], frames[1:]
            if len(body) > 1 and body[0] == b"":  # REQ's empty frame
                envelope, body = frames[:2], frames[2:]
            reply = _Reply(self, envelope)
            self.service.handle(b"".join(body), reply, client=envelope[0].hex())

    def _send_replies(self) -> None:
        import zmq

        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass
        while not self._replies.empty():
            try:
                self._socket.send_multipart(self._replies.get(), zmq.NOBLOCK)
            except zmq.ZMQError as error:
                _log.warning("a reply was dropped: %s", error)

    def _drain(self, poller: Any) -> None:
        """Refuse what still comes, and hand out the answers to what had come before."""
        self._receive()
        batcher, until = self.service.batcher, time.monotonic() + _DRAIN_S
        while not batcher.stop(timeout_s=0) and time.monotonic() < until:
            poller.poll(50)
            self._receive()
            self._send_replies()
        if batcher.running:
            _log.warning("the policy did not finish what waited; its clients get no answer")
        self._receive()
        self._send_replies()

    def _nudge(self) -> None:
        with suppress(OSError):  # enough bytes wait there, or the server has ended
            self._wake.send(b"1")


class _Reply:
    """Sends one message's reply, from any thread."""

    def __init__(self, server: ZmqServer, envelope: list[bytes]) -> None:
        self._server = server
        self._envelope = envelope

    def __call__(self, message: bytes) -> None:
        self._server._replies.put([*self._envelope, message])
        self._server._nudge()


def _bind_failure(host: str, port: int, error: Any, zmq: Any) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"port {port} on {host} is in use: stop the other server, or give another --port"
    return f"cannot listen on {host}:{port} ({error}): give an address of this machine as --host"
