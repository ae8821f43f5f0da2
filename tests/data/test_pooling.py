import pytest
import torch

from deas_vla.data.pooling import PoolingConfig, feature_dim, pool_tokens
from deas_vla.errors import DeasError

IMAGES, HEIGHT, WIDTH, TEXT, HIDDEN = 2, 4, 6, 5, 3
IMAGE_TOKENS = IMAGES * HEIGHT * WIDTH
KINDS = [
    PoolingConfig(),
    PoolingConfig(kind="camera_mean"),
    PoolingConfig(kind="grid", grid=2),
    PoolingConfig(kind="camera_mean", last=True),
]


def layout(left, right):
    """Text, image 1, text, image 2, text, inside padding: tokens (1, L, D) and their masks."""
    pieces = [0] * 1 + [1] * (HEIGHT * WIDTH) + [0] * 2 + [1] * (HEIGHT * WIDTH) + [0] * 2
    in_image = torch.tensor([0] * left + pieces + [0] * right).bool()
    valid = torch.tensor([0] * left + [1] * len(pieces) + [0] * right)
    tokens = torch.full((len(valid), HIDDEN), float("nan"))
    generator = torch.Generator().manual_seed(0)
    tokens[valid.bool()] = torch.randn(len(pieces), HIDDEN, generator=generator)
    return tokens[None], valid[None], in_image[None]


def pool(config, left=0, right=0, dtype=torch.float32):
    tokens, valid, in_image = layout(left, right)
    return pool_tokens(tokens.to(dtype), valid, in_image, IMAGES, config, (HEIGHT, WIDTH))


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind + "_last" * config.last)
@pytest.mark.parametrize(("left", "right"), [(7, 0), (0, 7), (3, 4)])
def test_padding_never_counts(config, left, right):
    """Known mistake 4. Padding holds NaN here, so a single padded token would show."""
    torch.testing.assert_close(pool(config, left, right), pool(config), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind + "_last" * config.last)
def test_size_and_dtype(config):
    pooled = pool(config, dtype=torch.bfloat16)
    assert pooled.dtype == torch.float32
    assert pooled.shape == (1, feature_dim(config, IMAGES, HIDDEN))


def test_exact_values():
    tokens, _, in_image = layout(0, 0)
    pixels = tokens[in_image].view(IMAGES, HEIGHT, WIDTH, HIDDEN)
    text = tokens[~in_image].mean(0)
    torch.testing.assert_close(pool(KINDS[0])[0], tokens[0].mean(0))
    means = torch.cat([pixels[0].mean((0, 1)), pixels[1].mean((0, 1)), text])
    torch.testing.assert_close(pool(KINDS[1])[0], means)
    cells = [
        pixels[i, r : r + 2, c : c + 3].mean((0, 1))
        for i in range(IMAGES)
        for r in (0, 2)
        for c in (0, 3)
    ]
    torch.testing.assert_close(pool(KINDS[2])[0], torch.cat([*cells, text]))


@pytest.mark.parametrize("kind", ["mean", "camera_mean", "grid"])
def test_the_last_token_comes_behind_the_means(kind):
    tokens, _, _ = layout(0, 0)
    both = pool(PoolingConfig(kind=kind, last=True), left=3, right=4)[0]
    torch.testing.assert_close(both, torch.cat([pool(PoolingConfig(kind=kind))[0], tokens[0, -1]]))


def test_one_cell_is_the_camera_mean():
    torch.testing.assert_close(pool(PoolingConfig(kind="grid", grid=1)), pool(KINDS[1]))


def test_rows_of_a_batch_do_not_mix():
    alone = [layout(5, 0), layout(0, 5)]
    together = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    for config in KINDS:
        both = pool_tokens(*together, IMAGES, config, (HEIGHT, WIDTH))
        single = [pool_tokens(*one, IMAGES, config, (HEIGHT, WIDTH)) for one in alone]
        torch.testing.assert_close(both, torch.cat(single))


@pytest.mark.parametrize(
    ("images", "config", "size", "message"),
    [
        (5, KINDS[1], None, "[48] image tokens"),
        (2, KINDS[2], None, "24 tokens each, not 0 x 0"),
        (2, KINDS[2], (5, 5), "24 tokens each, not 5 x 5"),
        (2, PoolingConfig(kind="grid", grid=5), (4, 6), "pooling grid is 5"),
    ],
)
def test_images_that_do_not_fit(images, config, size, message):
    with pytest.raises(DeasError) as error:
        pool_tokens(*layout(0, 0), images, config, size)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_settings():
    with pytest.raises(DeasError, match="pooling kind is 'max'"):
        PoolingConfig(kind="max")  # type: ignore[arg-type]
    with pytest.raises(DeasError, match="pooling grid is 0"):
        PoolingConfig(grid=0)
