"""A masked language model's predictions for masks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from headway.codecs import Codec
from headway.codecs.mask_tokens import mask_id, masked_ids, token_name
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.nn.models import Transformer, evaluation_mode


class Candidate(NamedTuple):
    """A candidate token for a mask: its text, its id and its probability."""

    text: str
    id: int
    probability: float


def fill(model: Transformer, codec: Codec, text: str, top: int = 5) -> list[list[Candidate]]:
    """For each mask in `text`, in order, the `top` most probable tokens, best first.

    A mask is written [MASK], <mask> or as in the tokenizer. Each prediction sees all masks. Raises UserError for text
    that has no mask or exceeds the context.
    """
    if top < 1:
        raise UserError(f"top is {top}; use 1 or more")
    mask, ids = mask_id(codec), masked_ids(codec, text)
    if mask not in ids:
        raise UserError(f"{text[:40]!r} has no mask; write [MASK] for the word to predict")
    context = model.config.context
    if context is not None and len(ids) > context:
        raise UserError(f"the text has {len(ids)} tokens, but the model takes at most {context}; shorten it")
    row = torch.tensor([ids], device=device_of(model))
    with evaluation_mode(model), torch.inference_mode():
        x = model(row, None).x[row == mask]
        top_tokens = model.heads["vocabulary"](x).softmax(-1)[:, : codec.vocab_size].topk(min(top, codec.vocab_size))
    return [
        [Candidate(codec.decode([i]).strip() or token_name(codec, i), i, p) for i, p in zip(tokens, probabilities)]
        for tokens, probabilities in zip(top_tokens.indices.tolist(), top_tokens.values.tolist())
    ]
