"""A tag for each word, such as entities or parts of speech."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.codecs.tokenizer import Frame, TokenizerCodec, WordPieces, word_pieces
from headway.config import register
from headway.data import IGNORED, Splits, TaggedText, read_conll, sides_of
from headway.domains.understanding.texts import EncodedTexts, EncoderTaskConfig, batch_tokens, check_encoder
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Chance, Contents, Selected
from headway.learn.objective import Objective, judged
from headway.learn.objectives.classes import Classified
from headway.learn.objectives.linear import LinearHead, fit_linear
from headway.learn.report import Picture
from headway.learn.report.confusion import tag_confusions
from headway.learn.rows import FramedRows, Limit, frame_for, framed
from headway.metrics import has_spans, tag_scores
from headway.metrics.classification import OUTSIDE
from headway.nn.models import Loss, ModelConfig, PooledHeadConfig, Transformer
from headway.nn.models.pooled import PooledHead
from headway.nn.parts.projection import Projection

HEAD = "tags"
_FITTED = ("train", "validation")  # splits for fitting a linear head and for choosing its regularisation
_STRENGTHS, _ITERATIONS = (3.0, 10.0, 30.0), 60  # regularisation strengths and iterations of the logistic regression
_ROOM = 1 << 26  # maximum number of values in its feature vectors
_AS_GOOD = 1.03  # times the lowest validation loss of a linear head


@register("tagging")
@dataclass(frozen=True)
class TaggingConfig(EncoderTaskConfig):
    """Predict the tag of each word; the loss and the scores use the first token of a word (Devlin et al. 2019).

    Data are CoNLL columns: one word per line, its tag in the last column, a blank line after each sentence.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        sentences = TaggedSentences(self, recipe, read_conll(recipe.files(data)), workspace)
        return Task(sentences, Tags("f1" if has_spans(sentences.labels) else "accuracy"))


class WordRows:
    """Sentences of words as token rows; `positions`, int64 [N, longest], are the positions of each word's first token
    in its row, -1 for words without tokens, truncated words and padding.
    """

    def __init__(self, pieces: Sequence[WordPieces], frame: Frame, limit: Limit) -> None:
        self.rows: FramedRows = framed(
            frame, [one.ids for one in pieces], None, limit, lambda row: f"sentence {row + 1}"
        )
        self.places = np.full((len(pieces), max((len(one.first) for one in pieces), default=0)), -1, np.int64)
        ends = self.rows.lengths - len(frame.after)
        for row, one in enumerate(pieces):
            found = [-1 if at is None else at + len(frame.before) for at in one.first]
            self.places[row, : len(found)] = [at if at < ends[row] else -1 for at in found]


class TaggedSentences(EncodedTexts, Classified):
    """Sentences with one tag per word; `classes` has the shape of `positions` and holds tag indices, IGNORED for words
    without a token.
    """

    def __init__(self, config: TaggingConfig, recipe: Recipe, text: TaggedText, workspace: Path) -> None:
        self.sentences = text.sentences
        self.seed, self.size = recipe.train.seed, batch_tokens(recipe)
        lines = [" ".join(one.words) for one in text.sentences]
        self.splits = Splits(sides_of(lines, text.named, config.split), np.arange(len(lines)))
        train = self.splits.sides["train"]
        self.codec = codec = cast(TokenizerCodec, config.codec_of((lines[row] for row in train), workspace))
        pieces = word_pieces(codec, [one.words for one in text.sentences])
        words = WordRows(pieces, frame_for(codec, check_encoder(recipe.model)), config.limit(recipe))
        self.rows, self.places = words.rows, words.places
        counts = [len(one.tags) for one in text.sentences]
        owner, tags = np.repeat(np.arange(len(counts)), counts), [tag for one in text.sentences for tag in one.tags]
        trained = {tag for row in train for tag in text.sentences[row].tags}
        self.classes = np.full_like(self.places, IGNORED)
        place = lambda row: f"sentence {row + 1} ({' '.join(text.sentences[row].words[:5])} ...)"  # noqa: E731
        numbers = self.numbered(tags, trained, lambda tag: place(int(owner[tag])), workspace)
        self.classes[np.arange(self.places.shape[1]) < np.array(counts)[:, None]] = numbers
        self.classes[self.places < 0] = IGNORED

    def contents(self) -> Contents:
        return {**super().contents(), "texts": ([" ".join(one.words) for one in self.sentences],)}

    def take(self, rows: np.ndarray, chance: Chance | None = None) -> Batch:
        """Tokens, and the tags of each word's first token, int64 [B, T], IGNORED elsewhere."""
        inputs = self.rows.inputs(rows)
        tags = np.full(inputs.tokens.ids.shape, IGNORED, np.int64)
        each, words = np.nonzero(self.places[rows] >= 0)
        tags[each, self.places[rows[each], words]] = self.classes[rows[each], words]
        return Batch(inputs, torch.from_numpy(tags), len(each), inputs.computed)

    def read(self, row: int, best: np.ndarray) -> list[str]:
        """The tag of each word of a sentence, from the predicted class of each token, int64 [T]."""
        return read_tags(best, self.places[row, : len(self.sentences[row].words)], self.labels)


