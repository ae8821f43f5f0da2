"""What the kitchen tests share, importable by the processes that they start."""

import hashlib

import numpy as np

from deas_vla.envs.robocasa.kitchen import KitchenConfig, KitchenEnv

# Its objects go left or right of a stove between two counters: see `_mend_robocasa`.
TASK = "PickPlaceStoveToCounter"


def fingerprint(env: KitchenEnv) -> str:
    """Scene, instruction, model and state of the running episode."""
    sim = env.kitchen.sim
    digest = hashlib.sha256(str((env.scene, env.observe(images=False).task)).encode())
    for array in (sim.data.qpos, sim.data.qvel, sim.model.body_pos, sim.model.geom_size):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_of_seeds(seeds: list[int]) -> list[str]:
    env = KitchenEnv(KitchenConfig(task=TASK))
    prints = []
    for seed in seeds:
        env.reset(seed)
        prints.append(fingerprint(env))
    env.close()
    return prints
