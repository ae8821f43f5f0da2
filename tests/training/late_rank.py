"""The recipe on several processes of which one is slow, for test_processes.py: torchrun FLAGS.

``LATE_RANK=r`` in the environment makes process r take three seconds longer to look at a cache:
real checksums take that long.
"""

import os
import sys
import time

from recipe_cases import load_script

from deas_vla.cli import parse
from deas_vla.data.feature_cache import FeatureCache
from deas_vla.training.config import FinetuneConfig

looks = FeatureCache.missing_episodes


def looks_late(cache: FeatureCache) -> list[int]:
    if os.environ["RANK"] == os.environ["LATE_RANK"]:
        time.sleep(3)
    return looks(cache)


FeatureCache.missing_episodes = looks_late  # type: ignore[method-assign]
load_script("recipes/finetune_groot.py").main(parse(FinetuneConfig, sys.argv[1:]))
