"""What is written: the symbols of a text that goes on, or those that are said of a source (symbols, sound, image)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.codecs import Codec
from headway.data import IGNORED
from headway.generate import SearchConfig
from headway.layout import Layout
from headway.learn.examples import Batch, Examples, Samples
from headway.learn.objective import Objective, judged
from headway.metrics import language_scores
from headway.nn.mixers import State
from headway.nn.models import Encoded, Loss, VocabularyHead

E = TypeVar("E", bound=Examples)


class Likelihood(Objective[E]):
    """Cross-entropy of the targets, int64 [B, T], where -100 is nothing to be said, with the model's auxiliary terms.

    `smoothing` spreads that share of each symbol over all (Szegedy et al. 2016); `head` is the name of the module that
    says symbols.
    """

    def __init__(self, smoothing: float = 0.0, head: str = "heads.vocabulary") -> None:
        self.smoothing, self.head = smoothing, head

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.losses(model, self.encode(model, batch), batch, self.smoothing)

    def encode(self, model: nn.Module, batch: Batch, states: State | None = None) -> Encoded:
        """What the model makes of a batch; `states` are those in which the one before ended, where batches go on."""
        return model(*batch.inputs)

    def losses(self, model: nn.Module, encoded: Encoded, batch: Batch, smoothing: float) -> dict[str, Loss]:
        """The loss of what the model has read, and its auxiliary terms."""
        head = cast(VocabularyHead, model.get_submodule(self.head))
        loss = head.loss(encoded.x, batch.targets, smoothing)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    def nats(self, model: nn.Module, samples: Samples) -> tuple[float, int]:
        """Nats of all targets of samples, without smoothing, and how many there are."""
        nats, count, states = 0.0, 0, None
        for _, batch in judged(model, samples):
            encoded = self.encode(model, batch, states)
            loss, states = self.losses(model, encoded, batch, 0.0)["loss"], encoded.states
            nats, count = nats + float(loss.total), count + loss.count
        return nats, count


Ids = list[int]
_ERRORS = ("loss", "wer", "per")  # the scores of which less is better


@dataclass(frozen=True)
class Sources:
    """N sources: what a domain writes of (`given`), all that is right of each, and each as a line of text."""

    given: Any
    references: Sequence[Sequence[str]]
    shown: Sequence[str]


class Sourced(Examples):
    """Samples of a source and what is right to write of it, in the symbols of `codec`."""

    codec: Codec

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """At most `limit` sources of a split. One of several samples may come once, with all that is right of it."""
        raise NotImplementedError

    def looked_at(self, count: int) -> Sources:
        """Sources of the split that is judged last, spread evenly over it."""
        return self.sources(self.final_split, count)

    def texts(self, written: Sequence[Ids]) -> list[str]:
        return [self.codec.decode(ids) for ids in written]


def shifted(
    rows: Sequence[Ids], prompt: Sequence[int], end: int
) -> tuple[Int[Tensor, "B T"], Layout, Int[Tensor, "B T"]]:
    """What is read of rows of symbols, the prompt before each, its layout, and what is to be said after the prompt: the
    same symbols and end.
    """
    lengths = [len(prompt) + len(row) for row in rows]
    read = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    labels = torch.full_like(read, IGNORED)
    for number, (row, length) in enumerate(zip(rows, lengths)):
        read[number, :length] = torch.tensor([*prompt, *row])
        labels[number, len(prompt) - 1 : length] = torch.tensor([*row, end])
    return read, Layout.padded(lengths), labels


S = TypeVar("S", bound=Sourced)


class Written(Likelihood[S], Generic[S]):
    """The likelihood of sequences after their sources; judged, too, by what `search` writes of the sources alone. A
    domain says how that is done (`write`) and compared (`scores`).
    """

    def __init__(self, goal: str, search: SearchConfig, smoothing: float = 0.0, head: str = "heads.vocabulary") -> None:
        super().__init__(smoothing, head)
        self.goal, self.goal_better = goal, "min" if goal in _ERRORS else "max"
        self.search = search

    def searched(self, split: str) -> SearchConfig:
        """The search on a split: greedy on those that are judged again and again."""
        return self.search if split in ("test", "all") else replace(self.search, beam=1)

    def write(self, model: nn.Module, examples: S, sources: Sources, search: SearchConfig) -> list[Ids]:
        """The likeliest symbols of each source, without begin and end."""
        raise NotImplementedError

    def scores(self, examples: S, sources: Sources, written: Sequence[Ids]) -> dict[str, Any]:
        """How good it is what was written of sources."""
        raise NotImplementedError

    def judge(self, model: nn.Module, examples: S, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss and perplexity of the targets, without smoothing, and the scores of what is written of the sources."""
        nats, count = self.nats(model, examples.of(split).some(limit))
        sources, search = examples.sources(split, limit), self.searched(split)
        scores = self.scores(examples, sources, self.write(model, examples, sources, search))
        return {**language_scores(nats, count), **scores, "beam": search.beam}

    def samples(self, model: nn.Module, examples: S, count: int) -> list[dict[str, str]]:
        sources = examples.looked_at(count)
        written = self.write(model, examples, sources, self.search)
        rows = zip(sources.shown, written, sources.references)
        return [self.sample(examples, source, ids, right) for source, ids, right in rows]

    def sample(self, examples: S, source: str, ids: Ids, right: Sequence[str]) -> dict[str, str]:
        """A source with what was written of it and what is right."""
        [output] = examples.texts([ids])
        return {"source": source, "output": output, "reference": " | ".join(right)}
