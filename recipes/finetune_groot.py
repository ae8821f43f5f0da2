"""Finetune a GR00T policy and train a DEAS critic on its backbone's features.

accelerate launch recipes/finetune_groot.py --config_path recipes/configs/quickstart.yaml

Stages, in this order: ``features`` runs every frame through the backbone once and caches the tokens
and their pooling; ``policy`` trains LoRA on the flow-matching action head, or what ``policy.train``
names; ``critic`` trains the critic. Where the backbone trains, ``policy`` comes first and features
are of the trained one. The run ends with a bundle in ``--output_dir``. The same command again goes
on where an interrupted run stopped, and with more ``--critic.steps`` or ``--policy.steps`` a
finished one.
"""

import time
from pathlib import Path

from accelerate.utils import set_seed

from deas_vla.bundle import write_bundle
from deas_vla.cli import make_output_dir, run
from deas_vla.data.counts import task_counts
from deas_vla.data.episodes import EpisodeTable, episode_digests, split_episodes
from deas_vla.data.layout import common_assets, open_dataset
from deas_vla.guidance.configuration_guided import ValueGuidedConfig
from deas_vla.guidance.guided import ValueGuidedPolicy
from deas_vla.policies.config import dtype_on, load_vla
from deas_vla.provenance import run_record
from deas_vla.training.candidates import candidates_by_frame
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.critic import train_critic
from deas_vla.training.critic_data import check_critic_data
from deas_vla.training.datasets import load_dataset, provenance
from deas_vla.training.encodings import Encodings
from deas_vla.training.features import check_statistics, dataset_statistics, extract_features
from deas_vla.training.identity import identities
from deas_vla.training.policy import check_parts, finetune_policy, restore_policy
from deas_vla.training.policy_inputs import CachedTokens, online_pictures
from deas_vla.training.preemption import Preemption
from deas_vla.training.record import RunRecord, recorded_run
from deas_vla.training.reuse import check_adapter_base, earlier_adapter, earlier_critic
from deas_vla.training.run import Run
from deas_vla.training.tokens import settle_tokens
from deas_vla.training.trackers import make_accelerator


def main(config: FinetuneConfig) -> None:
    config.check()
    table = load_dataset(config.dataset)
    output = make_output_dir(config.output_dir)
    accelerator = make_accelerator(config)
    config.policy.dtype = dtype_on(config.policy.dtype, str(accelerator.device))
    stages = identities(config, table)
    with (
        Preemption(accelerator) as preemption,
        recorded_run(output, stages, config.resume, accelerator) as record,
    ):
        log = accelerator.log
        run = Run(output, accelerator, preemption, config.checkpoint, config.seed, log)
        run_stages(config, table, run, record)
    accelerator.end_training()


def run_stages(config: FinetuneConfig, table: EpisodeTable, run: Run, stages: RunRecord) -> None:
    started = time.time()
    accelerator, output = run.accelerator, run.output
    train, held_out = split_episodes(table, config.dataset.holdout, config.seed)
    accelerator.print(
        f"{table.num_episodes} episodes, {int(table.episode_success.sum())} successful, "
        f"{table.num_frames} frames; {len(train)} episodes to train on"
    )
    set_seed(config.seed, device_specific=True)

    # The base checkpoint, frozen, under the adapter of an earlier run where this one trains none.
    finetunes = "policy" in config.stages and config.policy.steps > 0
    adapter = earlier_adapter(output, config)
    vla_config = config.policy.vla(table.image_keys, table.state.shape[1], table.action.shape[1])
    statistics = dataset_statistics(table, train)
    if adapter is not None:
        check_statistics(adapter, statistics)
    device = str(accelerator.device)
    vla = load_vla(vla_config, dataset_stats=statistics, adapter=adapter, device=device)
    config.check_fits(vla.spec)
    if adapter is not None:
        check_adapter_base(output, vla_config, vla)
    if "critic" in config.stages:
        check_critic_data(table, train, config.critic)

    cache = Path(config.features.cache or output / "cache")
    if finetunes:
        check_parts(vla, config.policy)
        settle_tokens(config, vla, table, cache, stages, accelerator)
    online = config.policy.tokens == "online"
    keep_tokens = (finetunes and not online) or config.critic_asks_policy

    def features() -> Encodings:
        return extract_features(
            vla, table, config.features, cache, accelerator, keep_tokens=keep_tokens
        )

    # Of a backbone that trains, features are those of the trained one.
    after_policy = finetunes and config.trains_backbone
    encodings = None if after_policy else features()
    if encodings is not None:
        train, held_out = encodings.readable(train), encodings.readable(held_out)
    if finetunes:
        inputs = online_pictures(config, vla, table) if online else CachedTokens(encodings)
        trained = finetune_policy(
            vla, inputs, table, train, held_out, config.policy, run, shares=config.dataset.shares
        )
        if trained is not None:
            vla = load_vla(vla_config, dataset_stats=statistics, device=device)
            restore_policy(vla, config.policy, trained)
    if encodings is None:
        encodings = features()
        train, held_out = encodings.readable(train), encodings.readable(held_out)

    critic = None
    if "critic" in config.stages:
        candidates = None
        if config.critic_asks_policy:
            candidates = candidates_by_frame(
                vla,
                encodings,
                table,
                train,
                cache,
                candidates=config.critic.policy_samples,
                horizon=config.critic.horizon,
                seed=config.seed,
                accelerator=accelerator,
            )
        critic = train_critic(
            table,
            encodings.pooled,
            train,
            held_out,
            config.critic,
            run,
            candidates=candidates,
            shares=config.dataset.shares,
        )
    else:
        critic = earlier_critic(output, encodings.pooled.shape[1], device)

    rule = config.guidance.selection
    steps = config.guidance.n_action_steps or config.critic.horizon
    guided = ValueGuidedConfig(
        vla=vla_config,
        pooling=config.features.pooling,
        candidates=1 if critic is None and rule.asks_critic else config.guidance.candidates,
        selection=rule,
        speed=config.guidance.speed(),
        n_action_steps=min(steps, vla.spec.action_horizon),
        adapter=finetunes or adapter is not None,
        seed=config.seed,
        device=accelerator.device.type,
    )
    sources = [open_dataset(part.repo_id, part.root) for part in table.sources]
    record = {
        **run_record(config, started),
        "data": {
            "repo_id": table.repo_id,
            "sources": provenance(config.dataset, table),
            "fingerprint": table.fingerprint,
            "episodes": table.num_episodes,
            "successful_episodes": int(table.episode_success.sum()),
            "tasks": task_counts(table),
            "trained_episode_digests": episode_digests(table, train),
            "held_out_episodes": table.episode_ids[held_out].tolist(),
            "unreadable_episodes": table.episode_ids[list(encodings.unreadable)].tolist(),
            "image_sizes": sources[0].image_sizes,
            "assets": common_assets(sources),
        },
    }
    if accelerator.is_main_process:
        with run.preemption.deferred():
            write_bundle(ValueGuidedPolicy(guided, vla, critic, statistics), output, record)
        print(f"bundle in {output} after {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    run(main, FinetuneConfig)
