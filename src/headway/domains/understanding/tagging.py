"""A tag for each word, such as entities or parts of speech."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs.tokenizer import SequenceTemplate, TokenizerCodec, WordTokens, tokenize_words
from headway.config_kinds import register
from headway.data import IGNORE_INDEX, Splits, TaggedCorpus, TaggedSentence, read_conll, split_by_text
from headway.domains.understanding.task import EncodedTextDataset, EncoderTaskConfig, check_encoder
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, RngKey, RowSubset
from headway.learn.objective import Baseline, Objective, evaluate_batches, evaluation_batches
from headway.learn.objectives.classes import ClassifiedExamples, train_on_each_label
from headway.learn.objectives.linear import LinearHead, fit_linear
from headway.learn.objectives.predictions import copy_head
from headway.learn.objectives.support_vectors import SparseRows, fit_support_vectors, margins
from headway.learn.recipe import batch_tokens_of
from headway.learn.report import Picture
from headway.learn.report.pictures import tag_confusions
from headway.learn.token_rows import LengthLimit, TokenRows, frame_for, frame_rows
from headway.metrics import has_spans, tag_scores
from headway.metrics.classification import OUTSIDE
from headway.nn.kernels import true_indices
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer
from headway.nn.models.pooled import PooledHead
from headway.nn.parts.projection import Projection

HEAD = "tags"
_FIT_SPLITS = ("train", "validation")  # splits for fitting a linear head and for choosing its regularisation
_STRENGTHS, _ITERATIONS = (3.0, 10.0, 30.0), 60  # regularisation strengths and iterations of the logistic regression
_MAX_VALUES = 1 << 26  # maximum number of values in the feature vectors
_WORDS_PER_LIMIT = 40  # words per sample that slower baselines take
_FEATURE_BUCKETS, _FEATURES = 1 << 17, 17  # hashed features of words, and those of each word
_LOSS_TOLERANCE = 1.03  # times the lowest validation loss of a linear head


@register("tagging")
@dataclass(frozen=True)
class TaggingConfig(EncoderTaskConfig):
    """Predict each word's tag; the loss and the scores use the first token of a word (Devlin et al. 2019).

    The data are CoNLL columns: one word per line with its tag in the last column, and a blank line after each sentence.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        sentences = TaggedSentences(self, recipe, read_conll(recipe.files(data)), workspace)
        return Task(sentences, Tags("f1" if has_spans(sentences.labels) else "accuracy"))


class WordTokenRows:
    """Sentences as token rows. `positions`, int64 [N, longest], is the position of each word's first token in its row,
    -1 for words without tokens, truncated words and padding.
    """

    def __init__(self, sentences: Sequence[WordTokens], frame: SequenceTemplate, limit: LengthLimit) -> None:
        self.rows: TokenRows = frame_rows(
            frame, [words.ids for words in sentences], None, limit, lambda row: f"sentence {row + 1}"
        )
        self.positions = np.full(
            (len(sentences), max((len(words.first_tokens) for words in sentences), default=0)), -1, np.int64
        )
        stops = self.rows.lengths - len(frame.after)
        for row, words in enumerate(sentences):
            positions = [-1 if offset is None else offset + len(frame.before) for offset in words.first_tokens]
            self.positions[row, : len(positions)] = [offset if offset < stops[row] else -1 for offset in positions]


