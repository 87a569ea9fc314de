"""How well a model foretells text: loss, perplexity, bits per byte."""

from __future__ import annotations

import math

from headway.errors import UserError


def perplexity(nats: float, tokens: int) -> float:
    """exp of the loss per token, where `nats` is the sum over all `tokens`; infinite where it is past all floats."""
    try:
        return math.exp(_per(nats, tokens, "tokens"))
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, size: int) -> float:
    """Bits that a coder by this model spends on each of the text's `size` UTF-8 bytes; comparable between codecs."""
    return _per(nats, size, "bytes") / math.log(2)


def language_scores(nats: float, tokens: int, size: int | None = None) -> dict[str, float]:
    """`loss` (nats a token) and `perplexity`, and `bits_per_byte` where `size`, the text's bytes, is known."""
    scores = {"loss": _per(nats, tokens, "tokens"), "perplexity": perplexity(nats, tokens)}
    return scores if size is None else {**scores, "bits_per_byte": bits_per_byte(nats, size)}


def _per(nats: float, count: int, unit: str) -> float:
    if count <= 0:
        raise UserError(f"the loss was counted over {count} {unit}; evaluate on at least one")
    return nats / count