class EvaluatedTags(NamedTuple):
    """The predicted and the correct tags of the sentences of a split."""

    model: nn.Module
    split: str
    predicted: Sequence[Sequence[str]]
    right: Sequence[Sequence[str]]


class Tags(Objective[TaggedSentences]):
    """Cross-entropy of the tags of words; scored by the F1 of entities if the tags have any, otherwise by accuracy."""

    goal_better: Literal["min", "max"] = "max"
    unit = "word"

    def __init__(self, goal: str) -> None:
        self.goal = goal
        self._evaluated: EvaluatedTags | None = None  # the last evaluation

    def adapt(self, model: ModelConfig, examples: TaggedSentences) -> ModelConfig:
        """`model` with a head of one class per tag."""
        encoder = check_encoder(model)
        rate = encoder.embed.dropout
        return replace(encoder, heads={HEAD: PooledHeadConfig(len(examples.labels), pool="tokens", dropout=rate)})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {"loss": _nats(cast(Transformer, model).output(HEAD, *batch.inputs), batch)}

    def fit_head(self, model: nn.Module, examples: TaggedSentences, fresh: Collection[str], limit: int) -> bool:
        """Logistic regression on the word vectors of at most `limit` sentences."""
        if f"heads.{HEAD}.project.weight" not in fresh:
            return False
        encoder = cast(Transformer, model)
        last = len(encoder.stack.blocks) - 1
        train, validation = (_word_vectors(encoder, examples.of(side).some(limit), [last]) for side in _FITTED)
        fitted = self._linear(train, validation, 0, examples)
        project = cast(Projection, cast(PooledHead, encoder.heads[HEAD]).project)
        with torch.no_grad():
            project.weight.copy_(fitted.weight)
            if project.bias is not None:
                project.bias.copy_(fitted.bias)
        return True

    def depth(self, model: nn.Module, examples: TaggedSentences, limit: int) -> int | None:
        """The layers up to the last one whose linear head predicts validation tags about as well as the best layer's:
        the last layers of a model trained for embeddings of texts know less about words.

        At least two thirds of the layers stay, because training also uses those above the best.
        """
        encoder = cast(Transformer, model)
        count = len(encoder.stack.blocks)
        if encoder.stack.width != encoder.stack.width_in:  # so that the final norm fits the last layer only
            return None
        layers = range(-(-2 * count // 3) - 1, count)
        train, validation = (_word_vectors(encoder, examples.of(side).some(limit), layers) for side in _FITTED)
        losses = []
        for place in range(len(layers)):
            head = self._linear(train, validation, place, examples, _STRENGTHS[1:2])
            losses.append(F.cross_entropy(head(validation.layers[place]), validation.tags).item())
        return max(layer + 1 for layer, loss in zip(layers, losses) if loss <= _AS_GOOD * min(losses))

    def _linear(
        self,
        train: WordVectors,
        validation: WordVectors,
        place: int,
        examples: TaggedSentences,
        strengths: Sequence[float] = _STRENGTHS,
    ) -> LinearHead:
        parts = ((part.layers[place], part.tags) for part in (train, validation))
        return fit_linear(*parts, classes=len(examples.labels), strengths=strengths, iterations=_ITERATIONS)

    def tags(self, model: nn.Module, samples: Selected) -> tuple[list[list[str]], float]:
        """The predicted tags of the words of each sample, and the loss in nats per word."""
        examples, nats, count = cast(TaggedSentences, samples.examples), 0.0, 0
        said: list[list[str]] = [[] for _ in range(len(samples))]
        for numbers, batch in judged(model, samples):
            logits = cast(Transformer, model).output(HEAD, *batch.inputs)
            loss = _nats(logits, batch)
            nats, count = nats + float(loss.total), count + loss.count
            for number, best in zip(numbers.tolist(), logits.argmax(-1).cpu().numpy()):
                said[number] = examples.read(int(samples.rows[number]), best)
        return said, nats / max(1, count)

    def judge(
        self, model: nn.Module, examples: TaggedSentences, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Loss (nats per word), accuracy and the precision, recall and F1 of entities over a split, or `limit`
        sentences of it. Words beyond the model's context count as outside of any entity.
        """
        samples = examples.of(split).some(limit)
        said, nats = self.tags(model, samples)
        right = [examples.sentences[row].tags for row in samples.rows]
        self._evaluated = EvaluatedTags(model, split, said, right)
        return {"loss": nats, **tag_scores(said, right)}

    def samples(self, model: nn.Module, examples: TaggedSentences, count: int) -> list[dict[str, str]]:
        """Held-out sentences with the predicted and the correct tags; words outside of entities are left plain."""
        rows = examples.spread(count)
        shown = []
        for row, tags in zip(rows.tolist(), self.tags(model, Selected(examples, rows))[0]):
            words, right = examples.sentences[row]
            shown.append(
                {"source": " ".join(words), "output": _marked(words, tags), "reference": _marked(words, right)}
            )
        return shown

    def pictures(self, model: nn.Module, examples: TaggedSentences) -> list[Picture]:
        """Confusions of entity types, or of tags, on the final split, over the same sentences as its scores."""
        split = examples.final_split
        if self._evaluated is None or self._evaluated.model is not model or self._evaluated.split != split:
            self.judge(model, examples, split)
        assert self._evaluated is not None
        _, _, predicted, right = self._evaluated
        return tag_confusions(right, predicted, f"{split} words", has_spans(examples.labels))


class WordVectors(NamedTuple):
    """The output of each of the chosen layers at the first tokens of words, and the words' tag indices."""

    layers: list[Float[Tensor, "W D"]]
    tags: Int[Tensor, "W"]


def _word_vectors(encoder: Transformer, samples: Selected, layers: Sequence[int]) -> WordVectors:
    """The word vectors that a head on each of `layers` would get, for as many samples as fit into memory."""
    words = (cast(TaggedSentences, samples.examples).places[samples.rows] >= 0).sum() / max(1, len(samples))
    samples = samples.some(max(1, int(_ROOM / (max(1.0, words) * encoder.config.width * len(layers)))))
    outputs: dict[int, Tensor] = {}
    vectors, tags = [list[Tensor]() for _ in layers], list[Tensor]()
    hooks = [encoder.stack.blocks[layer].register_forward_hook(partial(_store, outputs, layer)) for layer in layers]
    try:
        for _, batch in judged(encoder, samples):
            encoder(*batch.inputs)
            kept = batch.targets != IGNORED
            tags.append(batch.targets[kept].cpu())
            for layer, found in zip(layers, vectors):
                found.append(encoder.stack.norm(outputs[layer][kept]).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return WordVectors([torch.cat(found) for found in vectors], torch.cat(tags))


def _store(outputs: dict[int, Tensor], layer: int, _: nn.Module, __: Any, output: Any) -> None:
    outputs[layer] = output[0]


def _nats(logits: Float[Tensor, "B T C"], batch: Batch) -> Loss:
    kept = batch.targets != IGNORED
    return Loss(F.cross_entropy(logits[kept], batch.targets[kept], reduction="sum"), batch.tokens)


def read_tags(best: np.ndarray, places: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The tags of words, from the predicted class of each token of a row; O for a word without a token."""
    otherwise = OUTSIDE if OUTSIDE in labels else labels[0]
    return [labels[int(best[at])] if at >= 0 else otherwise for at in places]


def _marked(words: Sequence[str], tags: Sequence[str]) -> str:
    return " ".join(word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in zip(words, tags))