class TaggedSentences(EncodedTextDataset, ClassifiedExamples):
    """Sentences with one tag per word; `classes` has the shape of `positions` and holds tag indices, IGNORED for words
    without a token.
    """

    def __init__(self, config: TaggingConfig, recipe: Recipe, text: TaggedCorpus, workspace: Path) -> None:
        self.sentences = text.sentences
        self.seed, self.batch_size = recipe.train.seed, batch_tokens_of(recipe, "text")
        lines = [" ".join(sentence.words) for sentence in text.sentences]
        indices = split_by_text(lines, text.named_splits, config.split)
        indices = train_on_each_label(indices, [sentence.tags for sentence in self.sentences], lines, text.named_splits)
        self.splits = Splits(indices, np.arange(len(lines)))
        train = self.splits.indices["train"]
        self.codec = codec = cast(TokenizerCodec, config.codec_of((lines[row] for row in train), workspace))
        word_tokens = tokenize_words(codec, [sentence.words for sentence in text.sentences])
        word_rows = WordTokenRows(word_tokens, frame_for(codec, check_encoder(recipe.model)), config.limit(recipe))
        self.rows, self.positions = word_rows.rows, word_rows.positions
        counts = [len(sentence.tags) for sentence in text.sentences]
        sentence_of = np.repeat(np.arange(len(counts)), counts)
        tags = [tag for sentence in text.sentences for tag in sentence.tags]
        train_tags = {tag for row in train for tag in text.sentences[row].tags}
        self.classes = np.full_like(self.positions, IGNORE_INDEX)
        locate = lambda row: f"sentence {row + 1} ({' '.join(text.sentences[row].words[:5])} ...)"  # noqa: E731
        tag_ids = self.label_indices(tags, train_tags, lambda tag: locate(int(sentence_of[tag])), workspace)
        self.classes[np.arange(self.positions.shape[1]) < np.array(counts)[:, None]] = tag_ids
        self.classes[self.positions < 0] = IGNORE_INDEX

    def describe_row(self, row: int) -> str:
        return " ".join(self.sentences[row].words)

    def contents(self) -> Contents:
        return {**super().contents(), "texts": ([" ".join(sentence.words) for sentence in self.sentences],)}

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, and the tag at each word's first token, int64 [B, T], IGNORED elsewhere."""
        inputs = self.rows.inputs(rows)
        tags = np.full(inputs.tokens.ids.shape, IGNORE_INDEX, np.int64)
        row_index, words = np.nonzero(self.positions[rows] >= 0)
        tags[row_index, self.positions[rows[row_index], words]] = self.classes[rows[row_index], words]
        return Batch(inputs, torch.from_numpy(tags), len(row_index), inputs.computed)


class EvaluatedTags(NamedTuple):
    """The predicted and the correct tags for a split's sentences."""

    model: nn.Module
    split: str
    predicted: Sequence[Sequence[str]]
    reference: Sequence[Sequence[str]]


