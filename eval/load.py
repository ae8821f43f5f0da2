"""Load a policy server with clients that ask one after the other, and tell how long they waited.

python eval/load.py --bundle outputs/quickstart --clients=8 --seconds=60 --output_dir outputs/load

Server and clients run on this machine, the server in a process of its own; or give --port of one
that runs already (with --server=false).
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deas_vla.cli import make_output_dir, run
from deas_vla.errors import DeasError
from deas_vla.files import write_json
from deas_vla.policies.remote.client import PolicyClient, ServerBusy
from deas_vla.provenance import run_record


@dataclass
class LoadConfig:
    """How much is asked for.

    Attributes:
        bundle: What is served, where the server is started here.
        server: Whether to start one.
        host: Of the server.
        port: Of the server.
        clients: At a time, each with one request under way.
        seconds: How long.
        candidates: N of every request; the server's own when left out.
        picture: Height and width of pictures, pixels.
        output_dir: Where results.json goes.
    """

    bundle: Path = Path("outputs/quickstart")
    server: bool = True
    host: str = "127.0.0.1"
    port: int = 5563
    clients: int = 8
    seconds: float = 60.0
    candidates: int | None = None
    picture: int = 64
    output_dir: Path = Path("outputs/load")

    def check(self) -> None:
        """DeasError for a value without meaning."""
        if self.clients < 1 or not 0 < self.seconds <= 3600:
            raise DeasError("use 1 client or more, and 1 to 3600 seconds")


def main(config: LoadConfig) -> None:
    started = time.time()
    config.check()
    output = make_output_dir(config.output_dir)
    with served(config), PolicyClient(config.host, config.port, timeout_s=120) as first:
        look = observation(first, config.picture)
        first.get_action(look)  # whatever runs once has run
        before = first.ping()
        clients = [Client(config, look, number) for number in range(config.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        after = first.ping()
    rows = result_rows(config, clients, before, after)
    write_json(output / "results.json", {**run_record(config, started), "rows": rows})
    for row in rows:
        print(" ".join(f"{name}={value}" for name, value in row.items()))
    print(f"results in {output}")


class Client(threading.Thread):
    """Asks, waits, asks again; a busy server is asked once more after a moment."""

    def __init__(self, config: LoadConfig, look: dict[str, Any], number: int) -> None:
        super().__init__(daemon=True)
        self.latencies_ms: list[float] = []
        self.errors: list[str] = []
        self.busy = 0
        self._config, self._look, self._number = config, look, number

    def run(self) -> None:
        until = time.monotonic() + self._config.seconds
        with PolicyClient(self._config.host, self._config.port, timeout_s=120) as robot:
            while time.monotonic() < until:
                options: dict[str, Any] = {"seed": self._number, "plan": len(self.latencies_ms)}
                if self._config.candidates is not None:
                    options["candidates"] = self._config.candidates
                asked = time.perf_counter()
                try:
                    robot.get_action(self._look, options)
                except ServerBusy:
                    self.busy += 1
                    time.sleep(0.05)
                except DeasError as error:
                    self.errors.append(str(error))
                else:
                    self.latencies_ms.append(1000 * (time.perf_counter() - asked))


def observation(client: PolicyClient, side: int) -> dict[str, Any]:
    """Noise in the server's own names; widths of the state are what it says is wanted."""
    names = {key: value["modality_keys"] for key, value in client.get_modality_config().items()}
    widths = client.ping()["state_widths"]
    rng = np.random.default_rng(0)
    shape = (1, 1, side, side, 3)
    return {
        "video": {name: rng.integers(0, 255, shape, dtype=np.uint8) for name in names["video"]},
        "state": {name: np.zeros((1, 1, widths[name]), np.float32) for name in names["state"]},
        "language": {"task": [["lift the red cube"]]},
    }


@contextmanager
def served(config: LoadConfig) -> Iterator[None]:
    """A server in a process of its own, ready to answer."""
    if not config.server:
        yield
        return
    command = [sys.executable, "-m", "deas_vla.serve", f"--bundle={config.bundle}"]
    command += [f"--host={config.host}", f"--port={config.port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not any(line.startswith("serving ") for line in process.stdout):
            raise DeasError("server did not start: its message is above")
        yield
    finally:
        process.terminate()
        process.wait(60)


def result_rows(
    config: LoadConfig, clients: list[Client], before: dict[str, Any], after: dict[str, Any]
) -> list[dict[str, Any]]:
    """Latencies as the clients saw them, and by how many rows the policy was called."""
    latencies = np.array([ms for client in clients for ms in client.latencies_ms])
    if not len(latencies):
        raise DeasError(f"no request was answered: {[e for c in clients for e in c.errors][:1]}")
    then, now = before["calls_by_rows"], after["calls_by_rows"]
    calls = {rows: count - then.get(rows, 0) for rows, count in now.items()}
    return [
        {
            "what": "request",
            "size": config.clients,
            "candidates": config.candidates or after["candidates"],
            "answered": len(latencies),
            "errors": sum(len(client.errors) for client in clients),
            "busy": sum(client.busy for client in clients),
            "per_second": round(len(latencies) / config.seconds, 2),
            "median_ms": round(float(np.median(latencies)), 1),
            "p95_ms": round(float(np.percentile(latencies, 95)), 1),
            "most_ms": round(float(latencies.max()), 1),
        },
        {"what": "calls by rows", **{rows: count for rows, count in calls.items() if count}},
    ]


if __name__ == "__main__":
    run(main, LoadConfig)
