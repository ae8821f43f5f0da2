"""Metrics to accelerate's trackers."""

import importlib.util
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from deas_vla.errors import DeasError
from deas_vla.provenance import plain
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.identity import flat

_PATIENCE = timedelta(days=7)


def make_accelerator(config: FinetuneConfig) -> Accelerator:
    """An accelerator with the configured trackers started.

    Raises:
        DeasError: The package of one is not installed, or FSDP is to shard a critic.
    """
    names = ["wandb"] if config.wandb.enable else []
    names += [] if config.tracker == "none" else [config.tracker]
    for name in names:
        if importlib.util.find_spec(name) is None:
            flag = "--wandb.enable=false" if name == "wandb" else "--tracker=tensorboard"
            raise DeasError(f"tracker {name} is not installed: pip install {name}, or {flag}")
    accelerator = Accelerator(
        log_with=names or None,
        project_dir=str(config.output_dir),
        # A process waits for the longest share of another's extraction, hours over large datasets.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    if accelerator.distributed_type == DistributedType.FSDP and "critic" in config.stages:
        raise DeasError(
            "FSDP shards the policy, a critic is too small for it: run --stages=[features,policy] "
            "under FSDP, then --stages=[features,critic] into the same --output_dir under DDP"
        )
    if names:
        accelerator.init_trackers(
            "logs" if not config.wandb.enable else config.wandb.project, config=flat(plain(config))
        )
    return accelerator