class Tags(Objective[TaggedSentences]):
    """Cross-entropy of word tags; scored by entity F1 if the tags have entities, otherwise by accuracy."""

    shares_evaluation = True

    goal_better: Literal["min", "max"] = "max"
    unit = "word"

    def __init__(self, goal: str) -> None:
        self.goal = goal
        self._evaluated: EvaluatedTags | None = None  # the last evaluation

    def adapt(self, model: ModelConfig, examples: TaggedSentences) -> ModelConfig:
        """`model` with a head that has one class per tag."""
        encoder = check_encoder(model)
        rate = encoder.embed.dropout
        return replace(encoder, heads={HEAD: PooledHeadConfig(len(examples.labels), pool="tokens", dropout=rate)})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {"loss": _cross_entropy(cast(Transformer, model).output(HEAD, *batch.inputs), batch)}

    def fit_head(self, model: nn.Module, examples: TaggedSentences, fresh: Collection[str], limit: int) -> bool:
        """Logistic regression on the word vectors in at most `limit` sentences."""
        if f"heads.{HEAD}.project.weight" not in fresh:
            return False
        encoder = cast(Transformer, model)
        last_layer = len(encoder.stack.blocks) - 1
        train, validation = (
            _word_vectors(encoder, examples.of(split).limited_to(limit), [last_layer]) for split in _FIT_SPLITS
        )
        linear = self._linear(train, validation, 0, examples)
        copy_head(cast(Projection, cast(PooledHead, encoder.heads[HEAD]).project), linear)
        return True

    def depth(self, model: nn.Module, examples: TaggedSentences, limit: int) -> int | None:
        """Keep the layers up to the last one whose linear head predicts validation tags about as well as the best
        layer's, because the last layers in a text embedding model know less about words.

        At least two thirds of the layers are kept, because training also uses those above the best.
        """
        encoder = cast(Transformer, model)
        count = len(encoder.stack.blocks)
        if encoder.stack.width != encoder.stack.width_in:  # the final norm fits only the last layer
            return None
        layers = range(-(-2 * count // 3) - 1, count)
        train, validation = (
            _word_vectors(encoder, examples.of(split).limited_to(limit), layers) for split in _FIT_SPLITS
        )
        losses = []
        for index in range(len(layers)):
            head = self._linear(train, validation, index, examples, _STRENGTHS[1:2])
            losses.append(F.cross_entropy(head(validation.layers[index]), validation.tags).item())
        return max(layer + 1 for layer, loss in zip(layers, losses) if loss <= _LOSS_TOLERANCE * min(losses))

    def _linear(
        self,
        train: WordVectors,
        validation: WordVectors,
        index: int,
        examples: TaggedSentences,
        strengths: Sequence[float] = _STRENGTHS,
    ) -> LinearHead:
        parts = ((part.layers[index], part.tags) for part in (train, validation))
        return fit_linear(*parts, classes=len(examples.labels), strengths=strengths, iterations=_ITERATIONS)

    def baseline(self, examples: TaggedSentences, limit: int) -> Baseline:
        """A linear support-vector machine of words, endings and shapes in a window around each word."""
        length = float(np.mean([len(sentence.words) for sentence in examples.sentences]))
        sentences = max(1, int(_WORDS_PER_LIMIT * limit / length))
        train, held_out = (
            [examples.sentences[row] for row in examples.of(split).limited_to(sentences).rows]
            for split in ("train", "validation")
        )
        numbers = {tag: number for number, tag in enumerate(examples.labels)}
        actual = np.array([numbers[tag] for sentence in train for tag in sentence.tags])
        signs, costs = actual[:, None] == np.arange(len(numbers)), np.ones(len(actual), np.float32)
        rows = _window_features(train)
        weight, bias = fit_support_vectors(rows, signs, _FEATURE_BUCKETS, costs, np.random.default_rng(0))
        best = iter(margins(_window_features(held_out), weight, bias).argmax(1).tolist())
        predicted = [[examples.labels[next(best)] for _ in sentence.words] for sentence in held_out]
        scores = tag_scores(predicted, [sentence.tags for sentence in held_out], has_spans(examples.labels))
        metric = self.goal if self.goal in scores else "accuracy"
        return Baseline("a linear model of words and their neighbours", metric, cast(float, scores[metric]))

    def predict_tags(self, model: nn.Module, samples: RowSubset) -> tuple[list[list[str]], float]:
        """Each sample's predicted word tags, and the loss in nats per word."""
        examples, nats, count = cast(TaggedSentences, samples.examples), 0.0, 0
        predicted: list[list[str]] = [[] for _ in range(len(samples))]

        def compute(indices: np.ndarray, batch: Batch) -> tuple[Tensor, Tensor, float, int]:
            logits = cast(Transformer, model).output(HEAD, *batch.inputs)
            loss = _cross_entropy(logits, batch)
            return torch.from_numpy(indices), logits.argmax(-1).cpu(), float(loss.total), loss.count

        for indices, best_tags, batch_nats, words in evaluate_batches(model, samples, compute):
            nats, count = nats + batch_nats, count + words
            for index, best in zip(indices.tolist(), best_tags.numpy()):
                row = int(samples.rows[index])
                positions = examples.positions[row, : len(examples.sentences[row].words)]
                predicted[index] = word_tags(best, positions, examples.labels)
        return predicted, nats / max(1, count)

    def evaluate(
        self, model: nn.Module, examples: TaggedSentences, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Loss (nats per word), accuracy, and entity precision, recall and F1 over a split, or over `limit` of its
        sentences. Words beyond the model's context count as outside any entity.
        """
        samples = examples.of(split).limited_to(limit)
        predicted, nats = self.predict_tags(model, samples)
        reference = [examples.sentences[row].tags for row in samples.rows]
        self._evaluated = EvaluatedTags(model, split, predicted, reference)
        return {"loss": nats, **tag_scores(predicted, reference, has_spans(examples.labels))}

    def samples(self, model: nn.Module, examples: TaggedSentences, count: int) -> list[dict[str, str]]:
        """Held-out sentences with the predicted and the correct tags; words outside any entity are left plain."""
        rows = examples.spread_rows(count)
        samples = []
        for row, tags in zip(rows.tolist(), self.predict_tags(model, RowSubset(examples, rows))[0]):
            words, reference = examples.sentences[row]
            samples.append(
                {
                    "source": " ".join(words),
                    "output": _inline_tags(words, tags),
                    "reference": _inline_tags(words, reference),
                }
            )
        return samples

    def pictures(self, model: nn.Module, examples: TaggedSentences) -> list[Picture]:
        """Confusions between entity types, or between tags, on the final split, over the same sentences as the
        scores.
        """
        split = examples.final_split
        if self._evaluated is None or self._evaluated.model is not model or self._evaluated.split != split:
            self.evaluate(model, examples, split)
        assert self._evaluated is not None
        _, _, predicted, reference = self._evaluated
        return tag_confusions(reference, predicted, f"{split} words", has_spans(examples.labels))


class WordVectors(NamedTuple):
    """Each chosen layer's output at the first tokens of words, and the words' tag indices."""

    layers: list[Float[Tensor, "W D"]]
    tags: Int[Tensor, "W"]


def _word_vectors(encoder: Transformer, samples: RowSubset, layers: Sequence[int]) -> WordVectors:
    """The word vectors that a head on each of `layers` would take, for as many samples as fit into memory."""
    words = (cast(TaggedSentences, samples.examples).positions[samples.rows] >= 0).sum() / max(1, len(samples))
    samples = samples.limited_to(max(1, int(_MAX_VALUES / (max(1.0, words) * encoder.config.width * len(layers)))))
    outputs: dict[int, Tensor] = {}
    vectors, tags = [list[Tensor]() for _ in layers], list[Tensor]()
    hooks = []
    for layer in layers:
        store = lambda _, __, output, layer=layer: outputs.__setitem__(layer, output[0])  # noqa: E731
        hooks.append(encoder.stack.blocks[layer].register_forward_hook(store))
    try:
        for _, batch in evaluation_batches(encoder, samples):
            encoder(*batch.inputs)
            mask = batch.targets != IGNORE_INDEX
            tags.append(batch.targets[mask].cpu())
            for layer, layer_vectors in zip(layers, vectors):
                layer_vectors.append(encoder.stack.norm(outputs[layer][mask]).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return WordVectors([torch.cat(layer_vectors) for layer_vectors in vectors], torch.cat(tags))


def _cross_entropy(logits: Float[Tensor, "B T C"], batch: Batch) -> Loss:
    targets = batch.targets.flatten()
    labelled = true_indices(targets != IGNORE_INDEX, batch.tokens)
    rows = logits.flatten(0, 1).index_select(0, labelled)
    return Loss(F.cross_entropy(rows, targets.index_select(0, labelled), reduction="sum"), batch.tokens)


def word_tags(best: np.ndarray, positions: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The word tags in a row, from each token's predicted class; O for a word without a token."""
    default = OUTSIDE if OUTSIDE in labels else labels[0]
    return [labels[int(best[position])] if position >= 0 else default for position in positions]


def _inline_tags(words: Sequence[str], tags: Sequence[str]) -> str:
    return " ".join(word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in zip(words, tags))


def _window_features(sentences: Sequence[TaggedSentence]) -> SparseRows:
    """Hashed features of each word: it, its ending and its shape, those of its neighbours, and both pairs with them."""
    keys: list[str] = []
    for words, _ in sentences:
        padded = ["", "", *words, "", ""]
        own = [(word, word[-3:], "".join(map(_shape, word[:6]))) for word in padded]
        for middle in range(2, len(padded) - 2):
            for offset in range(-2, 3):
                keys += [f"{offset}{kind}{part}" for kind, part in zip("w$^", own[middle + offset])]
            keys += [f"{padded[middle - 1]} {padded[middle]}", f"{padded[middle]} {padded[middle + 1]} >"]
    columns = np.array([crc32(key.encode()) % _FEATURE_BUCKETS for key in keys], np.int32)
    offsets = np.arange(0, len(keys) + 1, _FEATURES)
    return SparseRows(offsets, columns, np.full(len(keys), _FEATURES**-0.5, np.float32))


def _shape(character: str) -> str:
    kinds = {"X": str.isupper, "x": str.islower, "0": str.isdigit}
    return next((kind for kind, holds in kinds.items() if holds(character)), character)
