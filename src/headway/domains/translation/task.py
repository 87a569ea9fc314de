"""Tasks on sequence pairs: settings, tokenizers, pairs, objectives and inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec, load_codecs
from headway.codecs.languages import language_tokens
from headway.codecs.published_tokenizers import SOURCE_FOLDER
from headway.codecs.tokenizer import FILE, sequence_template
from headway.config import override
from headway.data import IGNORE_INDEX, Pair, PairBatches, SplitConfig, group_references, open_pairs, split_pairs
from headway.data import iter_pairs as read_all
from headway.data.array_store import column_digest
from headway.data.token_store import Encoder, PairCache
from headway.errors import ConfigError, UserError, logger
from headway.formats.out_of_distribution import TrainingStatistics
from headway.formats.usage import Usage
from headway.generate import SearchConfig, translate_ids
from headway.generate.search import check_beam
from headway.layout import Layout
from headway.learn import Recipe, TaskConfig
from headway.learn.examples import Batch, Contents, LengthBatches, RngKey, spread_evenly
from headway.learn.objectives.sequences import Ids, SequenceGeneration, Sources, SourceTargetExamples
from headway.learn.recipe import batch_tokens_of
from headway.learn.report import Picture, heatmap
from headway.metrics import bleu, rouge, translation_scores
from headway.nn.mixers import ConditionalGRU, CrossAttention
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig, ModelConfig, attention_maps, evaluation_mode

BOS, EOS = "<s>", "</s>"
NO_USAGE = Usage()


class Codecs(NamedTuple):
    """The source and target codecs, the same object if the vocabulary is shared. The target codec has bos and eos."""

    source: Codec
    target: Codec

    def save(self, directory: Path) -> None:
        self.target.save(directory)
        if self.source is not self.target:
            self.source.save(directory / SOURCE_FOLDER)


class PairSpecialTokens(NamedTuple):
    """Special tokens around sequences: `bos` and the `forced` tokens start a target, `eos` ends it; a source is between
    `before` and `after`. `suppressed` tokens are never generated.
    """

    bos: int
    eos: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        return (self.bos, *self.forced)

    @property
    def extra(self) -> tuple[int, int]:
        """How many special tokens a source and a target have in the model's input."""
        return len(self.before) + len(self.after), len(self.prompt)

    @staticmethod
    def of(codecs: Codecs, usage: Usage) -> PairSpecialTokens:
        """Those of the published model that a run starts from, or otherwise of its own codecs. UserError if they are
        missing.
        """
        start = usage.begin if usage.decoder_start is None else usage.decoder_start
        if usage.family and start is not None and usage.ends:
            codec = codecs.source
            languages = language_tokens(codec.tokenizer).values() if isinstance(codec, TokenizerCodec) else ()
            frame = sequence_template(codec)
            if usage.family != "marian" and {*frame.before, *frame.after} & {*languages}:
                raise UserError(
                    "training from a model with language tokens is not supported; use one without, such as T5"
                )
            suppressed = tuple(token for token in usage.suppressed if token not in usage.ends)
            forced = usage.forced or tuple(token for token in frame.before if token != start)
            return PairSpecialTokens(start, usage.ends[0], frame.before, frame.after, forced, suppressed)
        ids = (codecs.target.bos_id, codecs.target.eos_id, codecs.source.eos_id)
        if None in ids:
            raise UserError(f"the tokenizer has no bos or eos token; train one with {BOS} and {EOS}")
        return PairSpecialTokens(ids[0], ids[1], (), (ids[2],))  # type: ignore[arg-type]

    def source(self, ids: Ids) -> Ids:
        """The encoder input for a source; empty for an empty one."""
        return [*self.before, *ids, *self.after] if ids else ids


