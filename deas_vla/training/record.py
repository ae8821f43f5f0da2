"""What a run notes of itself: which settings its stages were trained with, and whether they ended.

``<output_dir>/checkpoints/run.json`` holds this for each stage that trains. It decides whether a
command goes on with what is there, and refuses by name where it would not.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deas_vla.errors import DeasError
from deas_vla.files import discard, write_json
from deas_vla.training.locking import sole_writer

RUN_FILE = "run.json"
OPEN = "auto"  # a setting that is left to the run, or that it has not settled yet
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What is noted of the present run; for the main process alone.

    Attributes:
        file: Where.
        identities: Of its stages.
    """

    file: Path
    identities: dict[str, dict[str, Any]]

    def setting(self, stage: str, name: str) -> Any:
        """A setting of one of this run's stages, as an earlier run has settled it or as it is."""
        return self.identities.get(stage, {}).get(name)

    def settle(self, stage: str, name: str, value: Any) -> None:
        """Note what was decided about a setting that was left open."""
        if stage in self.identities and self.identities[stage].get(name) != value:
            self.identities[stage][name] = value
            _note(self.file, _known(self.file), self.identities, finished=False)


@contextmanager
def recorded_run(
    output: Path, identities: Mapping[str, Identity], resume: bool, accelerator: Accelerator
) -> Iterator[RunRecord]:
    """Run the stages inside: alone in ``output``, going on or starting over, and noted when done.

    A stage goes on from its newest checkpoint, whether it was interrupted or has finished; its
    ``steps`` may have been raised. Checkpoints are removed only where ``resume`` is false, and of
    this run's stages alone.

    Args:
        output: The run's directory.
        identities: All that decides each stage's result, as flat JSON values; ``<stage>.steps``
            among them.
        resume: The user's wish.
        accelerator: Its main process does all this for the others.

    Raises:
        DeasError: A stage was trained with other settings, or another run is still writing here.
    """
    file = output / "checkpoints" / RUN_FILE
    record = RunRecord(file, {stage: dict(identity) for stage, identity in identities.items()})
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(sole_writer(output))
            for line in _begin(file, record.identities, resume):
                accelerator.print(line)
        accelerator.wait_for_everyone()
        yield record
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _note(file, _known(file), record.identities, finished=True)


def _begin(file: Path, identities: dict[str, dict[str, Any]], resume: bool) -> list[str]:
    """Make the stages' checkpoints what they go on from; what there is to say about it."""
    known, said = _known(file, of_any_version=not resume), []
    if resume:
        for stage, identity in identities.items():
            if stage in known:
                _settle_open(known[stage]["identity"], identity)
                said += _compare(file.parent.parent, stage, known[stage], identity)
    for stage in identities:
        if not resume or stage not in known:
            discard(file.parent / stage)
    _note(file, known, identities, finished=False)
    return said


def _settle_open(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A setting that one side left open is what the other says, on both sides."""
    for name in before.keys() & now.keys():
        if now[name] == OPEN:
            now[name] = before[name]
        elif before[name] == OPEN:
            before[name] = now[name]


def _compare(output: Path, stage: str, before: dict[str, Any], now: Identity) -> list[str]:
    had, steps = before["identity"], f"{stage}.steps"
    run = f"the {'finished' if before['finished'] else 'interrupted'} run in {output}"
    for name in sorted({*had, *now} - {steps}):
        if had.get(name) != now.get(name):
            raise DeasError(
                f"{run} had {name}={had.get(name)}, this one has {name}={now.get(name)}: give its "
                "value to go on, choose another --output_dir, or start over with --resume=false"
            )
    more, fewer = now.get(steps, 0), had.get(steps, 0)
    if more < fewer:
        raise DeasError(
            f"{run} had {steps}={fewer}, this one has {steps}={more}: steps can be raised, not "
            "lowered; choose another --output_dir, or start over with --resume=false"
        )
    if more == fewer:
        return []
    return [
        f"{stage}: {steps} raised from {fewer} to {more}; a constant learning rate stays what it "
        f"is, a cosine goes on as that of {more} updates, so it rises again"
    ]


def _known(file: Path, of_any_version: bool = False) -> dict[str, Any]:
    """Stages of earlier runs by name, each with ``finished`` and ``identity``."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if "stages" not in content:
        if of_any_version:
            return {}
        raise DeasError(
            f"{file} was written by an earlier version: finish the run with that one, or start "
            "over with --resume=false"
        )
    stages: dict[str, Any] = content["stages"]
    return stages


def _note(
    file: Path, known: dict[str, Any], identities: Mapping[str, Identity], *, finished: bool
) -> None:
    stages = known | {
        stage: {"finished": finished, "identity": dict(identity)}
        for stage, identity in identities.items()
    }
    try:
        write_json(file, {"stages": stages})
    except OSError as error:
        raise DeasError(f"{file} cannot be written ({error.strerror}): free disk space") from error
