"""The recipe under FSDP2 on CPU processes, for test_processes.py: torchrun fsdp_on_cpu.py FLAGS.

accelerate offers FSDP on accelerators alone, torch's fully_shard runs on any device. So accelerate
is told, once it has started its CPU processes, that FSDP is what they are for; all that follows is
its own code. ``STOP_AFTER=n`` in the environment preempts the policy stage after n updates.
"""

import os
import sys

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from recipe_cases import load_script

import deas_vla.training.trackers as trackers
from deas_vla.cli import parse
from deas_vla.training.config import FinetuneConfig
from deas_vla.training.preemption import Preemption


def sharding_accelerator(**settings: object) -> Accelerator:
    accelerator = Accelerator(cpu=True, **settings)  # type: ignore[arg-type]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BasicTransformerBlock"],
        state_dict_type="SHARDED_STATE_DICT",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return accelerator


class StopsAfter(Preemption):
    """Asked once per update: as if SIGTERM came at the last of them."""

    updates = int(os.environ.get("STOP_AFTER", "0"))

    def requested(self) -> bool:
        self.asked = getattr(self, "asked", 0) + 1
        return self.asked == self.updates


trackers.Accelerator = sharding_accelerator  # type: ignore[misc, assignment]
recipe = load_script("recipes/finetune_groot.py")
recipe.Preemption = StopsAfter
config = parse(FinetuneConfig, sys.argv[1:])
recipe.main(config)
