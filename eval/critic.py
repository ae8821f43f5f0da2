"""Measure a bundle's critic offline, on episodes that it was not trained on.

python eval/critic.py --bundle outputs/quickstart --dataset.root deas_vla/assets/lift_demos \\
  --output_dir outputs/quickstart/eval_critic

No simulator and no robot: the features come from the run's cache, and the policy is asked for the
chunks that the critic has to rank.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from deas_vla.bundle import open_bundle, read_manifest
from deas_vla.cli import make_output_dir, run
from deas_vla.critic.base import Critic
from deas_vla.data.episodes import EpisodeTable, check_dimensions, load_episodes
from deas_vla.data.frames import iter_episode_frames
from deas_vla.data.rewards import RewardConfig
from deas_vla.errors import DeasError
from deas_vla.evaluation.offline import figures as offline_figures
from deas_vla.evaluation.offline import metrics
from deas_vla.evaluation.offline.episodes import (
    check_same_critic,
    check_statistics,
    held_out_episodes,
)
from deas_vla.evaluation.offline.intervals import Estimate, mean_over
from deas_vla.evaluation.offline.metrics import Calibration
from deas_vla.evaluation.offline.ranking import (
    Rivals,
    chunks_of_other_episodes,
    noised_chunks,
    time_shifted_chunks,
    win_rate,
)
from deas_vla.evaluation.offline.scoring import (
    FrameCritic,
    ScoredChunks,
    score_dataset_chunks,
    values_along,
)
from deas_vla.evaluation.results.pages import html_picture, html_table, write_page
from deas_vla.files import write_json
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.vla import VLA
from deas_vla.provenance import provenance
from deas_vla.training.candidates import sample_candidates
from deas_vla.training.config import FeaturesConfig
from deas_vla.training.features import Encodings, extract_features

FRACTIONS = np.linspace(0, 1, 11, dtype=np.float64)
HEADLINES = {
    "calibration.error": "Expected calibration error, in units of return",
    "calibration.rank_correlation": "Spearman rank correlation of Q and return",
    "overestimation.mean": "Q minus return, mean, in units of return",
    "separation.auc_at_0.5": "AUC of V, success against failure, at half the episode",
    "ranking.another_episode": "Dataset chunk above one of another episode",
    "ranking.policy_samples": "Dataset chunk above the policy's samples",
}


@dataclass
class DatasetSource:
    """A LeRobotDataset v3; the one that the bundle was trained on when both are left out."""

    repo_id: str | None = None
    root: str | None = None


@dataclass
class CacheConfig:
    """Features of the dataset's frames.

    Attributes:
        cache: Directory of the cache; ``<bundle>/cache`` when left out. What it lacks is computed.
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
        policy_frames: Most frames at which it is asked.
        resamples: Of the bootstrap behind every interval.
        seed: Of resamples, rivals and policy noise.
        output_dir: Where results go; <bundle>/eval_critic when left out.
    """

    bundle: Path = Path("outputs/quickstart")
    dataset: DatasetSource = field(default_factory=DatasetSource)
    features: CacheConfig = field(default_factory=CacheConfig)
    episodes: list[int] | None = None
    noise_levels: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    policy_samples: int = 8
    policy_frames: int = 256
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
    table = load_dataset(config.dataset, manifest)
    episodes = held_out_episodes(manifest, table, config.episodes)
    output = make_output_dir(config.output_dir or config.bundle / "eval_critic")
    accelerator = Accelerator()
    policy = open_bundle(config.bundle, device=str(accelerator.device))
    learned = fitting_critic(policy, manifest, table, config.bundle)

    encodings = extract_features(
        policy.vla,
        table,
        FeaturesConfig(policy.config.pooling, config.features.batch_size),
        config.features.cache or config.bundle / "cache",
        accelerator,
        keep_tokens=config.policy_samples > 0,
    )
    critic = FrameCritic(learned, table, encodings.pooled)
    reward = RewardConfig(**manifest["config"]["critic"]["reward"])
    chunks = score_dataset_chunks(critic, table, episodes, reward)
    success = table.episode_success[episodes]
    values = values_along(critic, table, episodes, FRACTIONS)

    generator = np.random.default_rng(config.seed)
    calibrations = calibrate(chunks, generator, config.resamples)
    curve = metrics.separation(values, success, generator, config.resamples)
    rivals = make_rivals(config, policy.vla, encodings, table, chunks, learned, generator)
    ranking = rank(critic, chunks, rivals, generator, config.resamples)

    offline_figures.draw_calibration(chunks, calibrations[""], output / "calibration.png")
    offline_figures.draw_overestimation(calibrations[""], output / "overestimation.png")
    offline_figures.draw_separation(FRACTIONS, curve, values, success, output / "separation.png")
    offline_figures.draw_ranking(ranking, output / "ranking.png")
    pictured = typical_episodes(values, success, episodes)
    for outcome, episode in pictured.items():
        shown = value_curve(critic, table, chunks, episode, policy.vla.spec.image_keys[0], outcome)
        offline_figures.draw_values(shown, output / f"values_{outcome}.png")

    rows = metric_rows(calibrations, curve, ranking)
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        **provenance(),
        "bundle_git_revision": manifest.get("git_revision"),
        "algorithm": learned.config.algorithm,
        "reward": asdict(reward),
        "data": {
            "repo_id": table.repo_id,
            "fingerprint": table.fingerprint,
            "episodes": table.episode_ids[episodes].tolist(),
            "successes": int(success.sum()),
            "chunks": len(chunks),
        },
        "wall_seconds": time.time() - started,
        "rows": rows,
        "calibration_bins": [asdict(each) for each in calibrations[""].bins],
    }
    write_json(output / "results.json", record)
    write_report(record, calibrations[""], pictured, table, output)
    for row in rows:
        if row["metric"] in HEADLINES:
            print(f"{row['metric']:36s} {text(row)}")
    print(f"results in {output}")


def load_dataset(source: DatasetSource, manifest: dict[str, Any]) -> EpisodeTable:
    trained = manifest["config"]["dataset"]
    if source.repo_id is None and source.root is None:
        return load_episodes(trained["repo_id"], trained["root"])
    return load_episodes(source.repo_id or "local/dataset", source.root)


def fitting_critic(
    policy: ValueGuidedPolicy, manifest: dict[str, Any], table: EpisodeTable, bundle: Path
) -> Critic:
    """The bundle's critic, after checking that bundle and dataset belong to it."""
    if policy.critic is None:
        raise DeasError(
            f"bundle {bundle} has no critic: run the recipe with --stages=[features,critic]"
        )
    spec = policy.vla.spec
    check_dimensions(table, spec.state_dim, spec.action_dim, spec.image_keys)
    check_same_critic(manifest, policy.critic.config)
    if manifest["data"]["fingerprint"] == table.fingerprint:
        held_out = np.isin(table.episode_ids, manifest["data"]["held_out_episodes"])
        check_statistics(policy.critic.normalizer, table, np.flatnonzero(~held_out))
    return policy.critic


