"""Tasks over pairs of sequences, translation and pronunciation: the pairs, their batches and objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import Codec, train_codec
from headway.config import register
from headway.data import IGNORED, Column, Pair, PairBatches, grouped, open_pairs, split_pairs
from headway.data import pairs as read_all
from headway.data.store import column_digest
from headway.domains.translation.config import BEGIN, END, Codecs, PairMarks, PairsConfig, check_recipe, with_symbols
from headway.domains.translation.translator import translate_hypotheses
from headway.errors import logger
from headway.formats.familiar import Familiar
from headway.generate import SearchConfig
from headway.generate.prompts import evaluating
from headway.layout import Layout
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, ByTokens, Chance, Contents, spread
from headway.learn.objectives.written import Ids, Sourced, Sources, Written
from headway.learn.report import Picture, heatmap
from headway.metrics import bleu, pronunciation_error_rates, translation_scores
from headway.nn.mixers import ConditionalGRU, CrossAttention
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, attention_maps

_LOG = logger(__name__)
_EVALUATED_AT_ONCE = 2048  # source or target tokens; larger batches of few pairs are mostly padding
_NO_LIMIT = 1 << 31
_LOOKED_AT = 20  # texts from which the pictured one is chosen
_EASY = 24  # maximum tokens of a readable picture
_END = "·"  # label of the eos token, which has no text


class Sentences(NamedTuple):
    """Id sequences as slices of one array: int64 [N] starts and lengths, without bos and eos."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(column: Column, pairs: np.ndarray) -> Sentences:
        """One column of the chosen pairs."""
        # Plain arrays: indexing a memory map costs more than indexing the array that it holds.
        return Sentences(np.asarray(column.ids), column.offsets[pairs], column.lengths[pairs])

    def select(self, numbers: np.ndarray) -> Sentences:
        return Sentences(self.ids, self.starts[numbers], self.lengths[numbers])

    def row(self, number: int) -> Ids:
        start = int(self.starts[number])
        return self.ids[start : start + int(self.lengths[number])].tolist()

    def padded(self, end: int, backwards: bool = False) -> np.ndarray:
        """All sequences with `end` after each, then 0: int64 [N, longest + 1].

        `backwards` reverses each, without moving its end or its padding: [5, 6] becomes [6, 5, end, 0].
        """
        longest = int(self.lengths.max(initial=0))
        steps = np.arange(longest + 1)
        inside = steps < self.lengths[:, None]
        rows = np.zeros((len(self.lengths), longest + 1), np.int64)
        first = (self.starts + self.lengths - 1 if backwards else self.starts)[:, None]
        rows[inside] = self.ids[(first - steps if backwards else first + steps)[inside]]
        rows[np.arange(len(rows)), self.lengths] = end
        return rows


