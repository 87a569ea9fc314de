"""Classification of texts with logits of n-grams, which are fitted after training."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.learn.examples import RowSubset, spread_evenly
from headway.learn.metric_names import format_metric, title
from headway.learn.objective import Baseline, FinishedHead
from headway.learn.objectives.classes import Classification, ClassifiedSamples
from headway.learn.objectives.predictions import HEAD
from headway.learn.objectives.support_vectors import SparseRows, fit_support_vectors
from headway.learn.token_rows import Inputs
from headway.nn.models import ModelConfig, PooledHead, PooledHeadConfig, Transformer, TransformerConfig
from headway.nn.models.ngrams import NgramLogits
from headway.nn.parts.projection import Projection

_BUCKETS = 1 << 16
_MAX_WEIGHTS = 1 << 22  # 16 MiB
_MAX_PRODUCTS = 1 << 28  # of n-grams and classes in the training texts that n-grams are fitted to: seconds
_BASELINE_PRODUCTS, _BASELINE_TEXTS = 1 << 17, 20  # of these, and texts, per sample that slower baselines learn from
_MAX_RATED = 3000  # validation texts that rate a baseline
_MIN_TEXTS = 2  # texts that have an n-gram, or it is ignored
_LENGTHS = 256  # texts whose lengths are read
_FACTORS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # on the logits of n-grams
_SCALES = tuple(2.0 ** (step / 4) for step in range(-16, 9))  # on the sum


class TextClassification(Classification[ClassifiedSamples]):
    """Cross-entropy of the classes of texts."""

    def baseline(self, examples: ClassifiedSamples, limit: int) -> Baseline:
        """A linear support-vector machine of n-grams, which learns from more texts than `limit`, because it is fast."""
        classes = len(examples.labels)
        ngrams = NgramLogits(num_buckets(classes), classes)
        train = examples.of("train").limited_to(_BASELINE_TEXTS * limit)
        fit_ngrams(ngrams, train, self.weights, _BASELINE_PRODUCTS * limit)
        held_out = examples.of("validation").limited_to(_MAX_RATED)
        correct = 0
        for indices in held_out.evaluation_order().single_pass():
            batch = held_out.take(indices)
            inputs = cast(Inputs, batch.inputs)
            correct += int((ngrams(inputs.tokens.ids, inputs.layout).argmax(1) == batch.targets).sum())
        return Baseline("a linear model of n-grams", "accuracy", correct / max(1, len(held_out)))


class GuessedSamples(NamedTuple):
    """Unlabelled samples with the classes that a model gives them, and its confidence, both of shape [N]."""

    samples: RowSubset
    classes: Int[np.ndarray, "N"]
    confidence: Float[np.ndarray, "N"]


class NgramClassification(TextClassification):
    """Cross-entropy of the classes. After training, a linear support-vector machine of n-grams is fitted to the
    training texts. The head adds its outputs times the factor with the best validation score, and the sum is scaled to
    the lowest validation loss. From scratch, the two make different errors.

    Unlabelled texts are then training texts of a second machine, with the labels that the model gives them, each
    weighted by its confidence (self-training, Scudder 1965). It replaces the first one unless its validation score is
    worse.
    """

    def adapt(self, model: ModelConfig, examples: ClassifiedSamples) -> ModelConfig:
        """`model` with a head that has one output per class, and n-grams if it is not an encoder-decoder."""
        adapted = super().adapt(model, examples)
        if not isinstance(adapted, TransformerConfig):
            return adapted
        head = replace(cast(PooledHeadConfig, adapted.heads[HEAD]), buckets=num_buckets(len(examples.labels)))
        return replace(adapted, heads={**adapted.heads, HEAD: head})

    def finish_head(
        self, model: nn.Module, examples: ClassifiedSamples, fresh: Collection[str], limit: int
    ) -> FinishedHead:
        """Refit the head as other classifiers do, and fit the n-grams. The validation split chooses their factor before
        anything is refitted to it.
        """
        head = cast(PooledHead, cast(Transformer, model).heads[HEAD]) if isinstance(model, Transformer) else None
        if head is None or head.ngrams is None:
            return super().finish_head(model, examples, fresh, limit)
        added = cast(NgramLogits, head.ngrams)
        for buffer in added.buffers():  # those of the model that a run starts from
            buffer.zero_()
        train, held_out, guessed = examples.of("train"), examples.of("validation"), None
        own, targets = self.outputs(model, held_out)
        fit_ngrams(added, train, self.weights, _MAX_PRODUCTS)
        best = self._share(own, self.outputs(model, held_out)[0], targets)
        if examples.unlabelled is not None:
            first_fit, samples = copy.deepcopy(added), examples.unlabelled()
            for buffer in (added.weight, added.bias):
                buffer.mul_(best.factor)
            confidence, classes = (best.scale * self.outputs(model, samples)[0]).softmax(1).max(1)
            guesses = GuessedSamples(samples, classes.numpy(), confidence.numpy())
            fit_ngrams(added, train, self.weights, _MAX_PRODUCTS, guesses)
            second = self._share(own, self.outputs(model, held_out)[0], targets)
            if second.score >= best.score:
                best, guessed = second, guesses
            else:
                added.load_state_dict(first_fit.state_dict())

        finished = super().finish_head(model, examples, fresh, limit)
        if finished.refitted:
            both_splits = replace(train, rows=np.concatenate([train.rows, held_out.rows]))
            fit_ngrams(added, both_splits, self.weights, _MAX_PRODUCTS, guessed)
        for buffer in (added.weight, added.bias):
            buffer.mul_(best.factor * best.scale)
        with torch.no_grad():
            for parameter in cast(Projection, head.project).parameters():
                parameter.mul_(best.scale)
        line = f"n-grams of tokens: validation {title(self.goal)} {best.without} without, {best.with_them} with them"
        if guessed is not None:
            line += f", fitted to {len(guessed.samples):,} unlabelled texts, too, with the labels that the model gives"
        return finished._replace(added=line)

    def _share(self, own: Float[Tensor, "N C"], both: Float[Tensor, "N C"], targets: Int[Tensor, "N"]) -> NgramShare:
        """How much of the n-grams to add, by the validation scores of outputs without and with them."""
        scores = {factor: self.scores(torch.lerp(own, both, factor), targets) for factor in _FACTORS}
        sign = 1 if self.goal_better == "max" else -1
        factor = max(_FACTORS, key=lambda factor: (sign * scores[factor][self.goal], -scores[factor]["loss"]))
        logits = torch.lerp(own, both, factor)
        losses = {scale: F.cross_entropy(scale * logits, targets).item() for scale in (_SCALES if factor else (1.0,))}
        texts = (format_metric(self.goal, scores[each][self.goal]) for each in (0.0, factor))
        return NgramShare(factor, min(losses, key=losses.__getitem__), sign * scores[factor][self.goal], *texts)


class NgramShare(NamedTuple):
    """The factor on the logits of n-grams, the scale of the sum, its validation score (more is better), and the scores
    without and with n-grams as texts.
    """

    factor: float
    scale: float
    score: float
    without: str
    with_them: str


def num_buckets(classes: int) -> int:
    """Buckets of n-grams whose weights for so many classes are not too large."""
    return min(_BUCKETS, 1 << (_MAX_WEIGHTS // classes).bit_length() - 1)


def fit_ngrams(
    ngrams: NgramLogits,
    samples: RowSubset,
    weights: Tensor | None,
    max_products: int,
    guessed: GuessedSamples | None = None,
) -> None:
    """Set the inverse document frequencies, weights and biases from training texts, and from `guessed` ones: from all,
    or from as many as have at most `max_products` products of an n-gram and a class. `weights` are those of the
    classes, [C].
    """
    lengths = samples.take(spread_evenly(np.arange(len(samples)), _LENGTHS)).inputs.layout.mask.sum(1)
    limit = max(1, int(max_products / (2 * float(lengths.float().mean()) * len(ngrams.bias))))
    parts: list[tuple[RowSubset, GuessedSamples | None]] = [(samples.limited_to(limit), None)]
    if guessed is not None and limit > len(samples):
        parts.append((guessed.samples.limited_to(limit - len(samples)), guessed))
    buckets, classes, costs = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for part, guesses in parts:
        found, targets = [np.zeros(0, np.int32)] * len(part), np.zeros(len(part), np.int64)
        for indices in part.evaluation_order().single_pass():
            batch = part.take(indices)
            inputs = cast(Inputs, batch.inputs)
            hashed, exist = ngrams.ngrams(inputs.tokens.ids, inputs.layout)
            targets[indices] = batch.targets.numpy()
            for index, row, mask in zip(indices.tolist(), hashed.int().numpy(), exist.numpy()):
                found[index] = row[mask]
        buckets += found
        classes.append(targets if guesses is None else guesses.classes[part.rows])
        costs.append(np.ones(len(part)) if guesses is None else guesses.confidence[part.rows])
    offsets, columns = np.concatenate([[0], np.cumsum([len(row) for row in buckets])]), np.concatenate(buckets)
    texts = np.bincount(np.concatenate([np.unique(row) for row in buckets]), minlength=len(ngrams.idf))
    idf = np.where(texts < _MIN_TEXTS, 0.0, np.log((1 + len(buckets)) / (1 + texts)) + 1).astype(np.float32)
    values = idf[columns]
    owners = np.repeat(np.arange(len(buckets)), np.diff(offsets))
    norms = np.sqrt(np.bincount(owners, values**2, len(buckets))).clip(min=1e-9).astype(np.float32)
    rows = SparseRows(offsets, columns, values / norms[owners])
    all_classes, all_costs = np.concatenate(classes), np.concatenate(costs).astype(np.float32)
    if weights is not None:
        all_costs *= weights.numpy()[all_classes].astype(np.float32)
    signs = all_classes[:, None] == np.arange(len(ngrams.bias))
    weight, bias = fit_support_vectors(rows, signs, len(idf), all_costs, np.random.default_rng(0))
    for buffer, array in ((ngrams.idf, idf), (ngrams.weight, weight), (ngrams.bias, bias)):
        buffer.copy_(torch.from_numpy(array))
