"""What the critic sees of an observation's pictures and instruction."""

from torch import Tensor

from deas_vla.data.pooling import PoolingConfig, pool_tokens, rounded
from deas_vla.policies.vla import VLA, Encoding


def pool_encoding(vla: VLA, encoding: Encoding, pooling: PoolingConfig) -> Tensor:
    """The frozen feature of B observations, float32 (B, F): in training and on the robot alike.

    Rounded as the cache keeps it; beyond float16 it is infinite, which the cache refuses and the
    critic's normalisation cuts off.
    """
    pooled = pool_tokens(
        encoding.tokens if encoding.context is None else encoding.context,
        encoding.attention_mask,
        encoding.image_mask,
        len(vla.spec.image_keys),
        pooling,
        vla.spec.tokens_per_image,
    )
    return rounded(pooled)
