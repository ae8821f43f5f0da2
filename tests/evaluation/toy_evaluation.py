"""The toy evaluation as a script: OUTPUT TASK EPISODES WORKERS; also under torchrun."""

import sys
from pathlib import Path

from sim_cases import ToyMaker, ToyPlanner

from deas_vla.evaluation.engine import journal
from deas_vla.evaluation.engine.trials import paired_trials
from deas_vla.evaluation.engine.workers import SimulatorPool


def main(output: Path, task: str, episodes: int, workers: int) -> None:
    from deas_vla.evaluation.engine.launch import Launch

    launch = Launch()
    trials = paired_trials([task], [0], episodes, [1, 4])
    output.mkdir(exist_ok=True)
    launch.claim(output, {"toy": 1})
    with SimulatorPool(workers, ToyMaker(output), ToyPlanner()) as pool:
        journal.run_missing(pool, trials, output, launch.rank, launch.world)
    launch.wait()
    if launch.rank == 0:
        files = sorted(file.name for file in output.glob("episodes*.jsonl"))
        print("joining", *files)
        journal.merge(output, trials)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
