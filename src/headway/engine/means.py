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

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.engine.int8_keys import padded_to_vectors
from headway.engine.operations import CHUNK
from headway.layout import Layout
from headway.nn.mixers.attention import SelfAttention

KeyMeans = Mapping[nn.Module, Float[Tensor, "G K"]]  # by mixer, before rotation


def unrotated_mean(mixer: SelfAttention, keys: Float[np.ndarray, "T G K"]) -> Float[Tensor, "G K"]:
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