def calibrate(
    chunks: ScoredChunks, generator: np.random.Generator, resamples: int
) -> dict[str, Calibration]:
    """Calibration on all chunks, and on those whose return was observed to the end."""
    groups = {"": np.ones(len(chunks), dtype=bool), ".successes": chunks.terminated}
    return {
        suffix: metrics.calibration(
            chunks.q[rows], chunks.returns[rows], chunks.episode[rows], generator, resamples
        )
        for suffix, rows in groups.items()
        if rows.any()
    }


def make_rivals(
    config: CriticEvalConfig,
    vla: VLA,
    encodings: Encodings,
    table: EpisodeTable,
    chunks: ScoredChunks,
    critic: Critic,
    generator: np.random.Generator,
) -> dict[str, Rivals]:
    """What the dataset's chunks have to be ranked above."""
    rivals = {
        "another episode": chunks_of_other_episodes(chunks, generator),
        "time-shifted": time_shifted_chunks(chunks),
    }
    scale = critic.normalizer.action_std.cpu().numpy()
    for level in config.noise_levels:
        rivals[f"noise {level:g}"] = noised_chunks(chunks, level, scale, generator)
    if config.policy_samples > 0:
        asked = generator.permutation(len(chunks))[: config.policy_frames]
        sampled = sample_candidates(
            vla,
            encodings,
            table,
            chunks.frame[asked],
            candidates=config.policy_samples,
            horizon=critic.config.horizon,
            seed=config.seed,
        )
        rivals["policy samples"] = Rivals(
            asked.repeat(config.policy_samples), sampled.flatten(0, 1).numpy()
        )
    return rivals


def rank(
    critic: FrameCritic,
    chunks: ScoredChunks,
    rivals: dict[str, Rivals],
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, dict[str, Estimate]]:
    """Win rates of the dataset's chunks, over all of them and by the outcome of their episode."""
    groups = {
        "all": np.ones(len(chunks), dtype=bool),
        "successes": chunks.terminated,
        "failures": ~chunks.terminated,
    }
    ranking: dict[str, dict[str, Estimate]] = {}
    for name, against in rivals.items():
        won = win_rate(critic, chunks, against)
        ranking[name] = {
            group: mean_over(won[mask], chunks.episode[mask], generator, resamples)
            for group, mask in groups.items()
        }
    return ranking


