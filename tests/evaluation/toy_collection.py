"""The toy collection as a script: OUTPUT TASK EPISODES WORKERS."""

import sys
from pathlib import Path

from sim_cases import ToyMaker, ToyPlanner

from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.trials import Outcome, paired_trials
from deas_vla.evaluation.engine.workers import SimulatorPool, every_step
from deas_vla.evaluation.recording import STAGED, Stage, assemble, recover


def collect(output: Path, task: str, episodes: int, workers: int) -> list[Outcome]:
    trials = paired_trials([task], [0], episodes, [1, 4], per_task=False)
    output.mkdir(exist_ok=True)
    recover(output, list(journal.finished(output).values()))
    (output / STAGED).mkdir(exist_ok=True)
    stage = Stage(output, "test/toy", "toy", "abc")
    with SimulatorPool(workers, ToyMaker(output), ToyPlanner()) as pool:
        journal.run_missing(pool, trials, output, deliver=stage, record=every_step)
    outcomes = journal.merge(output, trials)
    assemble(output, outcomes, "test/toy")
    return outcomes


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
