"""Mean keys of a model. In 8 bits keys are stored minus their mean.

In many models some features of keys are large but hardly change between tokens, and would cost the others precision. So
each layer has a mean of its keys before rotary positions, which belongs to the model and is the same for all rows.
Rotated by the average angles of a chunk, it is subtracted from the keys of that chunk; its contribution to the scores
is added back (`int8_keys.bases`). It depends only on the position.

The mean is taken over the model's own text: some tokens are sampled uniformly, and each is followed by the model's
output. Without this output, uniformly sampled tokens have a different mean from text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.engine.cache import self_block_bytes
from headway.engine.chunks import RowChunk
from headway.engine.int8_keys import padded_to_vectors
from headway.engine.operations import BLOCK, CHUNK
from headway.engine.tiles import FP32
from headway.layout import Layout
from headway.nn.mixers.attention import SelfAttention
from headway.nn.models import Transformer
from headway.nn.models.block import Block

if TYPE_CHECKING:
    from headway.engine.decoder import Engine

KeyMeans = Mapping[nn.Module, Float[Tensor, "G K"]]  # by mixer, before rotation
_SAMPLE_TOKENS, _SEED = 64, 0


def mean_keys(engine: Engine, model: Transformer) -> KeyMeans:
    """The mean keys of an engine's model; empty if it caches no keys. The engine must cache them in fp32."""
    if not engine._kv_blocks.size:
        return {}
    count = min(_SAMPLE_TOKENS, model.config.context or _SAMPLE_TOKENS)
    rng = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(model.config.vocab_size, (count,), generator=rng).tolist()
    logits = engine.compute([RowChunk(engine.open(count=1).rows[0], 0, ids, count)])
    noise = -torch.empty_like(logits).exponential_(generator=rng).log()
    ids = [ids[0], *(logits + noise).argmax(-1)[:-1].tolist()]  # one sample of each distribution (Gumbel 1954)
    row = engine.open(count=1).rows[0]
    engine.compute([RowChunk(row, 0, ids, count)])
    content = np.stack([engine._kv_blocks.view(block) for block in row.blocks]).view(np.float32)
    means, start = {}, 0
    for block in model.stack.blocks:
        assert isinstance(block, Block)
        mixer, stop = block.mixer, start + self_block_bytes(block, FP32) // 4
        if isinstance(mixer, SelfAttention):
            keys = content[:, start:stop].reshape(len(content), mixer.groups, -1)[..., : mixer.size * BLOCK]
            keys = keys.reshape(-1, mixer.groups, mixer.size, BLOCK).transpose(0, 3, 1, 2)
            means[mixer] = _mean(mixer, keys.reshape(-1, mixer.groups, mixer.size)[:count])
        start = stop
    return means


def _mean(mixer: SelfAttention, keys: Float[np.ndarray, "T G K"]) -> Float[Tensor, "G K"]:
    """The mean key, with rotations undone. Sums in numpy do not depend on threads."""
    if mixer.rotary is not None:
        cos, sin = (part.numpy() for part in _angles(mixer, len(keys)))
        half = cos.shape[-1]
        a, b, size = keys[..., :half], keys[..., half : 2 * half], cos**2 + sin**2
        keys = np.concatenate([(a * cos + b * sin) / size, (b * cos - a * sin) / size, keys[..., 2 * half :]], -1)
    return torch.from_numpy(keys.mean(0, dtype=np.float64).astype(np.float32))


def _angles(mixer: SelfAttention, length: int) -> tuple[Float[Tensor, "T 1 R"], Float[Tensor, "T 1 R"]]:
    assert mixer.rotary is not None
    cos, sin = mixer.rotary.angles(Layout.full(1, length), torch.zeros(1))
    return cos[0], sin[0]


def rotations_by_chunk(cos: Float[Tensor, "*_ T 1 R"], sin: Float[Tensor, "*_ T 1 R"]) -> Float[Tensor, "N P"]:
    """Cosines and sines of rotary positions, averaged over each chunk: R of each, padded to full vectors."""
    means = [part.numpy().reshape(-1, CHUNK, part.shape[-1]).mean(1, dtype=np.float64) for part in (cos, sin)]
    both = torch.from_numpy(np.concatenate(means, -1).astype(np.float32))
    return nn.functional.pad(both, (0, padded_to_vectors(both.shape[-1]) - both.shape[-1]))


def mean_by_position(mixer: SelfAttention, mean: Float[Tensor, "G K"], length: int) -> Float[Tensor, "T G K"]:
    """The mean to subtract from the keys of positions 0 to `length`, rounded up to chunks."""
    if mixer.rotary is None:
        return mean.expand(-(-length // CHUNK) * CHUNK, *mean.shape)
    cos, sin = _angles(mixer, -(-length // CHUNK) * CHUNK)
    half = cos.shape[-1]
    cos, sin = rotations_by_chunk(cos, sin)[:, None, : 2 * half].split(half, -1)
    a, b = mean[:, :half], mean[:, half : 2 * half]
    unrotated = mean[:, 2 * half :].expand(len(cos), -1, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, unrotated], -1).repeat_interleave(CHUNK, 0)
