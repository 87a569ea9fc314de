"""What each symbol of a translation was read from: the attention to the source of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.domains.translation.config import Codecs, PairMarks, PairsConfig
from headway.domains.translation.translator import translate_hypotheses
from headway.generate import SearchConfig
from headway.generate.prompts import evaluating
from headway.layout import Layout
from headway.mixers import ConditionalGRU, CrossAttention
from headway.models import EncoderDecoder, attention_maps
from headway.report import Picture, heatmap

_END = "·"  # stands for the end symbol, which has no text
_EASY = 24  # symbols


class Alignment(NamedTuple):
    """Weights between 0 and 1 whose rows add up to 1, as [target, source], and the text of each symbol."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "T S"]


def alignment(
    model: nn.Module, codecs: Codecs, config: PairsConfig, source: list[int], target: list[int]
) -> Alignment | None:
    """The cross-attention or additive attention of a pair of sequences (ids without begin and end), averaged over
    layers and heads; None where the decoder has none, as it reads one vector of the source.

    A row tells what was read when its symbol was foretold, the end included. Columns are in the order of the text, also
    where the encoder reads it backwards.
    """
    marks = PairMarks.of(codecs)
    device = next(model.parameters()).device
    inputs = [
        torch.tensor([ids], device=device)
        for ids in ([*config.order(source), marks.source_end], [marks.begin, *target])
    ]
    layouts = [Layout.full(1, ids.shape[1], device=device) for ids in inputs]
    with evaluating(model):
        maps = attention_maps(model, lambda: model(inputs[0], layouts[0], inputs[1], layouts[1]))
    readers = (ConditionalGRU, CrossAttention)
    read = [weights[0].mean(0) for name, weights in maps.items() if isinstance(model.get_submodule(name), readers)]
    if not read:
        return None
    mean: Tensor = torch.stack(read).mean(0)
    columns = [*config.order(range(len(source))), len(source)]
    names = [[codec.decode([symbol]).strip() for symbol in ids] for codec, ids in zip(codecs, (source, target))]
    return Alignment([*names[0], _END], [*names[1], _END], mean[:, columns].cpu().numpy())


def alignment_pictures(
    model: EncoderDecoder, codecs: Codecs, config: PairsConfig, texts: Sequence[str]
) -> list[Picture]:
    """The alignment of one text and its translation, the longest that is easy to look at; none without attention."""
    rows = [codecs.source.encode(config.prepare(text)) for text in texts]
    shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
    easy = [i for i, row in enumerate(rows) if 0 < len(row) <= _EASY] or [shortest]
    chosen = max(easy, key=lambda i: len(rows[i]))
    [[best, *_]] = translate_hypotheses(model, codecs, config, [texts[chosen]], SearchConfig(config.beam))
    found = alignment(model, codecs, config, rows[chosen], best.ids)
    if found is None:
        return []
    output = codecs.target.decode(best.ids)
    caption = f"Where each symbol of the output (downwards) was read from, in the mean: {texts[chosen]} → {output}"
    return [Picture("Alignment", caption, heatmap(found.weights.tolist(), found.target, found.source, "alignment"))]
