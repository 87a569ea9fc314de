"""Text in, text out, with a trained model of pairs."""

from __future__ import annotations

from collections.abc import Sequence

from headway.codecs import Codec
from headway.domains.translation.config import Codecs, Marks, PairsConfig
from headway.generate import Hypothesis, SearchConfig, translate_ids
from headway.models import EncoderDecoder


def source_ids(texts: Sequence[str], codec: Codec, config: PairsConfig) -> list[list[int]]:
    """What an encoder reads of each text; nothing of a text that is empty."""
    end = codec.end
    rows = [config.order(row) for row in codec.encode_batch([config.prepare(text) for text in texts])]
    return [[*row, end] if row and end is not None else row for row in rows]


def translate_hypotheses(
    model: EncoderDecoder, codecs: Codecs, config: PairsConfig, texts: Sequence[str], search: SearchConfig
) -> list[list[Hypothesis]]:
    """The `n_best` of each text, best first, as ids of the target's codec."""
    marks = Marks.of(codecs)
    sources = source_ids(texts, codecs.source, config)
    return translate_ids(model, sources, begin=marks.begin, end=marks.end, config=search)


def translate(
    model: EncoderDecoder, codecs: Codecs, config: PairsConfig, texts: Sequence[str], search: SearchConfig
) -> list[list[str]]:
    """The `n_best` translations of each text, best first."""
    found = translate_hypotheses(model, codecs, config, texts, search)
    return [[codecs.target.decode(hypothesis.ids) for hypothesis in some] for some in found]