@dataclass(frozen=True)
class PairsConfig(TaskConfig):
    """Predict the target of each pair from its source.

    `smoothing` is label smoothing (Szegedy et al. 2016). Training pairs with more than `max_length` source or target
    tokens are skipped and counted; without `max_length`, a pair that does not fit into the model or a batch is an
    error. With `truncate`, sources are cut at the limit instead. `beam` and `length_penalty` (Wu et al. 2016) apply to
    the test split; other splits are decoded greedily. `reverse_source` feeds the source tokens in reverse order, in
    training and inference (Sutskever et al. 2014, section 3.3); the eos token and the padding still follow them.
    """

    smoothing: float = 0.1
    max_length: int | None = None  # maximum source and target tokens of a training pair; none: no limit
    truncate: bool = False  # whether to cut sources that are too long
    max_ratio: float = 2.0  # maximum output tokens per source token, in addition to 10
    beam: int = 5  # beam size on the test split; 1 is greedy
    length_penalty: float = 0.6  # length penalty of the beam search
    reverse_source: bool = False
    prefix: str = ""  # text before each source, such as the task's name for T5
    split: SplitConfig = SplitConfig()  # held-out shares

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"task.smoothing is {self.smoothing}; choose a fraction of at least 0 and below 1")
        check_beam("task.beam", self.beam)
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"task.max_length is {self.max_length}; choose 1 or more")

    def prepare(self, source: str) -> str:
        """Prepare a source for its codec."""
        return self.prefix + source

    def source_encoder(self, codec: Codec) -> Encoder:
        """The encoder for source files, given the source codec."""
        return PreparedEncoder(codec, self.prepare, repr(self.prefix)) if self.prefix else codec

    def encoder_order(self, source: Sequence[int]) -> list[int]:
        """Source ids without eos, in the order of the encoder's input. Its own inverse."""
        return list(source[::-1] if self.reverse_source else source)

    def codecs(self, directory: Path) -> Codecs:
        """The codecs saved next to a model."""
        codecs = load_codecs(directory)
        return Codecs(codecs[0], codecs[-1])

    def training_texts(self, pair: Sequence[str]) -> Sequence[str]:
        """The texts of a pair that codecs are trained on."""
        return pair

    def train_codec(self, texts: Iterable[str]) -> Codec:
        """A codec trained on texts."""
        raise NotImplementedError

    def train_codecs(self, paths: Sequence[Path]) -> Codecs:
        """Codecs trained on the training split: one for both languages."""
        pairs = map(self.training_texts, split_pairs(paths, "train", self.split))
        codec = self.train_codec(text for pair in pairs for text in pair)
        return Codecs(codec, codec)

    def saved_or_trained(self, paths: Sequence[Path], workspace: Path) -> Codecs:
        return self.codecs(workspace) if (workspace / FILE).exists() else self.train_codecs(paths)


class PreparedEncoder:
    """The source codec for a cache: prepares texts before encoding them."""

    def __init__(self, codec: Codec, prepare: Callable[[str], str], description: str) -> None:
        self._codec, self._prepare, self._description = codec, prepare, description
        self.vocab_size, self.bos_id, self.eos_id = codec.vocab_size, codec.bos_id, codec.eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._codec.encode_batch([self._prepare(text) for text in texts])

    def fingerprint(self) -> str:
        return f"{self._description} of {self._codec.fingerprint()}"


def check_recipe(recipe: Recipe, shared: bool) -> None:
    """Raises ConfigError for a model or batches that do not support pairs."""
    model = recipe.model
    if not isinstance(model, EncoderDecoderConfig):
        raise ConfigError(
            f"pairs need an encoder_decoder, but the model is a {type(model).__name__}; choose another model"
        )
    if model.tie in ("all", "embeddings") and not shared:
        raise ConfigError(
            f"model.tie {model.tie} needs one vocabulary; set task.shared to true or model.tie to head or none"
        )
    batch_tokens_of(recipe, "pair")


