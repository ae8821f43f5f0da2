"""From a policy and its trials to results or to a dataset: what the scripts do once flags are read.

Every simulator process imports the script that started it, and with it this file: what needs torch
or LeRobot (12 s) is imported where it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deas_vla.cli import make_output_dir
from deas_vla.envs.env import SimEnv
from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.planning import Planner
from deas_vla.evaluation.engine.trials import Outcome
from deas_vla.evaluation.engine.workers import SimulatorPool, Trial, every_step
from deas_vla.evaluation.recording import STAGED, Stage, assemble, recover
from deas_vla.evaluation.results.films import film
from deas_vla.evaluation.results.report import write_all
from deas_vla.evaluation.results.tables import text_table

if TYPE_CHECKING:
    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.guidance.guided import ValueGuidedPolicy


@dataclass(frozen=True)
class PolicyRun:
    """Trials of one policy, as one of the processes that share them sees them.

    Attributes:
        launch: Which of them this is.
        output: The directory of all.
        identity: What the episodes are run with, as in ``run.json``.
        planner: The policy's side.
        make_env: Task name to simulator, in a simulator process.
        trials: Of all processes.
        workers: Simulator processes of this one.
    """

    launch: "Launch"
    output: Path
    identity: dict[str, Any]
    planner: Planner
    make_env: Callable[[str], SimEnv]
    trials: Sequence[Trial]
    workers: int

    @classmethod
    def claim(
        cls,
        launch: "Launch",
        policy: "ValueGuidedPolicy",
        env: object,
        output: Path,
        *,
        make_env: Callable[[str], SimEnv],
        trials: Sequence[Trial],
        workers: int,
        batch_size: int,
        **more: Any,
    ) -> "PolicyRun":
        """Make ``output`` the place of this policy in these simulators, or go on there.

        Args:
            launch: Which process this is.
            policy: As it is to be run.
            env: The environment's configuration, a dataclass.
            output: The directory.
            make_env: As the attribute.
            trials: As the attribute.
            workers: As the attribute.
            batch_size: Observations per policy call; 0 leaves it to `PolicyPlanner`.
            more: What else must be the same where a run goes on.

        Raises:
            DeasError: It cannot be written, or holds episodes that were run otherwise; or
                candidates that do not fit in memory or in the latency budget.
        """
        from deas_vla.evaluation.engine.agents import PolicyPlanner

        planner = PolicyPlanner(policy, batch_size or None)
        make_output_dir(output)
        most = planner.start(max(trial.candidates for trial in trials), launch.world)
        allowed = [replace(t, candidates=min(t.candidates, most)) for t in trials]
        trials = list(dict.fromkeys(allowed))  # with a budget, fewer candidates than asked for
        identity = journal.identity(policy, env)
        launch.claim(output, identity | more)
        return cls(launch, output, identity, planner, make_env, trials, workers)

    def evaluate(self, title: str, config: Any, films: int, started: float) -> None:
        """Run what is missing; process 0 joins all outcomes and writes and prints the results.

        Args:
            title: Of the report.
            config: The script's dataclass.
            films: Of as many successes and as many failures of each task, with the most candidates.
            started: Of the script, seconds since the epoch.
        """
        with self._pool() as pool:
            journal.run_missing(pool, self.trials, self.output, self.launch.rank, self.launch.world)
            self.launch.wait()
            if self.launch.rank > 0:
                return
            outcomes = journal.merge(self.output, self.trials)
            filmed = film(pool, outcomes, self.output / "videos", films)
        record = write_all(title, config, self.identity, outcomes, filmed, self.output, started)
        print(title)
        print(text_table(record["rows"]))
        print(f"results in {self.output}")

    def collect(self, repo_id: str, robot_type: str) -> list[Outcome]:
        """Run what is missing and record it; process 0 joins all episodes to ``dataset/``.

        Args:
            repo_id: Of the dataset.
            robot_type: Of the dataset.

        Returns:
            The outcomes of all trials, in process 0; elsewhere none.
        """
        launch = self.launch
        if launch.rank == 0:
            recover(self.output, list(journal.finished(self.output).values()))
            (self.output / STAGED).mkdir(exist_ok=True)
        launch.wait()
        revision = self.identity["policy_revision"][:12]
        stage = Stage(self.output, repo_id, robot_type, revision)
        with self._pool() as pool:
            journal.run_missing(
                pool,
                self.trials,
                self.output,
                launch.rank,
                launch.world,
                deliver=stage,
                record=every_step,
            )
        launch.wait()
        if launch.rank > 0:
            return []
        outcomes = journal.merge(self.output, self.trials)
        every = list(journal.finished(self.output).values())  # also of an earlier, larger run
        dataset = assemble(self.output, every, repo_id)
        print(f"{journal.running_rates(outcomes)}; dataset in {dataset}")
        return outcomes

    def _pool(self) -> SimulatorPool:
        return SimulatorPool(self.workers, self.make_env, self.planner)
