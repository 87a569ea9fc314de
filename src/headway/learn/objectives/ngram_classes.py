"""Classification of texts with logits of n-grams, which are fitted after training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.learn.examples import RowSubset
from headway.learn.metric_names import format_metric, title
from headway.learn.objective import evaluation_batches
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
_MIN_TEXTS = 2  # texts that have an n-gram, or it is ignored
_FACTORS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # on the logits of n-grams
_SCALES = tuple(2.0 ** (step / 4) for step in range(-16, 9))  # on the sum


class NgramClassification(Classification[ClassifiedSamples]):
    """Cross-entropy of the classes. After training, a linear support-vector machine of n-grams is fitted to the
    training texts. The head adds its outputs times the factor with the best validation score, and the sum is scaled to
    the lowest validation loss. From scratch, the two make different errors.
    """

    def __init__(self, mean_length: float, *args: Any) -> None:
        """`mean_length` is that of texts in tokens."""
        super().__init__(*args)
        self.mean_length = mean_length

    def adapt(self, model: ModelConfig, examples: ClassifiedSamples) -> ModelConfig:
        """`model` with a head that has one output per class, and n-grams if it is not an encoder-decoder."""
        adapted = super().adapt(model, examples)
        if not isinstance(adapted, TransformerConfig):
            return adapted
        buckets = _BUCKETS
        while buckets * len(examples.labels) > _MAX_WEIGHTS:
            buckets //= 2
        head = replace(cast(PooledHeadConfig, adapted.heads[HEAD]), buckets=buckets)
        return replace(adapted, heads={**adapted.heads, HEAD: head})

    def extend_head(self, model: nn.Module, examples: ClassifiedSamples) -> str | None:
        head = cast(PooledHead, cast(Transformer, model).heads[HEAD]) if isinstance(model, Transformer) else None
        if head is None or head.ngrams is None:
            return None
        added = cast(NgramLogits, head.ngrams)
        for buffer in added.buffers():  # those of a run that continues
            buffer.zero_()
        held_out = examples.of("validation")
        own, targets = self.outputs(model, held_out)
        limit = int(_MAX_PRODUCTS / (2 * self.mean_length * len(examples.labels)))
        self._fit(model, added, examples.of("train").limited_to(max(1, limit)))
        both = self.outputs(model, held_out)[0]

        scores = {factor: self.scores(torch.lerp(own, both, factor), targets) for factor in _FACTORS}
        sign = 1 if self.goal_better == "max" else -1
        factor = max(_FACTORS, key=lambda factor: (sign * scores[factor][self.goal], -scores[factor]["loss"]))
        logits = torch.lerp(own, both, factor)
        scale = min(_SCALES, key=lambda scale: F.cross_entropy(scale * logits, targets).item()) if factor else 1.0
        for buffer in (added.weight, added.bias):
            buffer.mul_(factor * scale)
        with torch.no_grad():
            for parameter in cast(Projection, head.project).parameters():
                parameter.mul_(scale)
        without, with_them = (format_metric(self.goal, scores[each][self.goal]) for each in (0.0, factor))
        return f"n-grams of tokens: validation {title(self.goal)} {without} without, {with_them} with them"

    def _fit(self, model: nn.Module, added: NgramLogits, samples: RowSubset) -> None:
        """Set the inverse document frequencies, weights and biases."""
        counts, buckets, targets = np.zeros(len(samples), np.int64), [np.zeros(0, np.int32)] * len(samples), Tensor()
        for indices, batch in evaluation_batches(model, samples):
            inputs = cast(Inputs, batch.inputs)
            hashed, exist = added.ngrams(inputs.tokens.ids, inputs.layout)
            targets = targets if len(targets) else batch.targets.new_empty(len(samples), device="cpu")
            targets[indices] = batch.targets.cpu()
            for index, row, mask in zip(indices.tolist(), hashed.cpu().int().numpy(), exist.cpu().numpy()):
                buckets[index] = row[mask]
                counts[index] = len(buckets[index])
        offsets, columns = np.concatenate([[0], np.cumsum(counts)]), np.concatenate(buckets)
        texts = np.bincount(np.concatenate([np.unique(row) for row in buckets]), minlength=len(added.idf))
        idf = np.where(texts < _MIN_TEXTS, 0.0, np.log((1 + len(samples)) / (1 + texts)) + 1).astype(np.float32)
        values = idf[columns]
        norms = np.sqrt(np.add.reduceat(values**2, offsets[:-1])).clip(min=1e-9)
        rows = SparseRows(offsets, columns, values / np.repeat(norms, counts))
        classes, costs = targets.numpy(), np.ones(len(samples), np.float32)
        if self.weights is not None:
            costs = self.weights.numpy()[classes].astype(np.float32)
        signs = classes[:, None] == np.arange(added.weight.shape[1])
        weight, bias = fit_support_vectors(rows, signs, len(idf), costs, np.random.default_rng(0))
        for buffer, found in ((added.idf, idf), (added.weight, weight), (added.bias, bias)):
            buffer.copy_(torch.from_numpy(found))
