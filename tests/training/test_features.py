"""The features stage: what it knows of instructions."""

from pathlib import Path

import torch

from deas_vla.bundle import open_bundle
from deas_vla.training.features import task_masks


def test_masks_of_many_instructions_are_those_of_one_batch(bundle: Path) -> None:
    """Thousands of instructions are encoded in parts, of different lengths here."""
    vla = open_bundle(bundle).vla
    tasks = ("lift", "lift the red cube and put it down again", "lift the cube", "lift it")
    whole, parts = task_masks(vla, tasks), task_masks(vla, tasks, batch_size=1)
    for ours, theirs in zip(parts, whole, strict=True):
        assert torch.equal(ours, theirs) and ours.shape[0] == len(tasks)
    assert len({int(row.sum()) for row in whole[0]}) > 1  # some are padded
