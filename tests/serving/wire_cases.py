"""Messages as NVIDIA's public clients shape them, written from those shapes."""

import io
import queue
from typing import Any

import numpy as np

from deas_vla.policies.remote.wire import pack, unpack
from deas_vla.serving.service import Service

GROUPS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
CAMERAS = ("agentview", "eye_in_hand")
TASK = "lift the red cube"


def nested(seed: int = 0, robots: int = 1, task: str = TASK) -> dict[str, Any]:
    """N1.6's and N1.7's: (B, 1, H, W, 3), (B, 1, D), [[str]]."""
    rng = np.random.default_rng(seed)
    return {
        "video": {
            name: rng.integers(0, 255, (robots, 1, 64, 64, 3), dtype=np.uint8) for name in CAMERAS
        },
        "state": {
            name: rng.normal(0, 0.1, (robots, 1, width)).astype(np.float32)
            for name, width in GROUPS.items()
        },
        "language": {"task": [[task]] * robots},
    }


def flat(observation: dict[str, Any], *, robots: bool = True) -> dict[str, Any]:
    """RoboCasa's client's and N1.5's: ``video.x``; without the dimension of robots on demand."""
    found: dict[str, Any] = {}
    for modality in ("video", "state"):
        for name, value in observation[modality].items():
            found[f"{modality}.{name}"] = value if robots else value[0]
    tasks = [row[0] for row in observation["language"]["task"]]
    return found | {"annotation.human.task_description": tasks}


def ask(service: Service, request: Any, timeout: float = 30) -> Any:
    """One message and its reply, past any socket."""
    raw = request if isinstance(request, bytes) else pack(request)
    return unpack(exchange(service, raw, timeout))


def exchange(service: Service, raw: bytes, timeout: float = 30) -> bytes:
    replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    service.handle(raw, replies.put)
    return replies.get(timeout=timeout)


def npy(value: np.ndarray) -> dict[str, Any]:
    """An array as the protocol sends it, before msgpack."""
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": stream.getvalue()}
