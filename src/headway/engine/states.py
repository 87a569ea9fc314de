"""What recurrent mixers keep of a row: a fixed number of floats, whatever its length."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.mixers.associative import Associative, FastWeights
from headway.mixers.conditional_gru import ConditionalGRU, Summary
from headway.mixers.dynamic_links import DynamicLinks, FastLinks
from headway.mixers.recurrence import Recurrence, Vectors
from headway.models import Decoding


def state_numbers(mixer: nn.Module) -> int:
    """How many floats the engine keeps of a row for a mixer; 0 where its state grows."""
    if isinstance(mixer, Recurrence):
        return sum(mixer.state_sizes)
    if isinstance(mixer, Associative):
        return mixer.heads * math.prod(mixer.memory_shape)
    return mixer.cells * mixer.width if isinstance(mixer, DynamicLinks) else 0


def fixed_numbers(mixer: nn.Module) -> int:
    """How many floats it has of a memory that are the same for all tokens: c and C c."""
    if isinstance(mixer, ConditionalGRU) and mixer.config.context == "fixed":
        return sum(mixer.context.weight.shape)
    return 0


def flat_states(decoding: Decoding) -> Float[Tensor, "B N"]:
    """The states of torch in the order in which a program has them, layer by layer."""
    parts = [torch.zeros(len(decoding.positions), 0)]
    for state in decoding.states:
        if isinstance(state, Vectors):
            parts += state.now
        elif isinstance(state, (FastWeights, FastLinks)):
            parts.append(state.matrix)
    return torch.cat([part.detach().float().flatten(1) for part in parts], 1)


def flat_summaries(decoding: Decoding) -> Float[Tensor, "M N"]:
    """What memories say that is the same for all tokens, layer by layer; no rows where there is nothing."""
    parts = [part for memory in decoding.memories or () if isinstance(memory, Summary) for part in memory]
    return torch.cat([part.detach().float() for part in parts], 1) if parts else torch.zeros(0, 0)
