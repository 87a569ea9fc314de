"""What a masked language model writes where a text has masks."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from headway.codecs import Codec
from headway.codecs.frame import frame_of
from headway.codecs.marks import MASK
from headway.domains.masked.symbols import going_on, mask_of, spaces_join, spelling
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.models import Transformer


class Candidate(NamedTuple):
    """A token that may stand in the place of a mask: its text, its id and its probability."""

    text: str
    id: int
    probability: float


def fill(model: Transformer, codec: Codec, text: str, top: int = 5) -> list[list[Candidate]]:
    """For each mask of `text`, in order, the `top` most probable symbols, best first.

    A mask is written [MASK], <mask> or as the tokenizer spells it. Each is foretold with all masks in place. Raises
    UserError for a text without a mask, and one that exceeds the context.
    """
    if top < 1:
        raise UserError(f"top is {top}; ask for 1 candidate or more")
    mask, ids = mask_of(codec), masked_ids(codec, text)
    if mask not in ids:
        raise UserError(f"the text {text[:40]!r} has no mask; write [MASK] where a word is to be filled in")
    context = model.config.context
    if context is not None and len(ids) > context:
        raise UserError(f"the text has {len(ids)} symbols and the model reads {context} at most; shorten it")
    row = torch.tensor([ids], device=device_of(model))
    with evaluating(model), torch.inference_mode():
        x = model(row, None).x[row == mask]
        found = model.heads["vocabulary"](x).softmax(-1)[:, : codec.size].topk(min(top, codec.size))
    return [
        [Candidate(_shown(codec, i), i, p) for i, p in zip(symbols, shares)]
        for symbols, shares in zip(found.indices.tolist(), found.values.tolist())
    ]


def masked_ids(codec: Codec, text: str) -> list[int]:
    """The ids of a text with masks between the marks of the codec.

    Where a tokenizer writes a space with the word after it, the mask stands for the space before it too.
    """
    mask = mask_of(codec)
    spellings = sorted({*MASK, spelling(codec, mask)}, key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, spellings)), text)
    if spaces_join(codec):
        parts = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
    later = going_on(codec) if len(parts) > 1 else codec
    encoded = [codec.encode(parts[0]), *(later.encode(part) for part in parts[1:])]
    inner = [*encoded[0], *(i for _, part in pairwise(encoded) for i in (mask, *part))]
    return frame_of(codec).around(inner)


def best_symbols(model: nn.Module, inputs: Any, layout: Layout, hidden: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The most probable symbol of each hidden place, 0 elsewhere."""
    best = torch.zeros_like(hidden, dtype=torch.long)
    best[hidden] = model.get_submodule("heads.vocabulary")(model(inputs, layout).x[hidden]).argmax(-1)
    return best


def _shown(codec: Codec, symbol: int) -> str:
    return codec.decode([symbol]).strip() or spelling(codec, symbol)
