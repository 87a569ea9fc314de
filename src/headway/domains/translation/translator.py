"""Translates lines with a published encoder-decoder or one from a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.codecs import Codec
from headway.codecs.tokenizer import encode_with_special_tokens
from headway.domains.translation.config import Codecs, PairsConfig, PairSpecialTokens
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Hypothesis, Sampling, SearchConfig, score_targets, translate_ids
from headway.nn.models import EncoderDecoder, Generative

Ids = list[int]


@dataclass(frozen=True)
class Translator:
    """`read` converts lines to encoder input. A target is between `bos` and `eos`; its first ids are `forced`, and
    `suppressed` ids never occur in it. `generator` generates the same as `model`; `on_inputs` is called with the
    inputs.
    """

    model: EncoderDecoder
    generator: Generative
    codecs: Codecs
    to_source_ids: Callable[[Sequence[str]], list[Ids]]
    bos: int
    eos: int
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    on_inputs: Callable[[Sequence[str], Sequence[Ids]], None] = lambda lines, sources: None

    @staticmethod
    def of_run(
        model: EncoderDecoder,
        config: PairsConfig,
        directory: Path,
        generator: Generative,
        on_inputs: Callable[[Sequence[str], Sequence[Ids]], None],
    ) -> Translator:
        """A translator with a run's task settings."""
        codecs = config.codecs(directory)
        special_tokens = PairSpecialTokens.of(codecs)
        to_source_ids = lambda texts: source_ids(texts, codecs.source, config)  # noqa: E731
        return Translator(
            model, generator, codecs, to_source_ids, special_tokens.bos, special_tokens.eos, on_inputs=on_inputs
        )

    @staticmethod
    def of_published(model: EncoderDecoder, codec: Codec, usage: Usage, generator: Generative) -> Translator:
        """A translator with a published model's settings, whose tokenizer adds special tokens to the source. UserError
        if the model has no start or end token.
        """
        start = usage.decoder_start if usage.decoder_start is not None else codec.bos_id
        if start is None or not usage.ends:
            raise UserError("this model has no decoder_start_token_id or eos_token_id; add them to its config.json")
        suppressed = tuple(token for token in usage.suppressed if token not in usage.ends)
        to_source_ids = lambda texts: [encode_with_special_tokens(codec, text) for text in texts]  # noqa: E731
        return Translator(
            model, generator, Codecs(codec, codec), to_source_ids, start, usage.ends[0], usage.forced, suppressed
        )

    def translate(
        self, lines: Sequence[str], search: SearchConfig, sampling: Sampling | None = None
    ) -> list[list[tuple[str, float]]]:
        """The `n_best` translations of each line, or as many samples, with their scores, best first; an empty line
        gives an empty translation.
        """
        sources = [ids if line.strip() else [] for line, ids in zip(lines, self.to_source_ids(lines))]
        self.on_inputs(lines, sources)
        prefixes = [self.forced if source else () for source in sources]
        hypotheses = translate_ids(
            self.generator,
            sources,
            bos=self.bos,
            eos=self.eos,
            config=search,
            prefixes=prefixes,
            suppressed=self.suppressed,
            sampling=sampling,
        )
        return [
            [(self.codecs.target.decode(best.ids), best.score) for best in line_hypotheses]
            for line_hypotheses in hypotheses
        ]

    def score(self, targets: Sequence[str], sources: Sequence[str]) -> list[list[float]]:
        """log p of each target token and of the eos after it, in nats."""
        ids = self.codecs.target.encode_batch(list(targets))
        return score_targets(self.model, self.to_source_ids(sources), ids, bos=self.bos, eos=self.eos)


def source_ids(texts: Sequence[str], codec: Codec, config: PairsConfig) -> list[Ids]:
    """The encoder input for each text; empty for empty text."""
    end = codec.eos_id
    rows = [config.encoder_order(row) for row in codec.encode_batch([config.prepare(text) for text in texts])]
    return [[*row, end] if row and end is not None else row for row in rows]


def translate_hypotheses(
    model: EncoderDecoder, codecs: Codecs, config: PairsConfig, texts: Sequence[str], search: SearchConfig
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses for each text, best first, as ids of the target codec."""
    special_tokens = PairSpecialTokens.of(codecs)
    sources = source_ids(texts, codecs.source, config)
    return translate_ids(model, sources, bos=special_tokens.bos, eos=special_tokens.eos, config=search)
