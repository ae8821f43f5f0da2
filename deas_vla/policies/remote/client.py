"""A client of NVIDIA's GR00T policy servers, both generations, and of ours.

```python
from deas_vla.policies.remote.client import PolicyClient

with PolicyClient("127.0.0.1", 5555) as robot:
    action, info = robot.get_action(observation, {"candidates": 16, "seed": 3})
```
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from deas_vla.errors import DeasError
from deas_vla.policies.remote.wire import MAX_MESSAGE_BYTES, MessageError, pack, unpack

GENERATIONS = ("n1.7", "n1.5")


class ServerBusy(DeasError):
    """The server's queue is full: the same request may succeed later."""


class PolicyClient:
    """One connection; a request waits for its reply. Not to be shared between threads.

    After a timeout the next request connects anew, so that a server which was restarted, or a
    reply that comes too late, does no harm.

    Args:
        host: Of the server.
        port: Of the server.
        timeout_s: Seconds to wait for a reply.
        token: Where the server asks for one.
        generation: ``n1.7`` (also N1.6) or ``n1.5``: how observations are wrapped.

    Raises:
        DeasError: An unknown generation, or pyzmq or msgpack is not installed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 5555,
        *,
        timeout_s: float = 15.0,
        token: str | None = None,
        generation: str = "n1.7",
    ) -> None:
        if generation not in GENERATIONS:
            raise DeasError(f"generation '{generation}' is unknown: use one of {list(GENERATIONS)}")
        zmq = require_zmq()
        self.address = f"tcp://{host}:{port}"
        self.timeout_s = timeout_s
        self.generation = generation
        self._token = token
        self._context = zmq.Context()
        self._socket: Any = None

    def ping(self) -> dict[str, Any]:
        """``status`` and ``message``; of our server also model, device, N and latencies."""
        return self._map("ping", self.call("ping"))

    def reset(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A new episode begins; N1.5's servers have no such endpoint."""
        return self._map("reset", self.call("reset", {"options": options}))

    def get_modality_config(self) -> dict[str, Any]:
        """Modality to ``{"delta_indices", "modality_keys", ...}``, whichever way it was sent."""
        from json import loads

        found = self._map("get_modality_config", self.call("get_modality_config"))
        config = {}
        for name, entry in found.items():
            values = entry.get("as_json", entry) if isinstance(entry, dict) else entry
            config[name] = loads(values) if isinstance(values, str) else values
        return config

    def get_action(
        self, observation: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Chunks for an observation, and what the server says of them.

        Args:
            observation: Nested (``video``, ``state``, ``language``) or flat (``video.<camera>``).
            options: Of our server; see docs/serving.md. N1.5 has no place for them.

        Raises:
            DeasError: As :meth:`call`; options for N1.5; a server of the other generation.
        """
        if self.generation == "n1.5":
            if options:
                raise DeasError("options with generation n1.5: use generation='n1.7', or none")
            reply = self.call("get_action", observation)
            if isinstance(reply, list):
                raise DeasError(
                    f"server at {self.address} answers as GR00T N1.6 and N1.7 do: use "
                    "generation='n1.7'"
                )
            return self._map("get_action", reply), {}
        reply = self.call("get_action", {"observation": observation, "options": options})
        if isinstance(reply, dict):
            raise DeasError(
                f"server at {self.address} answers as GR00T N1.5 does, with actions alone: use "
                "generation='n1.5'"
            )
        if not isinstance(reply, list) or len(reply) != 2:
            raise DeasError(f"server at {self.address} sent no [action, info]: is it GR00T's?")
        return self._map("get_action", reply[0]), self._map("get_action", reply[1])

    def call(self, endpoint: str, data: Any = None) -> Any:
        """One request and its reply.

        Raises:
            ServerBusy: Its queue is full.
            DeasError: No reply in time, no message of the protocol, or the server's own error.
        """
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if self._token is not None:
            request["api_token"] = self._token
        try:
            reply = unpack(self._exchange(pack(request)), 4 * MAX_MESSAGE_BYTES)
        except MessageError as error:
            raise DeasError(f"server at {self.address}: {error}") from None
        if isinstance(reply, dict) and "error" in reply:
            said = f"server at {self.address} answered: {' '.join(str(reply['error']).split())}"
            if reply.get("busy"):
                raise ServerBusy(said)
            if self.generation == "n1.7" and "server" not in reply and endpoint != "ping":
                said += " (if this server is of GR00T N1.5, use generation='n1.5')"
            raise DeasError(said)
        return reply

    def close(self) -> None:
        """Give the connection back; a later request opens another."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
        self._context.term()

    def _exchange(self, message: bytes) -> bytes:
        import zmq

        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.linger = 0
            self._socket.connect(self.address)
        try:
            self._socket.send(message)
            if not self._socket.poll(int(1000 * self.timeout_s)):
                raise DeasError(
                    f"no reply from {self.address} within {self.timeout_s:g} s: check that the "
                    "server runs there (python -m deas_vla.serve), or wait longer (timeout_s)"
                )
            reply: bytes = self._socket.recv()
            return reply
        except BaseException as error:
            self.close()  # a REQ socket that missed its reply takes no other request
            if isinstance(error, zmq.ZMQError):
                raise DeasError(f"connection to {self.address} failed ({error})") from None
            raise

    def _map(self, endpoint: str, reply: Any) -> dict[str, Any]:
        if not isinstance(reply, dict):
            raise DeasError(
                f"server at {self.address} answered {endpoint} with {type(reply).__name__}, not a "
                "map: is it a GR00T policy server?"
            )
        return reply


def require_zmq() -> Any:
    """The ``zmq`` module.

    Raises:
        DeasError: It, or msgpack, is not installed.
    """
    try:
        import msgpack  # noqa: F401
        import zmq
    except ImportError as error:
        raise DeasError(
            f"GR00T's protocol needs {error.name}, which is not installed: "
            "pip install 'lerobot_policy_deas_vla[serving]'"
        ) from None
    return zmq
