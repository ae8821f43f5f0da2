"""What are a bundle's candidates worth, and does its critic know? The simulator is branched.

python eval/candidates.py --bundle outputs/lift --candidates=16 --episodes=24 --repeats=2 \\
  --output_dir outputs/lift/candidates

At decision points of the base policy's episodes every candidate is executed from the saved state
and followed by the base policy to the end. From that: whether Q orders the candidates of a state,
what each selection rule gains at each N, and what a perfect one would. Decisions are kept in
``decisions/``: the same command goes on where it stopped, and ``--decisions=DIR`` asks another
critic of the same policy about them without running anything.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.robosuite.lift import LiftConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.workers import Job, SimulatorPool, Trial
from deas_vla.evaluation.lift import TASK, lift_trials, make_lift, open_on_lift
from deas_vla.evaluation.oracle.branching import BranchEpisode, check_affordable
from deas_vla.evaluation.oracle.records import Branched, read_branched, write_branched
from deas_vla.files import write_json
from deas_vla.guidance.config import SelectionConfig, SelectionOverride
from deas_vla.provenance import run_record

# Every simulator process imports this file: what needs LeRobot (12 s) is imported in main().


@dataclass
class CandidatesConfig:
    """What to branch, and how far.

    Attributes:
        bundle: Bundle directory from recipes/finetune_groot.py, with a critic.
        decisions: Directory of an earlier run whose decisions are scored again; nothing is run.
        candidates: N at a decision point; smaller numbers are looked at as well.
        repeats: Continuations of each candidate, with the same noise for all candidates.
        episodes: Of the base policy.
        stride: Decisions of an episode from one branching point to the next.
        points: Most branching points in an episode.
        seed: Of the set of episodes: choose another than a table's.
        budget: Most continuations that may be asked for.
        resamples: Of the bootstrap behind every interval.
        workers: Simulator processes.
        batch_size: Observations per policy call; 1 on a CPU and 8 on a GPU when 0.
        output_dir: Where results go, and where an interrupted run goes on; <bundle>/candidates
            when left out.
    """

    bundle: Path = Path("outputs/lift")
    decisions: Path | None = None
    candidates: int = 16
    repeats: int = 2
    episodes: int = 24
    stride: int = 3
    points: int = 4
    seed: int = 1000
    budget: int = 20_000
    resamples: int = 1000
    workers: int = 2
    batch_size: int = 0
    output_dir: Path | None = None
    selection: SelectionOverride = field(default_factory=SelectionOverride)

    def check(self) -> None:
        """DeasError for a value without meaning, or more than the budget allows."""
        for name in ("repeats", "episodes", "stride", "points", "resamples", "workers"):
            if getattr(self, name) < 1:
                raise DeasError(f"{name} {getattr(self, name)}: use 1 or more")
        if self.candidates < 2:
            raise DeasError(f"candidates {self.candidates}: use 2 or more, there must be a choice")
        if self.decisions is None:
            decisions = self.episodes * self.points
            check_affordable(decisions, self.candidates, self.repeats, self.budget)


def main(config: CandidatesConfig) -> None:
    started = time.time()
    config.check()

    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.evaluation.oracle import analysis, report

    launch = Launch()
    if launch.world > 1:
        raise DeasError("eval/candidates.py runs in one process: start it without accelerate")
    policy = open_on_lift(config.bundle, launch.device, config.selection)
    if policy.critic is None:
        raise DeasError(f"bundle {config.bundle} has no critic: train one (--stages=critic)")
    rules = rules_for(policy.config.selection, policy.critic.config.ensemble)
    output = make_output_dir(config.output_dir or config.bundle / "candidates")
    source = config.decisions or output
    if config.decisions is None:
        policy.config.selection = SelectionConfig(rule="uniform")  # candidates are only drawn
        identity = journal.identity(policy, LiftConfig())
        how = {
            name: getattr(config, name) for name in ("candidates", "repeats", "stride", "points")
        }
        launch.claim(output, identity | how)
        branch_missing(config, policy, output)
    branched = read_branched(source)
    if config.decisions is None:  # other seeds' may lie beside them
        mine = {trial.episode_id for trial in trials_of(config)}
        branched = [each for each in branched if each.episode_id in mine]
    if not any(each.points for each in branched):
        raise DeasError(f"{source} holds no decision: run eval/candidates.py without --decisions")

    decisions = analysis.score_decisions(policy.critic, branched)
    generator = np.random.default_rng(config.seed)
    drawn = decisions.success.shape[1]
    counts = [count for count in (2, 4, 8, 16, 32, 64) if count < drawn] + [drawn]
    agreement = analysis.rank_agreement(decisions, generator, config.resamples)
    gains = analysis.gains(decisions, rules, counts, generator, config.resamples, config.seed)
    bins = analysis.proposed_calibration(decisions, generator, config.resamples)
    phases = [
        report.Phase(
            int(part.step.min()),
            int(part.step.max()),
            len(part),
            analysis.rank_agreement(part, generator, config.resamples),
            analysis.gains(part, rules, [drawn], generator, config.resamples, config.seed),
        )
        for part in decisions.phases()
    ]

    record = {
        **run_record(config, started),
        "rules": {name: asdict(rule) for name, rule in rules.items()},
        "data": {
            "episodes": len(branched),
            "decisions": len(decisions),
            "candidates": drawn,
            "repeats": decisions.success.shape[2],
        },
        "rows": report.oracle_rows(agreement, gains, bins, phases),
    }
    report.draw_gains(gains, output / "gains.png")
    report.draw_proposed(bins, output / "proposed.png")
    write_json(output / "results.json", record)
    report.write_report(record, agreement, gains, phases, output)
    print(report.text_table(gains))
    print(report.phase_table(phases))
    print(f"results in {output}")


def rules_for(own: SelectionConfig, members: int) -> dict[str, SelectionConfig]:
    """The bundle's own rule, the controls, and what this critic's ensemble allows."""
    rules = {
        "best": own,
        "softmax": SelectionConfig("softmax", temperature=0.1),
        "uniform": SelectionConfig("uniform"),
        "medoid": SelectionConfig("medoid"),
        "mean": SelectionConfig(ensemble="mean"),
    }
    if members > 1:
        rules["mean - std"] = SelectionConfig(ensemble="mean", kappa=1.0)
    return rules


def trials_of(config: CandidatesConfig) -> list[Trial]:
    """The episodes that the flags ask for."""
    return lift_trials([config.seed], config.episodes, [config.candidates])


def branch_missing(config: CandidatesConfig, policy: object, output: Path) -> None:
    """Branch the episodes that ``output`` lacks, with a progress bar."""
    from deas_vla.evaluation.engine.agents import PolicyPlanner
    from deas_vla.guidance.guided import ValueGuidedPolicy

    assert isinstance(policy, ValueGuidedPolicy)
    trials = trials_of(config)
    have = {each.episode_id for each in read_branched(output)}
    missing: Sequence[Trial] = [trial for trial in trials if trial.episode_id not in have]
    work = BranchEpisode(config.candidates, config.repeats, config.stride, config.points)
    planner = PolicyPlanner(policy, config.batch_size or None)
    bar = tqdm(total=len(trials), initial=len(trials) - len(missing), desc="episodes", unit="ep")
    with SimulatorPool(config.workers, make_lift, planner) as pool, bar:
        for end in pool.run([Job(trial, work) for trial in missing]):
            if end.result is None:
                raise DeasError(f"episode {end.trial.episode_id} of {TASK} failed: {end.error}")
            write_branched(output, Branched(end.trial.episode_id, end.result))
            bar.update()


if __name__ == "__main__":
    run(main, CandidatesConfig)
