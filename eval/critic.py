"""Measure a bundle's critic offline, on episodes that it was not trained on.

python eval/critic.py --bundle outputs/lift --dataset.root deas_vla/assets/lift_demos \\
  --output_dir outputs/lift/eval_critic

No simulator and no robot: the features come from the run's cache, and the policy is asked for the
chunks that the critic has to rank.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import draccus
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import make_output_dir, run
from deas_vla.critic.base import Critic
from deas_vla.data.episodes import EpisodeTable
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline import figures, report
from deas_vla.evaluation.offline.choices import choice_distances
from deas_vla.evaluation.offline.curves import typical_episodes, value_curve
from deas_vla.evaluation.offline.detection import detection_rows, recorded_values
from deas_vla.evaluation.offline.episodes import fitting_critic, held_out_episodes
from deas_vla.evaluation.offline.metrics import calibration_by_outcome, separation
from deas_vla.evaluation.offline.ranking import Rivals, dataset_rivals, groups_of, win_rates
from deas_vla.evaluation.offline.scoring import FrameCritic, score_dataset_chunks, values_along
from deas_vla.evaluation.offline.tails import solving_chunks, tail_errors
from deas_vla.evaluation.offline.twins import twin_chunks
from deas_vla.files import write_json
from deas_vla.guidance.config import SelectionOverride
from deas_vla.policies.vla import VLA
from deas_vla.provenance import run_record
from deas_vla.training.candidates import sample_candidates
from deas_vla.training.config import DatasetConfig, FeaturesConfig
from deas_vla.training.datasets import load_dataset
from deas_vla.training.encodings import Encodings
from deas_vla.training.features import cache_of_run, extract_features

FRACTIONS = np.linspace(0, 1, 11, dtype=np.float64)
HALF = len(FRACTIONS) // 2


@dataclass
class DatasetSource:
    """A LeRobotDataset v3; the one that the bundle was trained on when both are left out.

    Attributes:
        repo_id: ``user/name``.
        root: Its directory.
    """

    repo_id: str | None = None
    root: str | None = None


@dataclass
class CacheConfig:
    """Features of the dataset's frames.

    Attributes:
        cache: Its directory; that of the bundle's run when left out. What it lacks is computed.
        batch_size: Frames per forward pass.
    """

    cache: Path | None = None
    batch_size: int = 64


@dataclass
class CriticEvalConfig:
    """What to measure.

    Attributes:
        bundle: Bundle directory from recipes/finetune_groot.py.
        episodes: Episode numbers; when left out, those that the bundle held out, and all of a
            dataset that it was not trained on.
        noise_levels: Of the noised chunks, in standard deviations of the training actions.
        policy_samples: Chunks that the policy samples at a frame; 0 leaves that ranking out.
        policy_frames: Most frames at which it is asked, for each of its two questions.
        selection: What chooses among samples, where not as the bundle says.
        twins: Directory of another dataset of the same initial states, episode by episode, whose
            failed episodes are ranked below solved ones where the two part.
        resamples: Of the bootstrap behind every interval.
        seed: Of resamples, rivals and policy noise.
        output_dir: Where results go; <bundle>/eval_critic when left out.
    """

    bundle: Path = Path("outputs/lift")
    dataset: DatasetSource = field(default_factory=DatasetSource)
    features: CacheConfig = field(default_factory=CacheConfig)
    episodes: list[int] | None = None
    noise_levels: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    policy_samples: int = 8
    policy_frames: int = 256
    selection: SelectionOverride = field(default_factory=SelectionOverride)
    twins: Path | None = None
    resamples: int = 1000
    seed: int = 0
    output_dir: Path | None = None

    def check(self) -> None:
        """DeasError for a value that has no meaning."""
        for name, least in (("policy_samples", 0), ("policy_frames", 1), ("resamples", 1)):
            if getattr(self, name) < least:
                raise DeasError(f"{name} {getattr(self, name)}: use {least} or more")
        for level in self.noise_levels:
            if not level > 0:
                raise DeasError(f"noise level {level}: use a number above 0")


def main(config: CriticEvalConfig) -> None:
    started = time.time()
    config.check()
    manifest = read_manifest(config.bundle)
    table = load_dataset(chosen_dataset(config.dataset, manifest))
    episodes = held_out_episodes(manifest, table, config.episodes)
    output = make_output_dir(config.output_dir or config.bundle / "eval_critic")
    accelerator = Accelerator()
    policy = open_bundle(config.bundle, device=str(accelerator.device))
    learned = fitting_critic(policy, manifest, table, config.bundle)
    selection = config.selection.over(policy.config.selection)
    selection.check(learned.config.ensemble)

    encodings = extract_features(
        policy.vla,
        table,
        FeaturesConfig(
            policy.config.pooling,
            config.features.batch_size,
            skip_unreadable=bool(manifest["data"].get("unreadable_episodes")),
        ),
        config.features.cache or cache_of_run(config.bundle, manifest),
        accelerator,
        keep_tokens=config.policy_samples > 0,
    )
    critic = FrameCritic(learned, table, encodings.pooled)
    reward = RewardConfig(**manifest["config"]["critic"]["reward"])
    chunks = score_dataset_chunks(critic, table, episodes, reward)
    success = table.episode_success[episodes]
    values = values_along(critic, table, episodes, FRACTIONS)

    generator = np.random.default_rng(config.seed)
    calibrations = calibration_by_outcome(chunks, generator, config.resamples)
    separated = separation(values, success, generator, config.resamples)
    scale = learned.normalizer.action_std.cpu().numpy()
    rivals = dataset_rivals(chunks, config.noise_levels, scale, generator)
    choices = {}
    if config.policy_samples > 0:
        asked = generator.permutation(len(chunks))[: config.policy_frames]
        sampled = ask_policy(config, policy.vla, encodings, table, chunks.frame[asked], learned)
        flat = sampled.reshape(-1, *sampled.shape[2:])
        rivals["policy samples"] = Rivals(asked.repeat(config.policy_samples), flat)
        solved = {k: v for k, v in groups_of(chunks, table).items() if k.startswith("successes")}
        choices = choice_distances(
            critic, chunks, solved, asked, sampled, scale, selection,
            generator, config.resamples,
        )  # fmt: skip
    if config.twins is not None:
        twins = load_dataset(DatasetConfig("local/twins", str(config.twins)))
        rivals["twins"] = twin_chunks(chunks, table, twins, learned.normalizer)
    ranking = win_rates(critic, chunks, table, rivals, generator, config.resamples)
    solving = solving_chunks(table, episodes, reward, learned.config)
    tails = {}
    if len(solving.frame):
        proposed = None
        if config.policy_samples > 0:
            if len(solving.frame) > config.policy_frames:
                drawn = generator.permutation(len(solving.frame))[: config.policy_frames]
                solving = solving.some(np.sort(drawn))
            proposed = ask_policy(config, policy.vla, encodings, table, solving.frame, learned)
        tails = tail_errors(critic, table, solving, proposed, generator, config.resamples)
    recorded = recorded_values(critic, table, episodes)
    rows = [
        *report.calibration_rows(calibrations),
        *report.separation_rows(FRACTIONS, separated),
        *report.ranking_rows(ranking),
        *report.choice_rows(choices),
        *report.tail_rows(tails),
        *detection_rows(recorded, generator, config.resamples, learned.config.horizon),
    ]

    figures.draw_calibration(chunks, calibrations[""], output / "calibration.png")
    figures.draw_overestimation(calibrations[""], output / "overestimation.png")
    figures.draw_separation(FRACTIONS, separated, values, success, output / "separation.png")
    figures.draw_ranking(ranking, output / "ranking.png")
    pictured = {}
    for outcome, episode in typical_episodes(values[:, HALF], success, episodes).items():
        shown = value_curve(critic, table, chunks, episode, policy.vla.spec.image_keys[0], outcome)
        figures.draw_values(shown, output / f"values_{outcome}.png")
        pictured[outcome] = f"values along episode {table.episode_ids[episode]}"

    record = {
        **run_record(config, started),
        "bundle_git_revision": manifest.get("git_revision"),
        "algorithm": learned.config.algorithm,
        "reward": asdict(reward),
        "selection": asdict(selection),
        "data": {
            "repo_id": table.repo_id,
            "fingerprint": table.fingerprint,
            "episodes": table.episode_ids[episodes].tolist(),
            "successes": int(success.sum()),
            "chunks": len(chunks),
        },
        "rows": rows,
        "calibration_bins": [asdict(each) for each in calibrations[""].bins],
    }
    write_json(output / "results.json", record)
    report.write_report(record, calibrations[""], pictured, output)
    print(report.headline_lines(rows))
    print(f"results in {output}")


def chosen_dataset(source: DatasetSource, manifest: dict[str, Any]) -> DatasetConfig:
    """The dataset that the flags name, or the one or the mixture that was trained on."""
    if source.repo_id is None and source.root is None:
        return draccus.decode(DatasetConfig, manifest["config"]["dataset"])
    return DatasetConfig(source.repo_id or "local/dataset", source.root)


def ask_policy(
    config: CriticEvalConfig,
    vla: VLA,
    encodings: Encodings,
    table: EpisodeTable,
    frames: NDArray[np.int64],
    critic: Critic,
) -> NDArray[np.float32]:
    """What the policy proposes at frames (M,): (M, N, H, A)."""
    sampled: NDArray[np.float32] = sample_candidates(
        vla,
        encodings,
        table,
        frames,
        candidates=config.policy_samples,
        horizon=critic.config.horizon,
        seed=config.seed,
    ).numpy()
    return sampled


if __name__ == "__main__":
    run(main, CriticEvalConfig)
