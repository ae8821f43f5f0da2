"""Improve a bundle's critic in rounds: collect with it, train it on what came of it, measure.

python recipes/improve.py --bundle outputs/lift --rounds=2 --episodes=150 \\
  --output_dir outputs/improve

In Lift, or with --kitchens.tasks='[CloseDrawer,TurnOnStove]' --kitchens.assets=lite in RoboCasa's
kitchens: collected in those to train in, compared in those to test in.

Iterative value refinement for guided decoding (arXiv 2503.02368), on a robot. Each round rolls the
policy out with the newest critic (half of the episodes as the base policy), adds them to all data
so far, trains a critic anew, and compares it with the base policy on validation episodes. Only the
new rollouts go through the backbone. Every step goes on where it stopped when the same command is
given again; ROUND/bundle is a bundle like any other. With --clone=true the policy, too, is trained
anew in each round, on the successes of all data so far.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deas_vla.cli import make_output_dir, run
from deas_vla.envs.robocasa import kitchen
from deas_vla.envs.robocasa.tasks import resolve_tasks
from deas_vla.envs.robosuite import lift
from deas_vla.errors import DeasError
from deas_vla.evaluation.kitchens import KitchenRolloutConfig
from deas_vla.evaluation.lift import lift_run, lift_trials, open_on_lift
from deas_vla.evaluation.results.rounds import round_rows, text_table, write_rounds
from deas_vla.evaluation.runs import PolicyRun
from deas_vla.guidance.config import SelectionOverride
from deas_vla.provenance import run_record

if TYPE_CHECKING:  # every simulator process imports this file, and LeRobot takes long
    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.training.rounds import Retraining


@dataclass
class Kitchens:
    """RoboCasa's kitchens, where Lift is not meant.

    Attributes:
        tasks: As of eval/robocasa.py; none means Lift.
        assets: Whose kitchens, likewise.
        split: Where is collected; in lite kitchens say ``varied``.
        validation_split: Where rounds are compared; in lite kitchens say ``validation``.
        horizon: Steps until truncation; RoboCasa's own for each task when 0.
    """

    tasks: list[str] = field(default_factory=list)
    assets: str = "auto"
    split: str = "pretrain"
    validation_split: str = "target"
    horizon: int = 0


@dataclass
class ImproveConfig:
    """How many rounds of how many episodes.

    Attributes:
        bundle: Where to start: policy, critic and its settings.
        kitchens: Where to collect and to compare.
        rounds: Collections, each followed by a critic trained anew.
        episodes: Collected in each round, half of them with one candidate; of every task.
        candidates: N of the guided half, and of the evaluation.
        validation_episodes: Paired, of every round and of the start; of every task.
        validation_seed: Of their set; choose another than a table's.
        seed: Of the collected episodes, the hold-out and the critics.
        holdout: Share of the rollouts kept out of training.
        clone: Train a new adapter in each round as well, on all successful episodes so far.
        policy_steps: Updates of each round's adapter; the bundle's own number when 0.
        critic_steps: Updates of each round's critic; the bundle's own number when 0.
        selection: How one of the candidates is chosen, where not as the bundle says.
        workers: Simulator processes.
        batch_size: Observations per policy call; 1 on a CPU and 8 on a GPU when 0.
        output_dir: Where everything goes, and where an interrupted run goes on.
    """

    bundle: Path = Path("outputs/lift")
    kitchens: Kitchens = field(default_factory=Kitchens)
    rounds: int = 2
    episodes: int = 150
    candidates: int = 16
    validation_episodes: int = 60
    validation_seed: int = 2000
    seed: int = 0
    holdout: float = 0.1
    clone: bool = False
    policy_steps: int = 0
    critic_steps: int = 0
    selection: SelectionOverride = field(default_factory=SelectionOverride)
    workers: int = 2
    batch_size: int = 0
    output_dir: Path = Path("outputs/improve")

    def check(self) -> None:
        """DeasError for a value without meaning."""
        for name, least in (("rounds", 1), ("episodes", 2), ("candidates", 2), ("workers", 1)):
            if getattr(self, name) < least:
                raise DeasError(f"{name} {getattr(self, name)}: use {least} or more")
        if self.episodes % 2:
            raise DeasError(f"episodes {self.episodes}: use an even number, half for each policy")
        if not 0 <= self.holdout < 1:
            raise DeasError(f"holdout {self.holdout}: use a share of at least 0 and below 1")
        if not self.kitchens.tasks and self.kitchens != Kitchens():
            raise DeasError("kitchens.* without --kitchens.tasks: Lift has none, so name tasks")
        if self.validation_seed in [self.collection_seed(n + 1) for n in range(self.rounds)]:
            raise DeasError(
                f"validation_seed {self.validation_seed} is that of a round's collection with seed "
                f"{self.seed}: use another, which no critic is trained on"
            )

    def collection_seed(self, number: int) -> int:
        """Of the episodes of round ``number``, which no other round has."""
        return 1000 * (self.seed + 1) + number

    @property
    def collected(self) -> int:
        """Episodes of a round, all tasks together."""
        tasks = self.kitchens.tasks
        return self.episodes * (len(resolve_tasks(tasks)) if tasks else 1)

    def retraining(self, number: int) -> "Retraining":
        """What is trained after the collection of round ``number``."""
        from deas_vla.training.rounds import Retraining

        return Retraining(
            holdout=self.holdout,
            seed=self.seed,
            round=number,
            clone=self.clone,
            policy_steps=self.policy_steps,
            critic_steps=self.critic_steps,
        )


def main(config: ImproveConfig) -> None:
    started = time.time()
    config.check()

    from deas_vla.evaluation.engine.launch import Launch
    from deas_vla.training.rounds import check_retraining, is_retrained, retrain

    launch = Launch()
    if launch.world > 1:
        raise DeasError("recipes/improve.py runs in one process: start it without accelerate")
    check_retraining(config.bundle, config.retraining(1))
    output = make_output_dir(config.output_dir)
    evaluate(config, launch, config.bundle, output / "round-0")
    newest, rollouts = config.bundle, []
    for number in range(1, config.rounds + 1):
        directory = output / f"round-{number}"
        rollouts.append(collect(config, launch, newest, number, directory))
        settings = config.retraining(number)
        if not is_retrained(config.bundle, rollouts, directory, settings):
            retrain(config.bundle, rollouts, directory, settings, launch.device)
        newest = directory / "bundle"
        evaluate(config, launch, newest, directory)
    rows = round_rows(output, config.rounds, config.collected, config.candidates)
    write_rounds(run_record(config, started) | {"rows": rows}, output)
    print(text_table(rows))
    print(f"results in {output}")


def collect(
    config: ImproveConfig, launch: "Launch", bundle: Path, number: int, directory: Path
) -> Path:
    """This round's rollouts as a dataset; episodes and noise that no other round has."""
    place = directory / "rollouts"
    seed = config.collection_seed(number)
    robot = kitchen.ROBOT_TYPE if config.kitchens.tasks else lift.ROBOT_TYPE
    claimed, _ = claim(
        config, launch, bundle, place, seed, config.episodes // 2, config.kitchens.split,
        repo_id="local/rollouts", robot_type=robot,
    )  # fmt: skip
    claimed.collect("local/rollouts", robot)
    return place / "dataset"


