"""The toy collection as a script: OUTPUT TASK EPISODES WORKERS."""

import sys
from pathlib import Path

from sim_cases import ToyMaker, ToyPlanner

from deas_vla.evaluation.engine.trials import Outcome, paired_trials
from deas_vla.evaluation.runs import PolicyRun


def collect(output: Path, task: str, episodes: int, workers: int) -> list[Outcome]:
    from deas_vla.evaluation.engine.launch import Launch

    output.mkdir(exist_ok=True)
    trials = paired_trials([task], [0], episodes, [1, 4], per_task=False)
    who = {"policy_revision": "abc"}
    run = PolicyRun(Launch(), output, who, ToyPlanner(), ToyMaker(output), trials, workers)
    return run.collect("test/toy", "toy")


if __name__ == "__main__":
    collect(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
