"""What the critic says while a robot works: a stream from the server, a view of it in a terminal.

python -m deas_vla.serving.monitor --port=5555 --watch.done=-2.0 --watch.novel=0.5
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deas_vla.errors import DeasError
from deas_vla.guidance.watch import Watch, WatchConfig
from deas_vla.policies.remote.client import PolicyClient

if TYPE_CHECKING:  # a terminal needs neither torch nor the policy
    from deas_vla.serving.deciding import Answer

_KEPT = 4096  # decisions
_SESSIONS = 256
_BARS = "▁▂▃▄▅▆▇█"


class Trace:
    """The last decisions of all sessions. One thread adds, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._sessions: OrderedDict[str, list[int]] = OrderedDict()  # [episode, decision]
        self._next = 0

    def reset(self, session: str) -> None:
        """An episode of this session begins."""
        with self._lock:
            at = self._at(session)
            at[0], at[1] = at[0] + 1, 0

    def add(self, session: str, answer: "Answer") -> None:
        """A decision; of several robots, a record for each of them."""
        with self._lock:
            at = self._at(session)
            for row in range(len(answer.chosen)):
                record: dict[str, Any] = {
                    "number": self._next,
                    "session": session if len(answer.chosen) == 1 else f"{session}/{row}",
                    "episode": at[0],
                    "decision": at[1],
                }
                for name in ("value", "q", "disagreement", "distance"):
                    values = getattr(answer, name)
                    record[name] = None if values is None else float(values[row])
                self._records.append(record)
                self._next += 1
            at[1] += 1

    def since(self, number: int) -> dict[str, Any]:
        """Records from ``number`` on, and the number to ask for next."""
        with self._lock:
            records = [record for record in self._records if record["number"] >= number]
            return {"records": records, "next": self._next}

    def _at(self, session: str) -> list[int]:
        at = self._sessions.setdefault(session, [0, 0])
        self._sessions.move_to_end(session)
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return at


@dataclass
class _Episode:
    watch: Watch
    episode: int
    values: deque[float] = field(default_factory=lambda: deque(maxlen=60))
    disagreement: float | None = None
    distance: float | None = None
    decisions: int = 0
    state: str = ""


class View:
    """Text of what a stream of records says, a line for each session."""

    def __init__(self, config: WatchConfig, most: int = 20) -> None:
        config.check()
        self._config = config
        self._most = most
        self._sessions: OrderedDict[str, _Episode] = OrderedDict()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Go on with the server's next records."""
        for record in records:
            name, value = record["session"], record["value"]
            found = self._sessions.get(name)
            if found is None or found.episode != record["episode"]:
                found = _Episode(Watch(self._config), record["episode"])
                self._sessions[name] = found
            self._sessions.move_to_end(name)
            found.decisions += 1
            if value is None:
                found.state = "no critic"
                continue
            found.values.append(value)
            found.disagreement, found.distance = record["disagreement"], record["distance"]
            found.state = found.watch.update(
                value, found.disagreement or 0.0, found.distance or 0.0
            )
        while len(self._sessions) > self._most:
            self._sessions.popitem(last=False)

    def text(self) -> str:
        """The last sessions, latest first."""
        lines = [
            f"{'session':12s} {'episode':>7s} {'V':>8s} {'disagr.':>8s} {'distance':>8s} "
            f"{'state':12s} V so far"
        ]
        for name, found in reversed(self._sessions.items()):
            value = f"{found.values[-1]:8.3f}" if found.values else f"{'-':>8s}"
            spread = "-" if found.disagreement is None else f"{found.disagreement:.3f}"
            far = "-" if found.distance is None else f"{found.distance:.2f}"
            lines.append(
                f"{name[-12:]:12s} {found.episode:7d} {value} {spread:>8s} {far:>8s} "
                f"{found.state:12s} "
                f"{bars(list(found.values))}"
            )
        return "\n".join(lines)


def bars(values: Sequence[float]) -> str:
    """Values as a line of blocks, the lowest of them empty and the highest full."""
    if not values:
        return ""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1)
    return "".join(_BARS[round((v - low) / step) if step > 0 else 0] for v in values)


@dataclass
class MonitorConfig:
    """Where the server is, and when a state is called.

    Attributes:
        host: Of the server.
        port: Of the server.
        token: Where it asks for one.
        every_s: Seconds between two looks.
        timeout_s: Seconds to wait for the server.
        watch: Thresholds.
    """

    host: str = "127.0.0.1"
    port: int = 5555
    token: str | None = None
    every_s: float = 0.5
    timeout_s: float = 5.0
    watch: WatchConfig = field(default_factory=WatchConfig)


def follow(config: MonitorConfig, show: Callable[[str], object], looks: int | None = None) -> None:
    """Ask the server again and again and show what it says, ``looks`` times or until Ctrl-C.

    Raises:
        DeasError: The server does not answer at the first look; later it may come back.
    """
    view, number, reached = View(config.watch), 0, False
    with PolicyClient(
        config.host, config.port, timeout_s=config.timeout_s, token=config.token
    ) as client:
        while looks is None or looks > 0:
            try:
                found = client.call("monitor", {"since": number})
                if found["next"] < number:
                    number = 0  # the server was started again
                    continue
                number, reached = found["next"], True
                view.add(found["records"])
                show(view.text())
            except DeasError as error:
                if not reached:
                    raise
                show(f"{view.text()}\n{error}")
            looks = None if looks is None else looks - 1
            if looks != 0:
                time.sleep(config.every_s)


def main(config: MonitorConfig) -> None:
    try:
        follow(config, lambda text: print(f"\033[H\033[2J{text}", flush=True))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    from deas_vla.cli import run

    run(main, MonitorConfig)