def source_ids(
    texts: Sequence[str],
    codec: Codec,
    config: PairsConfig,
    special_tokens: PairSpecialTokens,
    context: int | None = None,
) -> list[Ids]:
    """The encoder input for each text; empty for empty text. `context` is the model's, to which texts may be cut."""
    rows = codec.encode_batch([config.prepare(text) if text else text for text in texts])
    lengths = [length for length in (config.max_length, context) if length is not None]
    limit = min(lengths) - special_tokens.extra[0] if config.truncate and lengths else None
    return [special_tokens.source(config.encoder_order(row[:limit])) for row in rows]


_LOG = logger(__name__)
_EVAL_BATCH_TOKENS = 2048  # source or target tokens; larger batches of few pairs are mostly padding
_NO_LIMIT = 1 << 31
_PICTURE_CANDIDATES = 20  # candidates from which the picture's text is chosen
_MAX_PICTURE_TOKENS = 24  # maximum tokens of a readable picture
_EOS_LABEL = "·"  # label of the eos token, which has no text


class TokenSequences(NamedTuple):
    """Id sequences as slices of an array: int64 [N] starts and lengths, without bos and eos."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def select(self, indices: np.ndarray) -> TokenSequences:
        return TokenSequences(self.ids, self.starts[indices], self.lengths[indices])

    def row(self, index: int) -> Ids:
        start = int(self.starts[index])
        return self.ids[start : start + int(self.lengths[index])].tolist()

    def padded(self, before: Sequence[int], after: Sequence[int], backwards: bool = False) -> np.ndarray:
        """All sequences between the tokens `before` and `after`, then 0: int64 [N, longest + their number].

        `backwards` reverses each sequence without moving these or the padding: [5, 6] becomes [6, 5, *after, 0].
        """
        max_length = int(self.lengths.max(initial=0))
        offsets = np.arange(max_length)
        mask = offsets < self.lengths[:, None]
        rows = np.zeros((len(self.lengths), len(before) + max_length + len(after)), np.int64)
        rows[:, : len(before)] = before
        first = (self.starts + self.lengths - 1 if backwards else self.starts)[:, None]
        middle = rows[:, len(before) : len(before) + max_length]
        middle[mask] = self.ids[(first - offsets if backwards else first + offsets)[mask]]
        for position, token in enumerate(after, len(before)):
            rows[np.arange(len(rows)), self.lengths + position] = token
        return rows


@dataclass(frozen=True)
class SentencePairs:
    """A split's pairs, in batches of at most `batch_tokens` source or target tokens in training and `eval_tokens` in
    evaluation. `reverse_source` reverses each source in the batches, with its end token still last.
    """

    source: TokenSequences
    target: TokenSequences
    special_tokens: PairSpecialTokens
    reverse_source: bool = False
    batch_tokens: int = _EVAL_BATCH_TOKENS
    eval_tokens: int = _EVAL_BATCH_TOKENS
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source.lengths)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Inputs are the sources, int64 [B, S], and bos with the target tokens, [B, T], each with its layout; labels
        are the target tokens with eos, [B, T], without the forced ones.
        """
        source, target = self.source.select(indices), self.target.select(indices)
        special_tokens, prompt = self.special_tokens, self.special_tokens.prompt
        tokens_of_targets = target.padded(prompt, (special_tokens.eos,))
        decoder_ids, labels = tokens_of_targets[:, :-1].copy(), tokens_of_targets[:, 1:].copy()
        layout = Layout.padded(torch.from_numpy(target.lengths + len(prompt)))
        if not layout.dense:
            labels[np.arange(labels.shape[1]) >= target.lengths[:, None] + len(prompt)] = IGNORE_INDEX
        labels[:, : len(prompt) - 1] = IGNORE_INDEX
        ids = torch.from_numpy(source.padded(special_tokens.before, special_tokens.after, self.reverse_source))
        source_layout = Layout.padded(torch.from_numpy(source.lengths + special_tokens.extra[0]))
        inputs = ids, source_layout, torch.from_numpy(decoder_ids), layout
        tokens = int(target.lengths.sum()) + len(indices)
        return Batch(inputs, torch.from_numpy(labels), tokens, ids.numel() + labels.size)

    def plan(self, batch_tokens: int, seed: int) -> PairBatches:
        source, target = self.special_tokens.extra
        return PairBatches(self.source.lengths + source, self.target.lengths + target, batch_tokens, seed)

    def training_order(self) -> LengthBatches:
        return LengthBatches(self.plan(self.batch_tokens, self.seed), len(self))

    def evaluation_order(self) -> LengthBatches:
        return LengthBatches(self.plan(self.eval_tokens, 0), len(self))

    def limited_to(self, limit: int | None) -> SentencePairs:
        """At most `limit` pairs, spread evenly over all: files are often sorted by length."""
        rows = spread_evenly(np.arange(len(self)), limit)
        return replace(self, source=self.source.select(rows), target=self.target.select(rows))