@dataclass(frozen=True)
class SentencePairs:
    """The pairs of a split, in batches of at most `batch_tokens` source or target tokens in training and `eval_tokens`
    in evaluation. `reverse_source` reverses each source in the batches, with its end still last.
    """

    source: Sentences
    target: Sentences
    marks: PairMarks
    reverse_source: bool = False
    batch_tokens: int = _EVALUATED_AT_ONCE
    at_once: int = _EVALUATED_AT_ONCE
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source.lengths)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Inputs are the sources, int64 [B, S], and bos with the target's tokens, [B, T], each with its layout; labels
        are the target's tokens and eos, [B, T].
        """
        source, target = self.source.select(numbers), self.target.select(numbers)
        labels = target.padded(self.marks.end)
        read = np.empty_like(labels)
        read[:, 0], read[:, 1:] = self.marks.begin, labels[:, :-1]
        layout = Layout.padded(torch.from_numpy(target.lengths + 1))
        if not layout.dense:
            labels[np.arange(labels.shape[1]) > target.lengths[:, None]] = IGNORED
        ids = torch.from_numpy(source.padded(self.marks.source_end, self.reverse_source))
        inputs = ids, Layout.padded(torch.from_numpy(source.lengths + 1)), torch.from_numpy(read), layout
        tokens = int(target.lengths.sum()) + len(numbers)
        return Batch(inputs, torch.from_numpy(labels), tokens, ids.numel() + labels.size)

    def plan(self, batch_tokens: int, seed: int) -> PairBatches:
        return PairBatches(self.source.lengths + 1, self.target.lengths + 1, batch_tokens, seed)

    def training(self) -> ByTokens:
        return ByTokens(self.plan(self.batch_tokens, self.seed), len(self))

    def judging(self) -> ByTokens:
        return ByTokens(self.plan(self.at_once, 0), len(self))

    def some(self, limit: int | None) -> SentencePairs:
        """At most `limit` pairs, spread evenly over all: files are often sorted by length."""
        kept = spread(np.arange(len(self)), limit)
        return replace(self, source=self.source.select(kept), target=self.target.select(kept))


class ParallelText(Sourced):
    """Pairs of texts. `reverse` swaps source and target of the files; if `grouped`, each source is evaluated once,
    against all its targets.
    """

    def __init__(
        self,
        config: PairsConfig,
        recipe: Recipe,
        paths: Sequence[Path],
        codecs: Codecs,
        *,
        reverse: bool = False,
        grouped: bool = False,
    ) -> None:
        self.config, self.paths, self.reverse, self.grouped = config, paths, reverse, grouped
        self.codecs, self.codec, self.marks = codecs, codecs.target, PairMarks.of(codecs)
        self.seed = recipe.train.seed
        self.batch_tokens = recipe.train.batch_tokens or 0
        model = cast(EncoderDecoderConfig, recipe.model)
        contexts = model.encoder.context, model.decoder.context
        self._model_limit = min((most for most in contexts if most is not None), default=_NO_LIMIT)
        first, second = config.reading(codecs.source), codecs.target
        self.cache = open_pairs(paths, second, first) if reverse else open_pairs(paths, first, second)
        self.splits = self.cache.splits(config.split)
        self._of: dict[str, SentencePairs] = {}
        self._texts: dict[str, tuple[list[str], list[list[str]]]] = {}

    @property
    def final_split(self) -> str:
        return self.splits.final

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codecs' vocabulary sizes. Raises UserError without pairs to train or evaluate on, or if
        pairs do not fit it.
        """
        for split in ("train", "validation"):
            self.of(split)
        return with_symbols(model, self.codecs)

    def contents(self) -> Contents:
        first, second = ("target", "source") if self.reverse else ("source", "target")
        targets = column_digest(self.cache.directory, "target_ids", "target_offsets")
        return {f"{first} texts": (self.cache.keys,), f"{second} texts": ([targets],)}

    def save(self, directory: Path) -> None:
        self.codecs.save(directory)

    def met(self) -> Familiar:
        """In-distribution statistics of sources, each with its eos."""
        source, codec = self.of("train").source, self.codecs.source
        return Familiar.of(source.ids, codec.size, int(source.lengths.max()) + 1, (codec.begin, codec.end))

    def of(self, split: str) -> SentencePairs:
        """The pairs of a split that fit the model and a batch."""
        if split in self._of:
            return self._of[split]
        numbers = self.splits.rows(split)
        longest = self.config.longest if split == "train" else None
        most = self.batch_tokens if split == "train" else _NO_LIMIT
        limit = min(longest or _NO_LIMIT, self._model_limit, most)
        # The eos token needs one more position.
        found = self.cache.fitting(numbers, limit - 1, limit - 1, drop_long=longest is not None)
        if found.too_long or found.empty:
            _LOG.warning(
                f"{split}: left out {found.too_long:,} of {len(numbers):,} pairs with more than {limit:,} tokens, "
                f"and {found.empty:,} with an empty source or target"
            )
        kept = found.pairs
        if self.reverse and split == "train":  # the files' first column, here the target, decided the splits
            sides, texts = self.splits.sides, self.cache.target
            others = {texts[pair].tobytes() for side in ("validation", "test") for pair in sides[side]}
            kept = kept[np.array([texts[pair].tobytes() not in others for pair in kept], dtype=bool)]
        columns = [Sentences.of(column, kept) for column in (self.cache.source, self.cache.target)]
        source, target = columns[::-1] if self.reverse else columns
        at_once = max(_EVALUATED_AT_ONCE, int(max(source.lengths.max(), target.lengths.max())) + 1)
        reverse = self.config.reverse_source
        self._of[split] = SentencePairs(source, target, self.marks, reverse, self.batch_tokens, at_once, self.seed)
        return self._of[split]

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """At most `limit` raw texts of a split, spread evenly over it."""
        if split not in self._texts:
            pairs = read_all(self.paths) if split == "all" else split_pairs(self.paths, split, self.config.split)
            both = [Pair(*pair[::-1]) if self.reverse else pair for pair in pairs]
            if self.grouped:
                together = grouped(both)
                self._texts[split] = list(together), list(together.values())
            else:
                self._texts[split] = [source for source, _ in both], [[target] for _, target in both]
        texts, references = self._texts[split]
        kept = spread(np.arange(len(texts)), limit).tolist()
        given = [texts[row] for row in kept]
        return Sources(given, [references[row] for row in kept], given)


