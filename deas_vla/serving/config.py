"""Flags of ``python -m deas_vla.serve``."""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.errors import DeasError
from deas_vla.guidance.config import SelectionOverride
from deas_vla.guidance.speed import SpeedOverride
from deas_vla.policies.remote.client import GENERATIONS

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class LeRobotConfig:
    """A second server, for LeRobot's own robot client (its async inference).

    Attributes:
        port: 0 is none.
        unsafe_pickle: Say that pickles are taken: this protocol is made of them. They are read by
            an unpickler that knows nine harmless names, and on the loopback address alone;
            a robot on another machine comes through ``ssh -L``.
        fps: Control steps per second of the robot, by which actions carry their times.
    """

    port: int = 0
    unsafe_pickle: bool = False
    fps: int = 30


@dataclass
class ServeConfig:
    """What is served, to whom.

    Attributes:
        bundle: Bundle directory or Hub id.
        base: Base checkpoint, where it no longer is where the bundle says.
        device: cpu, cuda, cuda:1; the bundle's own when left out.
        host: Address to listen on; only this machine reaches the default. 0.0.0.0 is everybody.
        port: Of GR00T's protocol.
        token: Requests must carry it as ``api_token``.
        candidates: N unless a request says another; the bundle's own when left out.
        most_candidates: N that a request may ask for; the same as ``candidates`` when left out.
        selection: Replaces parts of the bundle's.
        guidance: Speed, likewise.
        modality: GR00T's modality.json: names and places of the state's and action's parts.
        generation: How ``get_modality_config`` answers; everything else takes both.
        max_message_mb: Of one request, MB of 2^20 bytes.
        queue: Requests that may wait.
        batch: Observations decided in one call.
        timeout_s: Seconds that a request may wait.
        allow_kill: Whether a client may end the server.
        lerobot: LeRobot's protocol beside GR00T's.
    """

    bundle: str = "outputs/quickstart"
    base: str | None = None
    device: str | None = None
    host: str = "127.0.0.1"
    port: int = 5555
    token: str | None = None
    candidates: int | None = None
    most_candidates: int | None = None
    selection: SelectionOverride = field(default_factory=SelectionOverride)
    guidance: SpeedOverride = field(default_factory=SpeedOverride)
    modality: Path | None = None
    generation: str = "n1.7"
    max_message_mb: int = 64
    queue: int = 32
    batch: int = 16
    timeout_s: float = 10.0
    allow_kill: bool = False
    lerobot: LeRobotConfig = field(default_factory=LeRobotConfig)

    def check(self) -> None:
        """DeasError for a value without meaning, or one that is not safe."""
        if self.generation not in GENERATIONS:
            raise DeasError(
                f"generation '{self.generation}' is unknown: use one of {list(GENERATIONS)}"
            )
        for name in ("max_message_mb", "queue", "batch"):
            if getattr(self, name) < 1:
                raise DeasError(f"{name} {getattr(self, name)}: use 1 or more")
        for name, port in (("port", self.port), ("lerobot.port", self.lerobot.port)):
            if not 0 <= port < 65536:
                raise DeasError(f"{name} {port}: use 1 to 65535")
        if self.timeout_s <= 0:
            raise DeasError(f"timeout_s {self.timeout_s}: use seconds above 0")
        if self.token == "":
            raise DeasError("token is empty: give one, or leave it out")
        if self.lerobot.port and not self.lerobot.unsafe_pickle:
            raise DeasError(
                f"lerobot.port {self.lerobot.port}: LeRobot's protocol is made of pickles; say "
                "--lerobot.unsafe_pickle=true if every user of this machine may be trusted"
            )
        if self.lerobot.fps < 1:
            raise DeasError(f"lerobot.fps {self.lerobot.fps}: use 1 or more steps per second")