class ParallelText(SourceTargetExamples):
    """Text pairs. `reverse` swaps the files' sources and targets; if `grouped`, each source is evaluated once, against
    all its targets.
    """

    def __init__(
        self,
        config: PairsConfig,
        recipe: Recipe,
        paths: Sequence[Path],
        codecs: Codecs,
        usage: Usage = NO_USAGE,
        *,
        reverse: bool = False,
        grouped: bool = False,
    ) -> None:
        """`usage` is that of the model that the run starts from."""
        self.config, self.paths, self.reverse, self.grouped = config, paths, reverse, grouped
        self.codecs, self.codec, self.usage = codecs, codecs.target, usage
        self.special_tokens = PairSpecialTokens.of(codecs, usage)
        self.seed = recipe.train.seed
        self.batch_tokens = recipe.train.batch_tokens or 0
        model = cast(EncoderDecoderConfig, recipe.model)
        contexts = model.encoder.context, model.decoder.context
        self._model_limit = min((context for context in contexts if context is not None), default=_NO_LIMIT)
        self.cache = self.open_cache()
        self.splits = self.cache.splits(config.split)
        self._pairs: dict[str, SentencePairs] = {}
        self._sources: dict[str, tuple[list[str], list[list[str]]]] = {}

    def open_cache(self) -> PairCache:
        """The tokens of all pairs, in the direction of the files."""
        first, second = self.config.source_encoder(self.codecs.source), self.codecs.target
        return open_pairs(self.paths, second, first) if self.reverse else open_pairs(self.paths, first, second)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codecs' vocabulary sizes. Raises UserError if there are no pairs to train or evaluate on, or
        if pairs do not fit the model.
        """
        for split in ("train", "validation"):
            self.of(split)
        source, target = self.codecs
        if source is target or not isinstance(model, EncoderDecoderConfig):
            return override(model, {"vocab_size": target.vocab_size})
        encoder = replace(model.encoder, vocab_size=source.vocab_size)
        return replace(model, encoder=encoder, decoder=replace(model.decoder, vocab_size=target.vocab_size))

    def contents(self) -> Contents:
        first, second = ("target", "source") if self.reverse else ("source", "target")
        targets = column_digest(self.cache.directory, "target_ids", "target_offsets")
        return {f"{first} texts": (self.cache.keys,), f"{second} texts": ([targets],)}

    def save(self, directory: Path) -> None:
        self.codecs.save(directory)
        if self.usage.family:
            replace(self.usage, forced=self.special_tokens.forced).save(directory)

    def input_statistics(self) -> TrainingStatistics:
        """In-distribution statistics of sources, including eos."""
        source, codec = self.of("train").source, self.codecs.source
        return TrainingStatistics.from_ids(
            source.ids, codec.vocab_size, int(source.lengths.max()) + 1, (codec.bos_id, codec.eos_id)
        )

    def of(self, split: str) -> SentencePairs:
        """The pairs in a split that fit the model and a batch."""
        if split in self._pairs:
            return self._pairs[split]
        rows = self.splits.rows(split)
        max_length = self.config.max_length if split == "train" else None
        batch_limit = self.batch_tokens if split == "train" else _NO_LIMIT
        limit = min(max_length or _NO_LIMIT, self._model_limit, batch_limit)
        extra = self.special_tokens.extra[:: -1 if self.reverse else 1]  # positions of special tokens
        limits = [_NO_LIMIT if self.config.truncate and n == self.reverse else limit - extra[n] for n in (0, 1)]
        selection = self.cache.within_limits(rows, *limits, drop_long=max_length is not None)
        if selection.too_long or selection.empty:
            _LOG.warning(
                f"{split}: skipped {selection.too_long:,} of {len(rows):,} pairs with more than {limit:,} tokens, and "
                f"{selection.empty:,} with an empty source or target"
            )
        rows_kept = selection.pairs
        if self.reverse and split == "train":  # the files' first column, here the target, decided the splits
            indices, targets = self.splits.indices, self.cache.target
            held_out = {
                targets[pair].tobytes() for held_out_split in ("validation", "test") for pair in indices[held_out_split]
            }
            rows_kept = rows_kept[np.array([targets[pair].tobytes() not in held_out for pair in rows_kept], dtype=bool)]
        columns = []
        for column in (self.cache.source, self.cache.target):
            # Plain arrays: indexing a memory map costs more than indexing the array that it holds.
            ids = np.asarray(column.ids)
            columns.append(TokenSequences(ids, column.offsets[rows_kept], column.lengths[rows_kept]))
        source, target = columns[::-1] if self.reverse else columns
        if self.config.truncate:
            cut = min(self.config.max_length or _NO_LIMIT, limit) - self.special_tokens.extra[0]
            source = source._replace(lengths=np.minimum(source.lengths, cut))
        longest = (int(column.lengths.max()) + n for column, n in zip((source, target), self.special_tokens.extra))
        eval_tokens = max(_EVAL_BATCH_TOKENS, *longest)
        self._pairs[split] = self.select_pairs(rows_kept, source, target, eval_tokens)
        return self._pairs[split]

    def select_pairs(
        self, rows: np.ndarray, source: TokenSequences, target: TokenSequences, eval_tokens: int
    ) -> SentencePairs:
        """The pairs of these rows, whose sequences may be cut."""
        reverse_source, seed = self.config.reverse_source, self.seed
        return SentencePairs(source, target, self.special_tokens, reverse_source, self.batch_tokens, eval_tokens, seed)

    def read_pairs(self, split: str) -> Iterable[Pair]:
        """The texts of a split, as in the files."""
        return read_all(self.paths) if split == "all" else split_pairs(self.paths, split, self.config.split)

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """At most `limit` raw texts from a split, spread evenly over it."""
        if split not in self._sources:
            pairs = self.read_pairs(split)
            directed = [Pair(*pair[::-1]) if self.reverse else pair for pair in pairs]
            if self.grouped:
                groups = group_references(directed)
                self._sources[split] = list(groups), list(groups.values())
            else:
                self._sources[split] = [source for source, _ in directed], [[target] for _, target in directed]
        texts, references = self._sources[split]
        rows = spread_evenly(np.arange(len(texts)), limit).tolist()
        inputs = [texts[row] for row in rows]
        return Sources(inputs, [references[row] for row in rows], inputs)


class TargetText(SequenceGeneration[ParallelText]):
    """Targets of sources, scored by BLEU and chrF and, with `lowercase`, also by BLEU on lower-cased text; or by ROUGE
    if that is the goal.
    """

    def __init__(self, goal: str, config: PairsConfig, lowercase: bool = False) -> None:
        search = SearchConfig(config.beam, config.length_penalty, most_ratio=config.max_ratio)
        super().__init__(goal, search, config.smoothing)
        self.lowercase = lowercase

    def generate(self, model: nn.Module, examples: ParallelText, sources: Sources, search: SearchConfig) -> list[Ids]:
        special_tokens = examples.special_tokens
        context = cast(EncoderDecoderConfig, model.config).encoder.context
        rows = source_ids(sources.inputs, examples.codecs.source, examples.config, special_tokens, context)
        hypotheses = translate_ids(
            cast(EncoderDecoder, model),
            rows,
            bos=special_tokens.bos,
            eos=special_tokens.eos,
            config=search,
            prefixes=[special_tokens.forced if row else () for row in rows],
            suppressed=special_tokens.suppressed,
        )
        return [best.ids[len(special_tokens.forced) :] for best, *_ in hypotheses]

    def scores(self, examples: ParallelText, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        outputs = examples.decode_all(generated)
        if self.goal == "rougeL":
            return rouge(outputs, sources.references)
        scores = translation_scores(outputs, sources.references)
        if not self.lowercase:
            return scores
        lower = bleu(outputs, sources.references, lowercase=True)
        return {**scores, **{name.replace("bleu", "bleu_lowercase"): score for name, score in lower.items()}}

    def pictures(self, model: nn.Module, examples: ParallelText) -> list[Picture]:
        """The alignment of a text and its translation, for the longest text that is still readable; none without
        attention.
        """
        texts, config = examples.sample_sources(_PICTURE_CANDIDATES).inputs, examples.config
        rows = [examples.codecs.source.encode(config.prepare(text)) for text in texts]
        shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
        readable = [i for i, row in enumerate(rows) if 0 < len(row) <= _MAX_PICTURE_TOKENS] or [shortest]
        index = max(readable, key=lambda i: len(rows[i]))
        [ids] = self.generate(model, examples, Sources([texts[index]], [], []), self.search)
        weights = alignment(model, examples.codecs, config, examples.special_tokens, rows[index], ids)
        if weights is None:
            return []
        [output] = examples.decode_all([ids])
        caption = f"Mean attention from each output token (rows) to the input tokens: {texts[index]} → {output}"
        return [
            Picture(
                "Alignment", caption, heatmap(weights.weights.tolist(), weights.target, weights.source, "alignment")
            )
        ]


class Alignment(NamedTuple):
    """Weights [target, source] between 0 and 1, whose rows sum to 1, and each token's text."""

    source: list[str]
    target: list[str]
    weights: Float[np.ndarray, "T S"]


