"""What an interrupted evaluation has already done: one JSON line per finished episode.

``run.json`` holds what makes episodes comparable; ``episodes.jsonl`` one line per episode, appended
by one write each. Further processes of the same run append to ``episodes.<rank>.jsonl`` beside it,
because appending to one file from several machines is not safe on network file systems.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from deas_vla.errors import DeasError
from deas_vla.evaluation.engine.trials import ERROR, Deliver, Outcome, outcome_of, run_trials
from deas_vla.evaluation.engine.workers import SimulatorPool, Trial
from deas_vla.files import write_json, write_text

if TYPE_CHECKING:  # simulator processes import this file, and LeRobot takes long
    from deas_vla.guidance.guided import ValueGuidedPolicy

RUN, EPISODES = "run.json", "episodes.jsonl"


def claim(directory: Path, identity: Mapping[str, Any]) -> None:
    """Make ``directory`` the place of one configuration, or check that it is.

    Args:
        directory: The output directory.
        identity: Whatever changes an episode's result, as JSON values; not which episodes are run,
            so that more of them can be added.

    Raises:
        DeasError: It holds episodes of another configuration; the fields that differ are named.
    """
    file = directory / RUN
    wanted = json.loads(json.dumps(identity, default=str))
    if not file.exists():
        if any(directory.glob("episodes*.jsonl")):
            raise DeasError(
                f"{directory} holds episodes but no {RUN} that says how they were run: use another "
                "--output_dir or remove it"
            )
        write_json(file, wanted)
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {there.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if changed:
        raise DeasError(
            f"{directory} holds episodes of another configuration ({'; '.join(changed)}): use "
            "another --output_dir or remove it"
        )


def identity(policy: "ValueGuidedPolicy", env: object) -> dict[str, Any]:
    """What makes two episodes comparable: the weights, how they are run, and the simulator.

    Args:
        policy: With the selection and the number of executed steps that it runs with.
        env: The environment's configuration, a dataclass; its task stands in every trial instead.
    """
    simulators = ("mujoco", "praxis-robosuite", "robosuite", "praxis-robocasa", "robocasa")
    versions = {}
    for name in simulators:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    inference = {} if policy.critic is None else vars(policy.critic.inference)
    return {
        "policy_revision": policy.revision(),
        "policy.embodiment": policy.config.vla.embodiment,
        "policy.denoising_steps": policy.config.vla.denoising_steps,
        **{f"critic.inference.{name}": value for name, value in inference.items()},
        "selection": vars(policy.config.selection),
        **{f"guidance.{name}": value for name, value in vars(policy.config.speed).items()},
        "n_action_steps": policy.config.n_action_steps,
        **{f"env.{name}": value for name, value in vars(env).items() if name != "task"},
        "simulator": versions,
    }


def finished(directory: Path) -> dict[str, Outcome]:
    """All outcomes in ``directory``, by episode id; a line torn by a crash is passed over."""
    outcomes = {}
    for file in sorted(directory.glob("episodes*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                outcome = Outcome(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            outcomes[outcome.episode_id] = outcome
    return outcomes


class Journal:
    """Appends outcomes; a context manager.

    Args:
        directory: The output directory.
        rank: This process among those that share it.
    """

    def __init__(self, directory: Path, rank: int = 0) -> None:
        file = directory / (EPISODES if rank == 0 else f"episodes.{rank}.jsonl")
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._drop_torn_line()

    def append(self, outcome: Outcome) -> None:
        """One write: a process killed here leaves the whole line or at most a torn last one."""
        line = json.dumps(outcome.to_dict()) + "\n"
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        os.close(self._descriptor)

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        content = os.pread(self._descriptor, size, 0)
        os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run_missing(
    pool: SimulatorPool,
    trials: Sequence[Trial],
    directory: Path,
    rank: int = 0,
    world: int = 1,
    deliver: Deliver = outcome_of,
    record: Callable[[int], bool] | None = None,
) -> None:
    """Run this process's share of the trials that ``directory`` lacks, with a progress bar.

    Pairs stay in one process. The share depends on the trials alone, because other processes are
    already at theirs while this one looks at what is done. ``deliver`` and ``record`` are those of
    `run_trials`.
    """
    pairs = list(dict.fromkeys((trial.task, trial.seed) for trial in trials))
    share = set(pairs[rank::world])
    mine = [trial for trial in trials if (trial.task, trial.seed) in share]
    done = finished(directory)
    known = [done[trial.episode_id] for trial in mine if trial.episode_id in done]
    missing = [trial for trial in mine if trial.episode_id not in done]
    bar = tqdm(total=len(mine), initial=len(known), desc="episodes", unit="ep", disable=rank > 0)
    with Journal(directory, rank) as journal, bar:
        bar.set_postfix_str(running_rates(known))
        for outcome in run_trials(pool, missing, deliver, record):
            journal.append(outcome)
            known.append(outcome)
            bar.set_postfix_str(running_rates(known), refresh=False)
            bar.update()


def running_rates(outcomes: Sequence[Outcome]) -> str:
    """Success so far by number of candidates, errors apart: ``N=1 12/20 (60 %)``."""
    parts = []
    for candidates in sorted({outcome.candidates for outcome in outcomes}):
        ran = [o for o in outcomes if o.candidates == candidates and o.outcome != ERROR]
        solved = sum(outcome.success for outcome in ran)
        rate = f" ({100 * solved / len(ran):.0f} %)" if ran else ""
        parts.append(f"N={candidates} {solved}/{len(ran)}{rate}")
    errors = sum(outcome.outcome == ERROR for outcome in outcomes)
    return ", ".join(parts) + (f", {errors} errors" if errors else "")


def merge(directory: Path, trials: Sequence[Trial]) -> list[Outcome]:
    """Join the files of all processes into ``episodes.jsonl``.

    Returns:
        The outcomes of ``trials`` in their order; the file also keeps episodes beyond them.

    Raises:
        DeasError: Some are missing: another process wrote elsewhere, or not at all.
    """
    outcomes = finished(directory)
    wanted = dict.fromkeys(trial.episode_id for trial in trials)
    missing = [name for name in wanted if name not in outcomes]
    if missing:
        raise DeasError(
            f"{len(missing)} episodes are missing in {directory}, the first {missing[0]}: all "
            "processes must see the same --output_dir; run the same command again"
        )
    chosen = [outcomes[name] for name in wanted]
    beyond = [outcome for name, outcome in outcomes.items() if name not in wanted]
    lines = [json.dumps(outcome.to_dict()) + "\n" for outcome in [*chosen, *beyond]]
    write_text(directory / EPISODES, "".join(lines))
    for file in directory.glob("episodes.*.jsonl"):
        file.unlink()
    return chosen
