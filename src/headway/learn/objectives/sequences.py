"""Sequence objectives: the likelihood of tokens, and generation from a source (text, audio, image)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.codecs import Codec
from headway.data import IGNORE_INDEX
from headway.generate import SearchConfig
from headway.layout import Layout
from headway.learn.examples import Batch, Examples, Samples, SplitExamples
from headway.learn.objective import Baseline, Objective, evaluate_batches
from headway.learn.parallel.evaluation import on_main_process
from headway.metrics import language_scores
from headway.nn.mixers import State
from headway.nn.models import Loss, ModelFeatures, VocabularyHead

E = TypeVar("E", bound=Examples)


class Likelihood(Objective[E]):
    """Cross-entropy on the targets, int64 [B, T], where -100 is ignored, plus the model's auxiliary losses.

    `smoothing` is the fraction of each target that is spread over all tokens (Szegedy et al. 2016); `head` is the
    module name of the vocabulary head.
    """

    shares_evaluation = True

    def __init__(self, smoothing: float = 0.0, head: str = "heads.vocabulary") -> None:
        self.smoothing, self.head = smoothing, head

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.losses(model, self.encode(model, batch), batch, self.smoothing)

    def encode(self, model: nn.Module, batch: Batch, states: State | None = None) -> ModelFeatures:
        """The model's encoding of a batch; in stateful training, `states` are the final states from the previous
        batch.
        """
        return model(*batch.inputs)

    def losses(self, model: nn.Module, encoded: ModelFeatures, batch: Batch, smoothing: float) -> dict[str, Loss]:
        """The loss for an encoded batch, and its auxiliary losses."""
        head = cast(VocabularyHead, model.get_submodule(self.head))
        loss = head.loss(encoded.x, batch.targets, smoothing, batch.tokens)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    def nats(self, model: nn.Module, samples: Samples) -> tuple[float, int]:
        """Total nats for the samples' targets, without smoothing, and the number of targets."""
        states: Any = None

        def compute(_: np.ndarray, batch: Batch) -> tuple[float, int]:
            nonlocal states
            encoded = self.encode(model, batch, states)
            loss, states = self.losses(model, encoded, batch, 0.0)["loss"], encoded.states
            return float(loss.total), loss.count

        nats, count = 0.0, 0
        for batch_nats, batch_count in evaluate_batches(model, samples, compute):
            nats, count = nats + batch_nats, count + batch_count
        return nats, count


Ids = list[int]
_ERROR_METRICS = ("loss", "wer", "per")  # scores that are better if lower


@dataclass(frozen=True)
class Sources:
    """N sources: the domain's `inputs`, all correct references for each, and each source as a line of text."""

    inputs: Any
    references: Sequence[Sequence[str]]
    display_texts: Sequence[str]


class SourceTargetExamples(SplitExamples):
    """Samples that pair a source with its references, tokenised by `codec`."""

    codec: Codec

    def sources(self, split: str, limit: int | None = None) -> Sources:
        """At most `limit` sources from a split. A source shared by several samples may occur once, with all its
        references.
        """
        raise NotImplementedError

    def sample_sources(self, count: int) -> Sources:
        """Evenly spaced sources from the final split."""
        return self.sources(self.final_split, count)

    def preview(self, count: int) -> list[str]:
        sources = self.sample_sources(count)
        return [f"{text} → {references[0]}" for text, references in zip(sources.display_texts, sources.references)]

    def decode_all(self, generated: Sequence[Ids]) -> list[str]:
        return [self.codec.decode(ids) for ids in generated]


def teacher_forcing(
    rows: Sequence[Ids], prompts: Sequence[Sequence[int]], eos: int
) -> tuple[Int[Tensor, "B T"], Layout, Int[Tensor, "B T"]]:
    """Teacher forcing: input tokens (each row's prompt, then the row), their layout, and the labels after the prompt,
    which are the same tokens followed by EOS.
    """
    lengths = [len(prompt) + len(row) for prompt, row in zip(prompts, rows, strict=True)]
    inputs = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    labels = torch.full_like(inputs, IGNORE_INDEX)
    for row_index, (row, prompt, length) in enumerate(zip(rows, prompts, lengths)):
        inputs[row_index, :length] = torch.tensor([*prompt, *row])
        labels[row_index, len(prompt) - 1 : length] = torch.tensor([*row, eos])
    return inputs, Layout.padded(lengths), labels


S = TypeVar("S", bound=SourceTargetExamples)


class SequenceGeneration(Likelihood[S], Generic[S]):
    """The likelihood of sequences given their sources, also evaluated on the output that `search` generates from the
    sources. A domain defines generation (`generate`) and its scores (`scores`).
    """

    def __init__(self, goal: str, search: SearchConfig, smoothing: float = 0.0, head: str = "heads.vocabulary") -> None:
        super().__init__(smoothing, head)
        self.goal, self.goal_better = goal, "min" if goal in _ERROR_METRICS else "max"
        self.search = search

    def search_for(self, split: str) -> SearchConfig:
        """The search to use for a split: greedy for splits that are evaluated repeatedly."""
        return self.search if split in ("test", "all") else replace(self.search, beam=1)

    def generate(self, model: nn.Module, examples: S, sources: Sources, search: SearchConfig) -> list[Ids]:
        """The most likely tokens for each source, without BOS and EOS."""
        raise NotImplementedError

    def scores(self, examples: S, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        """Scores for the generated tokens."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, examples: S, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss and perplexity on the targets, without smoothing, and scores for the generated sequences."""
        nats, count = self.nats(model, examples.of(split).limited_to(limit))
        sources, search = examples.sources(split, limit), self.search_for(split)

        def score() -> dict[str, Any]:
            return self.scores(examples, sources, self.generate(model, examples, sources, search))

        scores = on_main_process(score)
        return {**language_scores(nats, count), **scores, "beam": search.beam}

    def baseline(self, examples: S, limit: int) -> Baseline | None:
        """The target of the most similar training source, as the output for each validation source."""
        from headway.learn.objectives.baselines import MAX_EVALUATED, input_vectors, kernels

        train = input_vectors(examples.of("train"), limit)
        held_out = input_vectors(examples.of("validation"), MAX_EVALUATED)
        outputs = [without_padding(train.targets[row]) for row in kernels(train, held_out)[1].argmax(1).tolist()]
        references = [[text] for text in examples.decode_all([without_padding(row) for row in held_out.targets])]
        scores = self.scores(examples, Sources([""] * len(outputs), references, [""] * len(outputs)), outputs)
        if self.goal not in scores:
            return None
        return Baseline("the most similar training sample", self.goal, scores[self.goal])

    def samples(self, model: nn.Module, examples: S, count: int) -> list[dict[str, str]]:
        sources = examples.sample_sources(count)
        generated = self.generate(model, examples, sources, self.search)
        rows = zip(sources.display_texts, generated, sources.references)
        return [self.sample(examples, source, ids, references) for source, ids, references in rows]

    def sample(self, examples: S, source: str, ids: Ids, references: Sequence[str]) -> dict[str, str]:
        """A source with its output and references."""
        [output] = examples.decode_all([ids])
        return {"source": source, "output": output, "reference": " | ".join(references)}


def without_padding(labels: Int[Tensor, "T"]) -> Ids:
    """The target tokens in a row of labels, without EOS."""
    return labels[labels != IGNORE_INDEX][:-1].tolist()
