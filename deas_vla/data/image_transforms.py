"""LeRobot's random picture transforms, by its own flags.

The dataclasses have the fields of ``lerobot.transforms``, so that flags and YAML of a LeRobot run
work here; LeRobot itself is imported only where they are used.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from deas_vla.errors import DeasError


@dataclass
class ImageTransformConfig:
    """One transform.

    Attributes:
        weight: How likely it is drawn, relative to the others.
        type: A class of LeRobot's ``transforms`` or of torchvision's ``transforms.v2``.
        kwargs: Its arguments.
    """

    weight: float = 1.0
    type: str = "Identity"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageTransformsConfig:
    """Transforms of which some are drawn for each picture.

    Attributes:
        enable: Whether pictures are transformed in training.
        max_num_transforms: How many are drawn for a picture.
        random_order: Whether their order is drawn, too.
        tfs: Transforms by name; LeRobot's own six where none is given.
    """

    enable: bool = False
    max_num_transforms: int = 3
    random_order: bool = False
    tfs: dict[str, ImageTransformConfig] = field(default_factory=dict)


def image_transforms(config: ImageTransformsConfig) -> Callable[[Tensor], Tensor] | None:
    """LeRobot's transform of one picture, float (3, H, W) in [0, 1]; None where not enabled.

    It draws from torch's global generator.

    Raises:
        DeasError: A transform that does not exist, or arguments that it does not take.
    """
    if not config.enable:
        return None
    from lerobot import transforms as lerobot

    given: dict[str, Any] = {}
    if config.tfs:
        each = {name: lerobot.ImageTransformConfig(**asdict(tf)) for name, tf in config.tfs.items()}
        given["tfs"] = each
    settings = lerobot.ImageTransformsConfig(
        enable=True,
        max_num_transforms=config.max_num_transforms,
        random_order=config.random_order,
        **given,
    )
    try:
        made: Callable[[Tensor], Tensor] = lerobot.ImageTransforms(settings)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise DeasError(
            f"dataset.image_transforms cannot be made ({said}): see LeRobot's"
        ) from error
    return made


def check_image_transforms(config: ImageTransformsConfig) -> None:
    """DeasError for transforms that `image_transforms` could not make."""
    image_transforms(config)