def evaluate(config: ImproveConfig, launch: "Launch", bundle: Path, directory: Path) -> None:
    """Base policy against best-of-N on the validation episodes, under ``directory``/eval."""
    started = time.time()
    claimed, where = claim(
        config, launch, bundle, directory / "eval", config.validation_seed,
        config.validation_episodes, config.kitchens.validation_split,
    )  # fmt: skip
    claimed.evaluate(f"Best-of-N {where} with {bundle}", config, 0, started)


def claim(
    config: ImproveConfig,
    launch: "Launch",
    bundle: Path,
    output: Path,
    seed: int,
    episodes: int,
    split: str,
    **more: Any,
) -> tuple[PolicyRun, str]:
    """``episodes`` of every task with one and with N candidates, and what to call the place."""
    kitchens, candidates = config.kitchens, [1, config.candidates]
    if kitchens.tasks:
        flags = KitchenRolloutConfig(
            bundle=bundle, tasks=kitchens.tasks, assets=kitchens.assets, split=split,
            horizon=kitchens.horizon, candidates=candidates, selection=config.selection,
            episodes=episodes, seeds=[seed], workers=config.workers,
            batch_size=config.batch_size, output_dir=output,
        )  # fmt: skip
        return flags.claim(launch, flags.check(), **more), flags.where()
    policy = open_on_lift(bundle, launch.device, config.selection)
    policy.check_candidates(config.candidates)
    trials = lift_trials([seed], episodes, candidates)
    claimed = lift_run(
        launch, policy, output, trials,
        workers=config.workers, batch_size=config.batch_size, **more,
    )  # fmt: skip
    return claimed, "in Lift"


if __name__ == "__main__":
    run(main, ImproveConfig)
