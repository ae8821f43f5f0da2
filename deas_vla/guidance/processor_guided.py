"""LeRobot's pre- and postprocessor of the value-guided policy, where its factory looks for them.

The VLA's own processors run inside the policy, which takes raw observations and returns actions in
environment units. What is left for LeRobot's is what its commands override by name: renamed keys
and the device.
"""

from pathlib import Path
from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from deas_vla.guidance.configuration_guided import ValueGuidedConfig


def make_deas_guided_pre_post_processors(
    config: ValueGuidedConfig, dataset_stats: Any = None
) -> tuple[Any, Any]:
    """What LeRobot's ``make_pre_post_processors`` calls for a policy that was not saved yet.

    Args:
        config: Says the device.
        dataset_stats: Not used: a bundle normalises by the statistics that it was trained with.
    """
    return make_policy_processor_pipelines(
        input_steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=str(config.device)),
        ],
        output_steps=[DeviceProcessorStep(device="cpu")],
    )


def save_processors(config: ValueGuidedConfig, directory: Path) -> None:
    """Write ``policy_preprocessor.json`` and ``policy_postprocessor.json``."""
    for pipeline in make_deas_guided_pre_post_processors(config):
        pipeline.save_pretrained(directory)
