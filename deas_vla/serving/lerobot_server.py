"""LeRobot's async inference for its own, unmodified robot client, over the same policy.

LeRobot's server has a fixed list of policy types; this one serves the bundle whichever policy the
client names. Its messages are pickles, see `unpickle`: loopback only.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deas_vla.errors import DeasError
from deas_vla.policies.remote.layout import WireLayout
from deas_vla.serving.batcher import Busy
from deas_vla.serving.config import LeRobotConfig
from deas_vla.serving.deciding import Answer
from deas_vla.serving.observations import Seen
from deas_vla.serving.service import Service
from deas_vla.serving.unpickle import pickled, unpickle

_log = logging.getLogger(__name__)
_WAIT_S = 2.0  # for an observation, as LeRobot's server does
_STATE, _IMAGES = "observation.state", "observation.images."
_REMEMBERED = 4096  # steps that were decided


@dataclass
class _Robot:
    """One client: what it said it sends, and its latest observation."""

    features: Mapping[str, Any] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    steps: int = 1
    latest: Any = None
    decided: set[int] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)


class LeRobotServer:
    """LeRobot's ``AsyncInference`` service on 127.0.0.1.

    Raises:
        DeasError: The port is in use, or grpcio is not installed.
    """

    def __init__(self, service: Service, config: LeRobotConfig) -> None:
        try:
            import grpc
            from lerobot.async_inference import helpers  # noqa: F401
            from lerobot.transport import services_pb2_grpc
        except ImportError as error:
            raise DeasError(
                f"LeRobot's protocol needs {error.name}: "
                "pip install 'lerobot_policy_deas_vla[serving]'"
            ) from None
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=16, thread_name_prefix="lerobot"),
            maximum_concurrent_rpcs=64,
            options=[("grpc.so_reuseport", 0)],
        )
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(
            _Servicer(service, config.fps), self._server
        )
        try:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{config.port}")
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            raise DeasError(
                f"port {config.port} on 127.0.0.1 is in use: give another --lerobot.port"
            )

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls and give those under way ``grace_s`` seconds."""
        self._server.stop(grace_s).wait()


class _Servicer:
    """The methods of LeRobot's service, by their names there."""

    def __init__(self, service: Service, fps: int) -> None:
        self._service = service
        self._step_s = 1 / fps
        self._robots: dict[str, _Robot] = {}
        self._lock = threading.Lock()

    def Ready(self, request: Any, context: Any) -> Any:
        from lerobot.transport.services_pb2 import Empty

        with self._lock:
            self._robots.pop(context.peer(), None)
            self._robots[context.peer()] = _Robot()
            while len(self._robots) > 64:
                self._robots.pop(next(iter(self._robots)))
        self._service.trace.reset(context.peer())
        return Empty()

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:
        from lerobot.async_inference.helpers import RemotePolicyConfig
        from lerobot.transport.services_pb2 import Empty

        with _told(context):
            said = unpickle(_bounded(request.data, self._service.limit))
            if not isinstance(said, RemotePolicyConfig):
                raise DeasError(f"policy setup is {type(said).__name__}: use LeRobot's client")
            robot = self._robot(context.peer())
            check_features(said.lerobot_features, said.rename_map, self._service.layout)
            if not isinstance(said.actions_per_chunk, int) or said.actions_per_chunk < 1:
                raise DeasError(f"actions_per_chunk {said.actions_per_chunk}: use 1 or more")
            robot.features, robot.rename = said.lerobot_features, dict(said.rename_map)
            robot.steps = said.actions_per_chunk
        return Empty()

    def SendObservations(self, request_iterator: Iterator[Any], context: Any) -> Any:
        from lerobot.async_inference.helpers import TimedObservation
        from lerobot.transport.services_pb2 import Empty

        with _told(context):
            said = unpickle(_received(request_iterator, self._service.limit))
            if not isinstance(said, TimedObservation) or not isinstance(said.timestep, int):
                raise DeasError(f"observation is {type(said).__name__}: use LeRobot's client")
            robot = self._robot(context.peer())
            with robot.changed:
                if said.must_go or said.timestep not in robot.decided:
                    robot.latest = said  # an older one that waits is no longer of interest
                    robot.changed.notify()
        return Empty()

    def GetActions(self, request: Any, context: Any) -> Any:
        from lerobot.async_inference.helpers import TimedAction
        from lerobot.transport.services_pb2 import Actions

        with _told(context):
            robot = self._robot(context.peer())
            with robot.changed:
                robot.changed.wait_for(lambda: robot.latest is not None, _WAIT_S)
                look, robot.latest = robot.latest, None
                if look is None:
                    return Actions(data=b"")
                robot.decided.add(look.timestep)
                if len(robot.decided) > _REMEMBERED:
                    robot.decided = {look.timestep}
            if robot.features is None:
                raise DeasError("no policy setup came before the observation: start the client")
            seen = read_raw(look.observation, robot.features, robot.rename, self._service.layout)
            chunk = self._decide(seen, context.peer()).chunk[0, : robot.steps]
        import torch

        actions = [
            TimedAction(
                timestamp=look.timestamp + k * self._step_s,
                timestep=look.timestep + k,
                action=torch.from_numpy(action.copy()),
            )
            for k, action in enumerate(chunk)
        ]
        return Actions(data=pickled(actions))

    def _decide(self, seen: Seen, client: str) -> Answer:
        found: list[Answer | DeasError] = []
        ready = threading.Event()

        def done(answer: Answer | DeasError) -> None:
            found.append(answer)
            ready.set()

        self._service.submit(self._service.question(seen, None), done, client)
        if not ready.wait(120):
            raise Busy("policy did not answer within 120 s: see the server's log")
        if isinstance(found[0], DeasError):
            raise found[0]
        return found[0]

    def _robot(self, peer: str) -> _Robot:
        """The client's state; of one that lost its connection, which has another name now."""
        with self._lock:
            if peer not in self._robots:
                if len(self._robots) != 1:
                    raise DeasError("connection is new, and its robot unknown: start the client")
                self._robots[peer] = self._robots.popitem()[1]
            return self._robots[peer]


