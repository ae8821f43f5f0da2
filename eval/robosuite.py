"""Evaluate a bundle on the quickstart task: best-of-N against the base policy, paired.

python eval/robosuite.py --bundle outputs/quickstart --candidates='[1,16]' --episodes=100 --seed=0
"""

import sys
from pathlib import Path

# This file must not stand in the way of the package it is named after.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import functools  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402

from tqdm import tqdm  # noqa: E402

from deas_vla.bundle import open_bundle, read_manifest  # noqa: E402
from deas_vla.cli import make_output_dir, run  # noqa: E402
from deas_vla.errors import DeasError  # noqa: E402
from deas_vla.policies.vla import VLASpec  # noqa: E402
from deas_vla.provenance import provenance  # noqa: E402
from deas_vla.sim import results  # noqa: E402
from deas_vla.sim.agents import PolicyAgent  # noqa: E402
from deas_vla.sim.env import EnvSpec  # noqa: E402
from deas_vla.sim.evaluation import Worker, episode_seed, paired_trials, run_trials  # noqa: E402
from deas_vla.sim.robosuite_lift import LiftConfig, LiftEnv, lift_spec  # noqa: E402
from deas_vla.sim.rollout import rollout  # noqa: E402
from deas_vla.sim.video import write_episode_video  # noqa: E402


@dataclass
class EvalConfig:
    """What to evaluate.

    Attributes:
        bundle: Bundle directory from recipes/finetune_groot.py.
        candidates: Numbers of candidates to compare, over the same episodes.
        episodes: Episodes for each.
        seed: Of the set of episodes; every seed has its own episodes and noise.
        temperature: Of the choice among candidates; 0 takes the best.
        workers: Simulator processes.
        video: Write an mp4 of the first episode with the most candidates.
        output_dir: Where results go; <bundle>/eval when left out.
    """

    bundle: Path = Path("outputs/quickstart")
    candidates: list[int] = field(default_factory=lambda: [1, 16])
    episodes: int = 100
    seed: int = 0
    temperature: float = 0.0
    workers: int = 2
    video: bool = True
    output_dir: Path | None = None


def make_env() -> LiftEnv:
    return LiftEnv(LiftConfig())


def make_agent(bundle: Path, temperature: float, candidates: int) -> PolicyAgent:
    policy = open_bundle(bundle)
    if candidates > 1 and policy.critic is None:
        raise DeasError(
            f"bundle {bundle} has no critic but --candidates asks for {candidates}: run the "
            "recipe with --stages=[features,critic], or use --candidates=[1]"
        )
    check_embodiment(policy.vla.spec, lift_spec(LiftConfig()), str(bundle))
    policy.config.candidates, policy.config.temperature = candidates, temperature
    return PolicyAgent(policy)


def check_embodiment(policy: VLASpec, env: EnvSpec, bundle: str) -> None:
    """DeasError for a bundle of another robot."""
    wanted = (len(env.state_names), len(env.action_names), set(env.image_keys))
    if (policy.state_dim, policy.action_dim, set(policy.image_keys)) != wanted:
        raise DeasError(
            f"bundle {bundle} is of embodiment '{policy.embodiment}' (state {policy.state_dim}, "
            f"action {policy.action_dim}, cameras {sorted(policy.image_keys)}), {env.name} has "
            f"state {wanted[0]}, action {wanted[1]}, cameras {sorted(wanted[2])}: use its bundle"
        )


def main(config: EvalConfig) -> None:
    started = time.time()
    manifest = read_manifest(config.bundle)
    trials = paired_trials(config.seed, config.episodes, config.candidates)
    agent = functools.partial(make_agent, config.bundle, config.temperature)
    agent(max(config.candidates))  # a bundle that does not fit is refused before any simulator
    output = make_output_dir(config.output_dir or config.bundle / "eval")

    outcomes = []
    with tqdm(total=len(trials), desc="episodes", unit="ep") as bar:
        for outcome in run_trials(Worker(make_env, agent), trials, config.workers):
            outcomes.append(outcome)
            rates = {
                n: [o.success for o in outcomes if o.candidates == n] for n in config.candidates
            }
            bar.set_postfix({f"N={n}": f"{sum(r)}/{len(r)}" for n, r in rates.items()})
            bar.update()

    order = {(trial.seed, trial.candidates): k for k, trial in enumerate(trials)}
    outcomes.sort(key=lambda o: order[o.seed, o.candidates])
    lines = "".join(json.dumps(outcome.to_dict()) + "\n" for outcome in outcomes)
    results.write_text(output / "episodes.jsonl", lines)
    rows = results.success_rows(outcomes, config.temperature)
    results.write_figure(rows, output / "success.png")
    results.write_report("Best-of-N on Lift", rows, output / "success.png", output / "report.html")
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        **provenance(),
        "bundle_git_revision": manifest.get("git_revision"),
        "wall_seconds": time.time() - started,
        "rows": rows,
    }
    results.write_json(output / "results.json", record)
    if config.video:
        env, first = make_env(), episode_seed(config.seed, 0)
        shown = rollout(env, agent(max(config.candidates)), first, record_images=lambda step: True)
        write_episode_video(shown, output / "episode.mp4", env.spec.fps)
        env.close()
    print(results.text_table(rows))
    print(f"results in {output}")


if __name__ == "__main__":
    run(main, EvalConfig)
