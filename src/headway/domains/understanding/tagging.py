"""A tag for each word: entities, parts of speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headway.codecs.frame import Frame, frame_of
from headway.codecs.tokenizer import TokenizerCodec
from headway.codecs.words import Pieces, word_pieces
from headway.config import register
from headway.data import IGNORED, TaggedText, read_conll, sides_of
from headway.domains.understanding.config import (
    EncoderTaskConfig,
    adapted,
    check_encoder,
)
from headway.domains.understanding.task import EncoderTask, LabelledBatch
from headway.metrics import has_spans, tag_scores
from headway.metrics.spans import OUTSIDE
from headway.models import Loss, ModelConfig, PooledHeadConfig, Transformer
from headway.train import Recipe
from headway.train.labels import labels_of, save_labels, unknown_label
from headway.train.rows import Limit, Rows, framed, output

HEAD = "tags"


@register("tagging")
@dataclass(frozen=True)
class TaggingConfig(EncoderTaskConfig):
    """Give each word its tag; only the first symbol of a word is trained on and judged (Devlin et al. 2019).

    Data are CoNLL columns: a word a line, its tag in the last column, a blank line after each sentence.
    """

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Tags:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        return Tags(self, recipe, read_conll(recipe.files(data)), workspace)


class WordRows:
    """Sentences of words as framed rows; `places` int64 [N, longest] is where in its row each word's first symbol is,
    -1 of words that have none, were cut off, or are not there.
    """

    def __init__(self, pieces: Sequence[Pieces], frame: Frame, limit: Limit) -> None:
        self.rows: Rows = framed(frame, [one.ids for one in pieces], None, limit, lambda row: f"sentence {row + 1}")
        self.places = np.full((len(pieces), max((len(one.first) for one in pieces), default=0)), -1, np.int64)
        ends = self.rows.lengths - len(frame.after)
        for row, one in enumerate(pieces):
            found = [-1 if at is None else at + len(frame.before) for at in one.first]
            self.places[row, : len(found)] = [at if at < ends[row] else -1 for at in found]


class Tags(EncoderTask):
    """The task over tagged sentences; judged by the F1 of entities where tags have some, else by accuracy."""

    head = HEAD
    unit = "word"

    def __init__(self, config: TaggingConfig, recipe: Recipe, text: TaggedText, workspace: Path) -> None:
        self.config = config
        self.text = text
        self.started = recipe.start is not None
        lines = [" ".join(one.words) for one in text.sentences]
        sides = sides_of(lines, text.named, config.split)
        codec = cast(TokenizerCodec, config.codec_of((lines[row] for row in sides["train"]), workspace))
        pieces = word_pieces(codec, [one.words for one in text.sentences])
        words = WordRows(pieces, frame_of(codec), config.limit(recipe))
        super().__init__(recipe, codec, words.rows, sides)
        self.places = words.places
        trained = {tag for row in sides["train"] for tag in text.sentences[row].tags}
        self.labels = labels_of(trained or {tag for one in text.sentences for tag in one.tags}, workspace)
        self.classes = self._classes()
        self.goal = "f1" if has_spans(self.labels) else "accuracy"

    def _classes(self) -> np.ndarray:
        """The number of each word's tag, int64 as `places`; IGNORED where no symbol stands for the word."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        classes = np.full_like(self.places, IGNORED)
        for row, sentence in enumerate(self.text.sentences):
            wrong = next((tag for tag in sentence.tags if tag not in numbers), None)
            if wrong is not None:
                raise unknown_label(wrong, f"sentence {row + 1} ({' '.join(sentence.words[:5])} ...)", self.labels)
            classes[row, : len(sentence.tags)] = [numbers[tag] for tag in sentence.tags]
        return np.where(self.places >= 0, classes, IGNORED)

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and a head of as many tags as there are."""
        for split in ("train", "validation"):
            self.numbers(split)
        rate = getattr(check_encoder(model).embed, "dropout", 0.0)
        head = PooledHeadConfig(len(self.labels), pool="tokens", dropout=rate)
        return adapted(model, self.codec, HEAD, head)

    def batch(self, numbers: np.ndarray) -> LabelledBatch:
        inputs = self.rows.inputs(numbers)
        labels = np.full(inputs.tokens.ids.shape, IGNORED, np.int64)
        rows, words = np.nonzero(self.places[numbers] >= 0)
        labels[rows, self.places[numbers[rows], words]] = self.classes[numbers[rows], words]
        return LabelledBatch(inputs, torch.from_numpy(labels), len(rows))

    def loss(self, model: nn.Module, batch: LabelledBatch) -> dict[str, Loss]:
        logits = output(cast(Transformer, model), HEAD, batch.inputs)
        kept = batch.labels != IGNORED
        return {"loss": Loss(F.cross_entropy(logits[kept], batch.labels[kept], reduction="sum"), batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a word), accuracy and the precision, recall and F1 of entities over a split, or its first `limit`
        sentences. Words that the model does not see count as outside of any entity.
        """
        numbers = self.numbers(split)[:limit]
        nats, count, said = 0.0, 0, {}
        for some, batch, logits in self.outputs(model, numbers):
            kept = batch.labels != IGNORED
            nats += float(F.cross_entropy(logits[kept], batch.labels[kept], reduction="sum"))
            count += batch.tokens
            said.update(zip(some.tolist(), self._tags(some, logits.argmax(-1).cpu().numpy())))
        labels = [self.text.sentences[row].tags for row in numbers]
        return {"loss": nats / max(1, count), **tag_scores([said[row] for row in numbers], labels)}

    def _tags(self, numbers: np.ndarray, best: np.ndarray) -> list[list[str]]:
        """The tag of each word, from the best class of each symbol [B, T]."""
        sizes = [len(self.text.sentences[row].words) for row in numbers]
        return [read_tags(row, self.places[n, :size], self.labels) for row, n, size in zip(best, numbers, sizes)]

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out sentences with the tags that are said and those that are right; words outside are left plain."""
        said: dict[int, list[str]] = {}
        for some, _, logits in self.outputs(model, self.spread(count)):
            said.update(zip(some.tolist(), self._tags(some, logits.argmax(-1).cpu().numpy())))
        shown = []
        for row, tags in sorted(said.items()):
            words, right = self.text.sentences[row]
            shown.append(
                {"source": " ".join(words), "output": _marked(words, tags), "reference": _marked(words, right)}
            )
        return shown

    def save(self, directory: Path) -> None:
        super().save(directory)
        save_labels(directory, self.labels)


def read_tags(best: np.ndarray, places: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The tags of words, from the best class of each symbol of a row; O for a word that has no symbol."""
    otherwise = OUTSIDE if OUTSIDE in labels else labels[0]
    return [labels[int(best[at])] if at >= 0 else otherwise for at in places]


def _marked(words: Sequence[str], tags: Sequence[str]) -> str:
    return " ".join(word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in zip(words, tags))