class _told:
    """Turns a `DeasError` into gRPC's, which LeRobot's client logs."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        if isinstance(error, DeasError):
            import grpc

            code = grpc.StatusCode
            busy = isinstance(error, Busy)
            self._context.abort(
                code.RESOURCE_EXHAUSTED if busy else code.INVALID_ARGUMENT, str(error)
            )


def _bounded[Raw: (bytes, bytearray)](raw: Raw, limit: int) -> Raw:
    if len(raw) > limit:
        raise DeasError(
            f"message has more than {limit} bytes: send smaller pictures, or raise --max_message_mb"
        )
    return raw


def _received(parts: Iterator[Any], limit: int) -> bytes:
    """The bytes of an observation, which LeRobot's client sends in pieces."""
    from lerobot.transport.services_pb2 import TransferState

    got = bytearray()
    for part in parts:
        if part.transfer_state == TransferState.TRANSFER_BEGIN:
            got.clear()
        got += part.data
        _bounded(got, limit)
        if part.transfer_state == TransferState.TRANSFER_END:
            break
    return bytes(got)


def check_features(features: Any, rename: Any, layout: WireLayout) -> None:
    """DeasError for a robot whose sensors are not the policy's.

    Args:
        features: LeRobot's, of the robot: ``observation.state`` with ``names``, cameras.
        rename: The client's ``rename_map`` of cameras.
        layout: The policy's.
    """
    if not isinstance(features, Mapping) or not isinstance(rename, Mapping):
        raise DeasError("policy setup holds no features: use LeRobot's client")
    names = features[_STATE].get("names") if isinstance(features.get(_STATE), Mapping) else None
    if not isinstance(names, list) or len(names) != layout.state_dim:
        raise DeasError(
            f"robot's state has {len(names) if isinstance(names, list) else 'no'} values, the "
            f"policy's {layout.state_dim}: serve a bundle of this robot"
        )
    there = {rename.get(key, key) for key in features}
    missing = sorted(set(layout.videos.values()) - there)
    if missing:
        cameras = sorted(str(key) for key in there if str(key).startswith(_IMAGES))
        raise DeasError(
            f"robot has no camera {missing[0]}, it has {cameras}: rename it in its configuration"
        )


def read_raw(
    raw: Any, features: Mapping[str, Any], rename: Mapping[str, str], layout: WireLayout
) -> Seen:
    """A robot's raw observation: joint names to numbers, camera names to uint8 (H, W, 3).

    Raises:
        DeasError: What is missing or wrong.
    """
    if not isinstance(raw, Mapping):
        raise DeasError(f"observation is {type(raw).__name__}, not a map: use LeRobot's client")
    names = features[_STATE]["names"]
    try:
        state = np.array([[float(raw[name]) for name in names]], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise DeasError(f"observation's {names} are not all numbers ({error})") from None
    if not np.isfinite(state).all():
        raise DeasError("state holds a value that is not a finite number: check the robot's driver")
    images = {}
    for key in features:
        if key.startswith(_IMAGES) and rename.get(key, key) in layout.videos.values():
            images[rename.get(key, key)] = _picture(raw, key.removeprefix(_IMAGES))
    task = raw.get("task", "")
    if not isinstance(task, str):
        raise DeasError(f"task is {type(task).__name__}: send a string")
    return Seen(images, state, (task,))


def _picture(raw: Mapping[str, Any], camera: str) -> NDArray[np.uint8]:
    value = raw.get(camera)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3:
        said = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value)
        raise DeasError(f"camera {camera} gave {said}: uint8 (height, width, 3) is wanted")
    if value.shape[2] != 3 or 0 in value.shape:
        raise DeasError(f"camera {camera} gave {value.shape}: (height, width, 3) is wanted")
    return value[None]
