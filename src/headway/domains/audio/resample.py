"""From one sample rate to another."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.errors import UserError

RATE = 16000  # samples a second, of all that models hear
_LOWEST, _HIGHEST = 1000, 768_000
# A windowed sinc with 48 zero crossings on each side. Kaiser's window of this beta lets through less than -80 dB, and
# falls within 10.5 % of the lower half rate, which it ends at: what the lower rate cannot hold is gone, not folded.
_CROSSINGS, _BETA, _PASSED = 48, 7.857, 0.947
_AT_ONCE = 1 << 18  # weights of all phases together, up to which one product is faster than one for each


def resample(sound: Float[Tensor, "N"], rate: int, wanted: int = RATE) -> Float[Tensor, "M"]:
    """The sound at `wanted` samples a second, M = N wanted / rate rounded up (Crochiere and Rabiner 1983, polyphase).

    Of the samples between the old ones, each phase has a filter of its own. UserError for a rate that no sound has.
    """
    for each in (rate, wanted):
        if not _LOWEST <= each <= _HIGHEST:
            raise UserError(
                f"a rate of {each} samples a second is not within {_LOWEST} and {_HIGHEST}; state the true one"
            )
    if rate == wanted:
        return sound
    shared = math.gcd(rate, wanted)
    old, new = rate // shared, wanted // shared
    filters = _filters(old, new).to(sound)
    phases, taps = filters.shape
    length = -(-len(sound) * new // old)
    around = F.pad(sound, (taps // 2 - 1, taps // 2 + old))
    if phases * (taps + old) <= _AT_ONCE:
        found = F.conv1d(around[None, None], _shifted(old, new).to(sound)[:, None], stride=old)[0]
        return found.t().flatten()[:length]
    out = sound.new_empty(length)
    for phase in range(min(phases, length)):
        place = out[phase::new]
        first = phase * old // new
        heard = around[first : first + (len(place) - 1) * old + taps]
        found = F.conv1d(heard[None, None], filters[None, None, phase], stride=old)
        place.copy_(found[0, 0])
    return out


@lru_cache(maxsize=8)
def _shifted(old: int, new: int) -> Float[Tensor, "P wide"]:
    """The filters of all phases, each with the zeros before it that its phase begins later by."""
    filters = _filters(old, new)
    phases, taps = filters.shape
    wide = filters.new_zeros(phases, taps + old)
    for phase in range(phases):
        first = phase * old // new
        wide[phase, first : first + taps] = filters[phase]
    return wide


@lru_cache(maxsize=8)
def _filters(old: int, new: int) -> Float[Tensor, "P taps"]:
    """The filter of each phase p, whose output lies (p old / new) mod 1 behind an old sample."""
    cutoff = min(1.0, new / old) * _PASSED  # of half the old rate
    reach = math.ceil(_CROSSINGS / cutoff)
    behind = torch.arange(new, dtype=torch.float64) * old % new / new
    distance = behind[:, None] - torch.arange(1 - reach, reach + 1, dtype=torch.float64)
    inside = (1 - (distance * cutoff / _CROSSINGS).square()).clamp_min(0).sqrt()
    window = torch.where(inside > 0, torch.special.i0(_BETA * inside), 0.0)
    filters = torch.sinc(distance * cutoff) * window
    return (filters / filters.sum(1, keepdim=True)).float()
