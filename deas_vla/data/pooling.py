"""From a backbone's tokens to one feature vector per frame.

The same function pools in training and on the robot, so the critic never sees two conventions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from deas_vla.errors import DeasError

PoolingKind = Literal["mean", "camera_mean", "grid"]


@dataclass(frozen=True)
class PoolingConfig:
    """How tokens become a feature.

    Attributes:
        kind: `mean` over all valid tokens (DEAS's choice); `camera_mean`, one mean per image and
            one of the text; `grid`, a grid of means per image and one mean of the text.
        grid: cells along each side of an image for `grid`; 2 gives 4 cells.
        last: append the last valid token, which has attended to everything before it.
    """

    kind: PoolingKind = "mean"
    grid: int = 2
    last: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(PoolingKind):
            raise DeasError(
                f"pooling kind is {self.kind!r}: choose one of {', '.join(get_args(PoolingKind))}"
            )
        if self.grid < 1:
            raise DeasError(f"pooling grid is {self.grid}: set it to 1 or more")


def feature_dim(config: PoolingConfig, num_images: int, hidden: int) -> int:
    """Length `F` of the pooled feature, for `num_images` images and tokens of width `hidden`."""
    last = int(config.last)
    if config.kind == "mean":
        return (1 + last) * hidden
    cells = 1 if config.kind == "camera_mean" else config.grid**2
    return (num_images * cells + 1 + last) * hidden


def pool_tokens(
    tokens: Tensor,
    attention_mask: Tensor,
    image_mask: Tensor,
    num_images: int,
    config: PoolingConfig,
    image_size: tuple[int, int] | None = None,
) -> Tensor:
    """Pools valid tokens; padding never counts, on whichever side the processor puts it.

    Args:
        tokens: (B, L, D) backbone output, any float dtype.
        attention_mask: (B, L), true (or 1) on valid tokens.
        image_mask: (B, L), true on image tokens. Images follow each other in order, each with the
            same number of tokens, row by row.
        num_images: images per observation.
        config: the kind of pooling.
        image_size: (height, width) of one image's token grid; only `grid` needs it.

    Returns:
        float32 (B, F): the mean; or the images' means (for `grid`: image by image, row by row)
        followed by the mean of the valid tokens that belong to no image; then the last valid token,
        where it is asked for.

    Raises:
        DeasError: image tokens that do not divide into `num_images` images of `image_size`.
    """
    tokens = tokens.float()  # sums over hundreds of bfloat16 tokens would lose the small ones
    valid = attention_mask.bool()
    means = _means(tokens, valid, image_mask, num_images, config, image_size)
    return torch.cat([means, _last(tokens, valid)], dim=1) if config.last else means


def _means(
    tokens: Tensor,
    valid: Tensor,
    image_mask: Tensor,
    num_images: int,
    config: PoolingConfig,
    image_size: tuple[int, int] | None,
) -> Tensor:
    """What `PoolingConfig.kind` asks for, arguments as of `pool_tokens`."""
    if config.kind == "mean":
        return _masked_mean(tokens, valid)
    in_image = valid & image_mask.bool()
    images = _split_images(tokens, in_image, num_images)  # (B, I, n, D)
    text = _masked_mean(tokens, valid & ~in_image)  # (B, D)
    if config.kind == "camera_mean":
        pooled = images.mean(dim=2)  # (B, I, D)
    else:
        pooled = _grid_means(images, config.grid, image_size)  # (B, I * k * k, D)
    return torch.cat([pooled.flatten(1), text], dim=1)


def rounded(feature: Tensor) -> Tensor:
    """A pooled feature (B, F) as the cache keeps it, float16, and float32 again.

    The critic is trained on these numbers, and sees no others on the robot.
    """
    return feature.half().float()


def _masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens under the mask, zeros where there are none. (B, D)"""
    weight = mask.unsqueeze(-1).to(tokens.dtype)  # (B, L, 1)
    # where, not a product: what stands in padding may be NaN.
    total = torch.where(mask.unsqueeze(-1), tokens, 0.0).sum(dim=1)
    return total / weight.sum(dim=1).clamp(min=1.0)


def _last(tokens: Tensor, valid: Tensor) -> Tensor:
    """The last token under the mask. (B, D)"""
    order = torch.arange(valid.shape[1], device=valid.device)
    last = torch.where(valid, order, 0).argmax(dim=1)  # (B,)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


def _split_images(tokens: Tensor, in_image: Tensor, num_images: int) -> Tensor:
    """Image tokens in order, as (B, I, n, D)."""
    counts = in_image.sum(dim=1)
    count = int(counts[0])
    if count == 0 or count % num_images or not bool((counts == count).all()):
        raise DeasError(
            f"observations have {counts.tolist()} image tokens, expected the same multiple of "
            f"{num_images} images in each: check the policy's cameras, or pool by mean"
        )
    batch, _, width = tokens.shape
    return tokens[in_image].view(batch, num_images, count // num_images, width)


def _grid_means(images: Tensor, grid: int, image_size: tuple[int, int] | None) -> Tensor:
    """Means of `grid x grid` cells of every image, as (B, I * grid * grid, D)."""
    batch, num_images, count, width = images.shape
    height, columns = image_size or (0, 0)
    if height * columns != count:
        raise DeasError(
            f"images have {count} tokens each, not {height} x {columns}: "
            "pool by camera_mean, or pass the backbone's token grid"
        )
    if grid > min(height, columns):
        raise DeasError(
            f"pooling grid is {grid} but images are {height} x {columns} tokens: use a smaller one"
        )
    pixels = images.reshape(batch * num_images, height, columns, width).permute(0, 3, 1, 2)
    cells = F.adaptive_avg_pool2d(pixels, grid)  # (B * I, D, k, k)
    return cells.permute(0, 2, 3, 1).reshape(batch, num_images * grid**2, width)
