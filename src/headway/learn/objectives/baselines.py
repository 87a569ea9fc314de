"""Quick classical methods on a task's own samples, whose validation scores help to predict what training will reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headway.layout import Layout
from headway.learn.examples import Samples, spread_evenly
from headway.nn.mixers import tree_map

MAX_EVALUATED = 500  # maximum validation samples
_CHUNK = 64  # samples per batch
_COLUMNS = 8192  # columns of counts, of which the first are for single tokens
_SINGLE_COLUMNS = 4096
_MULTIPLIERS = 1_000_003, 7919  # of a hash of two tokens
_SIDE = 16  # of a reduced image or spectrogram
_PENALTIES = (0.01, 0.1, 1.0)  # of ridge regression, relative to the mean of the kernel's diagonal
_DISCOUNT = 0.75  # of counts of n-grams


class InputVectors(NamedTuple):
    """A vector for each sample, and its batch's targets: counts of tokens (`sparse`), or reduced images and sounds."""

    vectors: Float[Tensor, "N D"]
    targets: list[Any]
    sparse: bool


def input_vectors(samples: Samples, limit: int) -> InputVectors:
    """The first input of at most `limit` samples, spread evenly, as vectors."""
    indices = spread_evenly(np.arange(len(samples)), limit)
    vectors, targets, sparse = [], [], False
    for start in range(0, len(indices), _CHUNK):
        batch = samples.take(indices[start : start + _CHUNK])
        parts: list[Tensor | Layout] = []
        tree_map(parts.append, batch.inputs)
        values = next(part for part in parts if isinstance(part, Tensor))
        sparse = not values.is_floating_point()
        if sparse:
            vectors.append(_counts(values, next((part for part in parts if isinstance(part, Layout)), None)))
        else:  # images and spectrograms in few pixels
            images = values.float() if values.dim() == 4 else values.float().flatten(2)[:, None]
            height, width = (min(_SIDE, size) for size in images.shape[-2:])
            vectors.append(F.adaptive_avg_pool2d(images, (height, width)).flatten(1))
        targets += list(batch.targets)
    return InputVectors(torch.cat(vectors), targets, sparse)


def _counts(ids: Int[Tensor, "B T"], layout: Layout | None) -> Float[Tensor, "B D"]:
    """Counts of tokens and of pairs of neighbours, hashed, with a sublinear growth."""
    mask = torch.ones_like(ids, dtype=torch.bool) if layout is None else layout.mask
    first, second = _MULTIPLIERS
    pairs = _SINGLE_COLUMNS + (ids[:, :-1] * first + ids[:, 1:] * second) % (_COLUMNS - _SINGLE_COLUMNS)
    columns = torch.cat([ids % _SINGLE_COLUMNS, pairs], 1)
    counts = torch.zeros(len(ids), _COLUMNS)
    counts.scatter_add_(1, columns, torch.cat([mask, mask[:, 1:]], 1).float())
    return counts.log1p()


def kernels(train: InputVectors, held_out: InputVectors) -> tuple[Float[Tensor, "N N"], Float[Tensor, "M N"]]:
    """Similarities of training samples, and of held-out samples with them: cosines of TF-IDF vectors for counts, and
    radial basis functions otherwise.
    """
    if train.sparse:
        frequency = (train.vectors > 0).float().mean(0)
        weights = -(frequency.clamp(min=1 / len(train.vectors))).log()
        first, other = (F.normalize(part.vectors * weights, dim=1) for part in (train, held_out))
        return first @ first.T, other @ first.T
    mean, scale = train.vectors.mean(0), train.vectors.std(0).mean().clamp(min=1e-6)
    first, other = ((part.vectors - mean) / scale for part in (train, held_out))
    distances = torch.cdist(first, first).square()
    width = distances.mean().clamp(min=1e-6) / 2
    return (-distances / width).exp(), (-torch.cdist(other, first).square() / width).exp()


def ridge_predictions(train: InputVectors, held_out: InputVectors, classes: int) -> Int[Tensor, "M"]:
    """The classes of held-out samples by kernel ridge regression on one-hot targets (Saunders et al. 1998), whose
    penalty has the best leave-one-out accuracy.
    """
    similarities, others = kernels(train, held_out)
    labels = torch.stack(train.targets)
    wanted = F.one_hot(labels, classes).float() - 1 / classes
    best, chosen = -1.0, wanted
    for penalty in _PENALTIES:
        damped = similarities + penalty * similarities.diagonal().mean() * torch.eye(len(labels))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        weights = inverse @ wanted
        left_out = wanted - weights / inverse.diagonal()[:, None]
        accuracy = float((left_out.argmax(1) == labels).float().mean())
        if accuracy > best:
            best, chosen = accuracy, weights
    return (others @ chosen).argmax(1)


class NgramModel:
    """Interpolated Kneser-Ney over token ids (Kneser and Ney 1995; Chen and Goodman 1999), with one discount."""

    def __init__(self, documents: Sequence[Sequence[int]], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        for ids in documents:
            grams[-1].update(zip(*(ids[start:] for start in range(order))))
        for size in range(order - 1, 0, -1):  # in how many contexts each shorter n-gram occurs
            grams[size - 1].update(gram[1:] for gram in grams[size])
        self.grams = grams
        self.totals: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        self.kinds: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        for size, counts in enumerate(grams):
            for gram, count in counts.items():
                self.totals[size][gram[:-1]] += count
                self.kinds[size][gram[:-1]] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """The probability of a token after the last `order` - 1 tokens of `context`."""
        probability = 1 / self.vocab_size
        for size in range(min(self.order, len(context) + 1)):
            history = context[len(context) - size :]
            total = self.totals[size].get(history)
            if total is None:
                break
            count = self.grams[size].get((*history, token), 0)
            probability = (max(count - _DISCOUNT, 0.0) + _DISCOUNT * self.kinds[size][history] * probability) / total
        return probability

    def nats(self, documents: Sequence[Sequence[int]]) -> float:
        """The negative log likelihood of all tokens but each document's first."""
        total = 0.0
        for ids in documents:
            for index in range(1, len(ids)):
                context = tuple(ids[max(0, index - self.order + 1) : index])
                total -= float(np.log(self.probability(context, ids[index])))
        return total
