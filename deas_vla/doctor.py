"""What is wrong here: environment, renderer, GPU, versions, a dataset, a bundle; one line each."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from deas_vla.errors import DeasError

OK, NOTE, BAD = "ok", "note", "bad"
_DISTRIBUTION = "lerobot_policy_deas_vla"  # as LeRobot's plugins are named
_LEAST_DISK_GB = 5


@dataclass
class DoctorConfig:
    """What to look at besides the environment.

    Attributes:
        dataset: Directory of a LeRobot dataset.
        bundle: Directory or Hub id of a bundle.
    """

    dataset: Path | None = None
    bundle: str | None = None


@dataclass(frozen=True)
class Line:
    """One thing that was looked at: ``ok``, ``note`` (nothing to mend) or ``bad``."""

    state: str
    what: str

    def __str__(self) -> str:
        return f"{self.state:4s} {' '.join(self.what.split())}"


def examine(config: DoctorConfig) -> Iterator[Line]:
    """Lines as they are found; nothing that is found wrong ends the examination."""
    yield from _guarded("python", python)
    yield from _guarded("packages", packages)
    yield from _guarded("GPU", gpu)
    yield from _guarded("renderer", renderer)
    yield from _guarded("machine", machine)
    if config.dataset is not None:
        root = config.dataset
        yield from _guarded(f"dataset {root}", lambda: dataset(root))
    if config.bundle is not None:
        name = config.bundle
        yield from _guarded(f"bundle {name}", lambda: bundle(name))


def python() -> Iterator[Line]:
    """Interpreter and where the package runs from."""
    from deas_vla import __version__

    here = Path(__file__).parent.parent
    yield Line(OK, f"deas_vla {__version__} at {here}, python {platform.python_version()}")


def packages() -> Iterator[Line]:
    """What the package's own metadata asks for, against what is installed."""
    try:
        asked = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Line(BAD, f"{_DISTRIBUTION} is not installed here: run make install")
        return
    missing: dict[str, list[str]] = {}
    for line in asked:
        wanted = Requirement(line)
        extra = _extra(wanted)
        if extra in ("all", "dev"):  # `all` repeats the others
            continue
        found = _version(wanted.name)
        if found is None:
            missing.setdefault(extra, []).append(wanted.name)
        elif not wanted.specifier.contains(found, prereleases=True):
            yield Line(
                BAD, f"{wanted.name} {found}, {wanted.specifier} is wanted: run make install"
            )
    for extra, names in sorted(missing.items()):
        if extra:
            yield Line(
                NOTE, f"{', '.join(names)} missing: pip install 'lerobot_policy_deas_vla[{extra}]'"
            )
        else:
            yield Line(BAD, f"{', '.join(names)} missing: run make install")
    told = ("torch", "lerobot", "transformers", "peft", "numpy", "mujoco")
    yield Line(OK, ", ".join(f"{name} {_version(name) or 'missing'}" for name in told))


def gpu() -> Iterator[Line]:
    """What torch would run on."""
    import torch

    count = torch.cuda.device_count()
    for number in range(count):
        free, whole = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Line(OK, f"cuda:{number} {name}, {free / 2**30:.1f} of {whole / 2**30:.1f} GiB free")
    if count == 0:
        why = "no NVIDIA driver" if shutil.which("nvidia-smi") is None else "torch sees none"
        yield Line(NOTE, f"no GPU ({why}): everything runs on the processor")


def renderer() -> Iterator[Line]:
    """Whether MuJoCo can draw; only simulators need it."""
    if util.find_spec("mujoco") is None:
        yield Line(
            NOTE,
            "mujoco missing, simulators need it: pip install 'lerobot_policy_deas_vla[robosuite]'",
        )
        return
    gl = importlib.import_module("deas_vla.envs.gl")
    yield Line(OK, f"MuJoCo draws with {gl.check_gl()}")


def machine() -> Iterator[Line]:
    """Cores, threads, memory, disk."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state = BAD if free < _LEAST_DISK_GB else OK
    remedy = f": free some, {_LEAST_DISK_GB} are little" if state == BAD else ""
    yield Line(state, f"{free:.0f} GiB of disk free here{remedy}")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    yield Line(OK, f"{os.cpu_count()} cores, OMP_NUM_THREADS {threads}")


def dataset(root: Path) -> Iterator[Line]:
    """File by file where the checker is there, and as training would read it."""
    if util.find_spec("deas_vla.data.check") is not None:
        findings = importlib.import_module("deas_vla.data.check").check_dataset(root)
        yield from (Line(BAD, str(finding)) for finding in findings)
        if findings:
            return
    from deas_vla.data.episodes import load_episodes

    table = load_episodes("local/dataset", str(root))
    solved = int(table.episode_success.sum())
    yield Line(
        OK,
        f"dataset {root}: {len(table.episode_start)} episodes ({solved} successful), "
        f"{table.num_frames} frames, state {table.state.shape[1]}, action {table.action.shape[1]}",
    )
    if solved in (0, len(table.episode_start)):
        which = "none" if solved == 0 else "all"
        yield Line(
            NOTE, f"{which} of its episodes succeed: a critic learns from both, add rollouts"
        )


def bundle(name: str) -> Iterator[Line]:
    """Whole, of a base that is there, and loads."""
    from deas_vla.bundle import open_bundle, read_manifest
    from deas_vla.guidance.configuration_guided import local_directory, read_config

    root = local_directory(name)
    manifest = read_manifest(root)
    config = read_config(root)
    yield Line(OK, f"bundle {name}: {len(manifest['files'])} files, all as they were written")
    for package, then in manifest.get("versions", {}).items():
        now = platform.python_version() if package == "python" else _version(package)
        if now is not None and package != "deas_vla" and _minor(now) != _minor(then):
            yield Line(NOTE, f"bundle {name} was made with {package} {then}, here is {now}")
    if "backbone" not in manifest:
        yield Line(NOTE, f"bundle {name} does not name its backbone: write it again to be sure")
    policy = open_bundle(name)
    spec = policy.vla.spec
    critic = policy.critic.config.algorithm if policy.critic is not None else "none"
    yield Line(
        OK,
        f"bundle {name} loads over {config.vla.path}: embodiment '{spec.embodiment}', state "
        f"{spec.state_dim}, action {spec.action_dim}, cameras {list(spec.image_keys)}, critic "
        f"{critic}, N = {config.candidates}",
    )


def _guarded(what: str, look: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    try:
        yield from look()
    except DeasError as error:
        yield Line(BAD, str(error))
    except Exception as error:  # a doctor reports what a command would die of
        said = str(error) or type(error).__name__
        yield Line(BAD, f"{what}: {said[:300]} ({type(error).__name__})")


def _extra(requirement: Requirement) -> str:
    """The extra that asks for it, or nothing."""
    marker = str(requirement.marker or "")
    return marker.split("extra ==")[1].strip(" \"'") if "extra ==" in marker else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: Any) -> tuple[str, ...]:
    return tuple(str(version).split(".")[:2])


def main(config: DoctorConfig) -> None:
    """Print what is found; exit status 1 where something is bad."""
    bad = 0
    for line in examine(config):
        print(line, flush=True)
        bad += line.state == BAD
    if bad:
        raise SystemExit(1)
