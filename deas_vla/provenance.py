"""Where a result came from: versions, machine, git revision, configuration, wall time."""

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "lerobot",
    "datasets",
    "numpy",
    "mujoco",
)


def provenance() -> dict[str, Any]:
    """Package versions, machine and git revision, as plain JSON values."""
    import torch

    from deas_vla import __version__

    versions = {"deas_vla": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}
    return {"versions": versions, "machine": machine, "git_revision": git_revision()}


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values; what JSON does not know, as its string."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return values


def run_record(config: Any, started: float) -> dict[str, Any]:
    """What every ``results.json`` says about the run that made it, up to now.

    Args:
        config: The script's dataclass, resolved.
        started: When it began, seconds since the epoch.
    """
    return {"config": plain(config), **provenance(), "wall_seconds": time.time() - started}


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with ``-dirty`` for uncommitted changes."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ("git", "-C", str(here), *arguments), capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