def alignment(
    model: nn.Module,
    codecs: Codecs,
    config: PairsConfig,
    special_tokens: PairSpecialTokens,
    source: list[int],
    target: list[int],
) -> Alignment | None:
    """The cross-attention or additive attention for a pair of sequences (ids without bos and eos), averaged over layers
    and heads; None for a decoder without attention, which takes the source as one vector.

    A row shows what the decoder attended to when it predicted that token, including eos. Columns are in text order,
    even if the encoder takes the text reversed.
    """
    device, prompt = next(model.parameters()).device, special_tokens.prompt
    row = [*special_tokens.before, *config.encoder_order(source), *special_tokens.after]
    inputs = [torch.tensor([ids], device=device) for ids in (row, [*prompt, *target])]
    layouts = [Layout.full(1, ids.shape[1], device=device) for ids in inputs]
    with evaluation_mode(model):
        maps = attention_maps(model, lambda: model(inputs[0], layouts[0], inputs[1], layouts[1]))
    cross_mixers = (ConditionalGRU, CrossAttention)
    attention_weights = [
        weights[0].mean(0) for name, weights in maps.items() if isinstance(model.get_submodule(name), cross_mixers)
    ]
    if not attention_weights:
        return None
    mean: Tensor = torch.stack(attention_weights).mean(0)[len(prompt) - 1 :]
    order = [*config.encoder_order(range(len(source))), len(source)]
    columns = [len(special_tokens.before) + index for index in order]
    names = [[codec.decode([token]).strip() for token in ids] for codec, ids in zip(codecs, (source, target))]
    return Alignment([*names[0], _EOS_LABEL], [*names[1], _EOS_LABEL], mean[:, columns].cpu().numpy())