class TargetText(Written[ParallelText]):
    """The target of a source, scored by BLEU and chrF, with `lowercase` also by BLEU of lower-cased text."""

    def __init__(self, goal: str, config: PairsConfig, lowercase: bool = False) -> None:
        super().__init__(goal, SearchConfig(config.beam, config.length_penalty), config.smoothing)
        self.lowercase = lowercase

    def write(self, model: nn.Module, examples: ParallelText, sources: Sources, search: SearchConfig) -> list[Ids]:
        found = translate_hypotheses(
            cast(EncoderDecoder, model), examples.codecs, examples.config, sources.given, search
        )
        return [best.ids for best, *_ in found]

    def scores(self, examples: ParallelText, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        outputs = examples.texts(written)
        scores = translation_scores(outputs, sources.references)
        if not self.lowercase:
            return scores
        lower = bleu(outputs, sources.references, lowercase=True)
        return {**scores, **{name.replace("bleu", "bleu_lowercase"): value for name, value in lower.items()}}

    def pictures(self, model: nn.Module, examples: ParallelText) -> list[Picture]:
        """The alignment of a text and its translation, the longest that is still readable; none without attention."""
        texts, codecs, config = examples.looked_at(_LOOKED_AT).given, examples.codecs, examples.config
        rows = [codecs.source.encode(config.prepare(text)) for text in texts]
        shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
        easy = [i for i, row in enumerate(rows) if 0 < len(row) <= _EASY] or [shortest]
        chosen = max(easy, key=lambda i: len(rows[i]))
        [ids] = self.write(model, examples, Sources([texts[chosen]], [], []), self.search)
        found = alignment(model, codecs, config, rows[chosen], ids)
        if found is None:
            return []
        [output] = examples.texts([ids])
        caption = f"Mean attention from each output token (rows) to the input tokens: {texts[chosen]} → {output}"
        return [Picture("Alignment", caption, heatmap(found.weights.tolist(), found.target, found.source, "alignment"))]


class Alignment(NamedTuple):
    """Weights in [0, 1] whose rows sum to 1, as [target, source], and the text of each token."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "T S"]


def alignment(
    model: nn.Module, codecs: Codecs, config: PairsConfig, source: list[int], target: list[int]
) -> Alignment | None:
    """The cross-attention or additive attention of a pair of sequences (ids without bos and eos), averaged over layers
    and heads; None if the decoder has none because it takes one vector of the source.

    A row shows what the decoder attended to when it predicted that token, eos included. Columns are in the order of the
    text, even if the encoder takes it reversed.
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


@register("pronounce")
@dataclass(frozen=True)
class PronounceConfig(PairsConfig):
    """Pronounce words. Data are pronouncing dictionaries (.dict) or pairs of a word and its phonemes.

    Letters and phonemes share one vocabulary. Every pronunciation of a word is trained on and counts as correct; words,
    not pronunciations, are held out.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read or do not fit the settings."""
        check_recipe(recipe, shared=True)
        paths = recipe.files(data)
        examples = ParallelText(self, recipe, paths, self.saved_or_trained(paths, workspace), grouped=True)
        return Task(examples, Pronounced("per", self))

    def prepare(self, source: str) -> str:
        """A word as letters between spaces, in lower case as in dictionaries."""
        return " ".join(source.strip().lower())

    def reading(self, codec: Codec) -> SpeltCodec:
        return SpeltCodec(codec, self)

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        pairs = split_pairs(paths, "train", self.split)
        texts = (text for word, sounds in pairs for text in (self.prepare(word), sounds))
        codec = train_codec("word", texts, split="space", special=(BEGIN, END))
        return Codecs(codec, codec)


class SpeltCodec:
    """The source codec for a cache: spells words before encoding them."""

    def __init__(self, codec: Codec, config: PronounceConfig) -> None:
        self._codec = codec
        self._config = config
        self.size, self.begin, self.end = codec.size, codec.begin, codec.end

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._codec.encode_batch([self._config.prepare(text) for text in texts])

    def fingerprint(self) -> str:
        return f"letters of {self._codec.fingerprint()}"


class Pronounced(TargetText):
    """The phonemes of a word, scored by word and phoneme error rates against the nearest of its pronunciations."""

    def scores(self, examples: ParallelText, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        return pronunciation_error_rates(examples.texts(written), sources.references)