def typical_episodes(
    values: NDArray[np.float64], success: NDArray[np.bool_], episodes: NDArray[np.int64]
) -> dict[str, int]:
    """Of each outcome the episode row whose V at half its time is the median of its group's."""
    typical = {}
    for outcome, solved in (("success", True), ("failure", False)):
        group = np.flatnonzero(success == solved)
        if len(group):
            order = np.argsort(values[group, len(FRACTIONS) // 2], kind="stable")
            typical[outcome] = int(episodes[group[order[len(order) // 2]]])
    return typical


def value_curve(
    critic: FrameCritic,
    table: EpisodeTable,
    chunks: ScoredChunks,
    episode: int,
    image_key: str,
    outcome: str,
) -> offline_figures.ValueCurve:
    frames = np.arange(table.num_frames)[table.frames(episode)]
    _, pictures = next(iter_episode_frames(table.root, table, [image_key], [episode]))
    return offline_figures.ValueCurve(
        title=f"episode {table.episode_ids[episode]}, {outcome}: {table.task(episode)}",
        values=critic.values(frames),
        chunks=chunks.of_episode(episode),
        pictures=pictures[image_key],
        fps=table.fps,
    )


def metric_rows(
    calibrations: dict[str, Calibration],
    curve: list[Estimate],
    ranking: dict[str, dict[str, Estimate]],
) -> list[dict[str, Any]]:
    rows = []
    for suffix, found in calibrations.items():
        rows += [
            found.error.row(f"calibration.error{suffix}"),
            found.rank_correlation.row(f"calibration.rank_correlation{suffix}"),
            found.overestimation.row(f"overestimation.mean{suffix}"),
        ]
    bins = calibrations[""].bins
    for number, each in enumerate(bins, 1):
        rows.append(each.overestimation.row(f"overestimation.bin_{number}_of_{len(bins)}"))
    for fraction, estimate in zip(FRACTIONS, curve, strict=True):
        rows.append(estimate.row(f"separation.auc_at_{fraction:.1f}"))
    for name, groups in ranking.items():
        for group, estimate in groups.items():
            suffix = "" if group == "all" else f".{group}"
            rows.append(estimate.row(f"ranking.{name.replace(' ', '_')}{suffix}"))
    return rows


def text(row: dict[str, Any]) -> str:
    """A row's value and interval; rates in percent."""
    if row["value"] is None:
        return "not defined on these episodes"
    scale, unit = (100, " %") if row["metric"].startswith("ranking") else (1, "")
    digits = 0 if unit else 2
    value, low, high = (scale * x for x in (row["value"], *row["ci95"]))
    return f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def write_report(
    record: dict[str, Any],
    found: Calibration,
    pictured: dict[str, int],
    table: EpisodeTable,
    output: Path,
) -> None:
    """report.html: opens alone."""
    rows = {row["metric"]: text(row) for row in record["rows"]}
    data = record["data"]
    headline = [[what, rows[name]] for name, what in HEADLINES.items() if name in rows]
    bins = [
        [str(each.chunks), *(estimate_text(e) for e in (each.q, each.returns, each.overestimation))]
        for each in found.bins
    ]
    groups = ("", ".successes", ".failures")
    ranking = [
        [name.removeprefix("ranking.").replace("_", " "), *(rows[name + group] for group in groups)]
        for name in rows
        if name.startswith("ranking.") and not name.endswith(groups[1:])
    ]
    picture = lambda name, alt: html_picture(output / f"{name}.png", alt)  # noqa: E731
    body = f"""
<p>Algorithm <b>{record["algorithm"]}</b>, {len(data["episodes"])} episodes that it was not trained
on ({data["successes"]} successful), {data["chunks"]} chunks. Intervals: 95 %, bootstrap over
episodes.</p>
{html_table(["metric", "value (95 % interval)"], headline)}
<h2>Calibration</h2>
<p>Q of the dataset's own chunks against what the episode paid from there on, in the critic's reward
and discounts. Where a time limit ended the episode, the rest is the critic's own V of the last
frame; successful episodes alone, observed to the end: calibration error
{rows.get("calibration.error.successes", "-")}, rank correlation
{rows.get("calibration.rank_correlation.successes", "-")}, Q minus return
{rows.get("overestimation.mean.successes", "-")}.</p>
{picture("calibration", "return over Q")}
{html_table(["chunks", "mean Q", "mean return", "Q minus return"], bins)}
<h2>Overestimation</h2>{picture("overestimation", "Q minus return over Q")}
<h2>Success against failure</h2>
<p>The probability that V of a successful episode is above V of a failed one, at the same fraction
of each.</p>{picture("separation", "AUC by fraction of the episode elapsed")}
<h2>Ranking</h2>
<p>How often the dataset's chunk scores above a rival at the same observation. In failed episodes
the dataset's chunk is no model to follow: a good critic need not prefer it there.</p>
{picture("ranking", "share of rivals beaten")}
{html_table(["rival", "all chunks", "of successes", "of failures"], ranking)}
<h2>Along an episode</h2>
<p>The success and the failure whose V at half time is the median of theirs.</p>"""
    for outcome, episode in pictured.items():
        body += picture(f"values_{outcome}", f"values along episode {table.episode_ids[episode]}")
    write_page(f"Critic of {record['config']['bundle']}", body, output / "report.html")


def estimate_text(estimate: Estimate) -> str:
    return text(estimate.row("bin"))


if __name__ == "__main__":
    run(main, CriticEvalConfig)
