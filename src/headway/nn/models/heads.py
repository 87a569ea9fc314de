"""Output heads: from feature vectors to predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels.cross_entropy import IGNORE_INDEX, linear_cross_entropy, true_indices
from headway.nn.kernels.linear import linear
from headway.nn.kernels.pointwise import pointwise
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.projection import Projection


class Loss(NamedTuple):
    """A loss summed over `count` samples. Sums add up exactly over micro-batches and devices; means do not."""

    total: Float[Tensor, ""]
    count: int


@family
@dataclass(frozen=True)
class HeadConfig:
    """An output head of a model; its module maps (x, layout) to predictions."""

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> nn.Module:
        """`table` is the embedding [C, D] to share; None gives the head its own weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class TransformConfig:
    """norm(activation(dense(x))) before the vocabulary, as in masked language models (Devlin et al. 2019)."""

    activation: ActivationName = "gelu"  # activation after the dense layer
    norm: NormConfig = LayerNormConfig()  # norm after the activation
    bias: bool = True  # whether the dense layer has a bias
    width: int | None = None  # width after the dense layer; none: the model's (ELECTRA: the embedding's)


@register("vocabulary")
@dataclass(frozen=True)
class VocabularyHeadConfig(HeadConfig):
    """Logits over tokens. `scale` multiplies them (T5's tied head: width^-0.5); `soft_cap` c makes them c tanh(l /
    c); a `transform` or `maxout` units come before them.
    """

    bias: bool = False  # whether logits have a bias
    scale: float = 1.0  # factor on the logits
    soft_cap: float | None = None  # c turns logits l into c tanh(l / c)
    transform: TransformConfig | None = None  # layer before the logits
    maxout: int | None = None  # units of a maxout layer before the logits

    def __post_init__(self) -> None:
        if self.maxout is not None and (self.maxout < 1 or self.transform is not None):
            raise ConfigError(f"maxout is {self.maxout}; set at least 1 unit and no transform, or none")

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> VocabularyHead:
        return VocabularyHead(self, width, vocab_size, table)


class Transform(nn.Module):
    def __init__(self, config: TransformConfig, width: int) -> None:
        super().__init__()
        self.dense = Projection(width, config.width or width, config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = config.norm.build(config.width or width)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return self.norm(self.activation(self.dense(x)))


class VocabularyHead(nn.Module):
    """A linear layer to the vocabulary; with `table` its weights are shared with the embedding (Press, Wolf 2017)."""

    def __init__(self, config: VocabularyHeadConfig, width: int, vocab_size: int, table: nn.Parameter | None) -> None:
        super().__init__()
        self.config = config
        self.transform: nn.Module = nn.Identity()
        if config.transform is not None:
            self.transform, width = Transform(config.transform, width), config.transform.width or width
        if config.maxout is not None:
            from headway.nn.models.maxout import Maxout  # for the GRU models of 2014 only

            self.transform, width = Maxout(width, config.maxout), config.maxout
        if table is not None and table.shape[1] != width:
            raise ConfigError(
                f"an embedding of width {table.shape[1]} cannot be shared with a head of width {width}; set tie to none"
            )
        self.project = Projection(width, vocab_size, bias=False) if table is None else None
        self.table = table
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if config.bias else None

    @property
    def weight(self) -> nn.Parameter:
        weight = self.project.weight if self.project is not None else self.table
        assert weight is not None  # one of the two always exists
        return weight

    def forward(self, x: Float[Tensor, "... D"], layout: Layout | None = None) -> Float[Tensor, "... C"]:
        logits = linear(self._features(x), self.weight, self.bias)
        if self.config.soft_cap is None:
            return logits
        return self.config.soft_cap * pointwise(torch.tanh, logits / self.config.soft_cap)

    def _features(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        """The input of the final linear layer."""
        x = self.transform(x)
        return x * self.config.scale if self.config.scale != 1.0 else x

    def loss(
        self,
        x: Float[Tensor, "... D"],
        labels: Int[Tensor, "..."],
        smoothing: float = 0.0,
        count: int | None = None,
    ) -> Loss:
        """Summed cross-entropy (nats) of the labelled positions; IGNORED ones are dropped before the head.

        `count` is their number if the caller knows it; otherwise they are counted, for which a program waits for a GPU.
        """
        rows, targets = x.reshape(-1, x.shape[-1]), labels.reshape(-1)
        count = int((targets != IGNORE_INDEX).sum()) if count is None else count
        if count < targets.numel():
            labelled = true_indices(targets != IGNORE_INDEX, count)
            rows, targets = rows.index_select(0, labelled), targets.index_select(0, labelled)
        if self.config.soft_cap is not None:
            total = nn.functional.cross_entropy(self(rows), targets, reduction="sum", label_smoothing=smoothing)
            return Loss(total, count)
        return Loss(
            linear_cross_entropy(self._features(rows), self.weight, targets, self.bias, smoothing=smoothing), count
        )

    def log_probabilities(self, x: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """log p(label) in nats; 0 where the label is IGNORED. Computed row by row to save memory."""
        out = x.new_zeros(labels.shape)
        for row in range(labels.shape[0]):
            labelled = labels[row] != IGNORE_INDEX
            scores = self(x[row][labelled]).log_softmax(-1)
            out[row, labelled] = scores.gather(1, labels[row][labelled][:, None])[:, 0]
        return out


def apply_head(head: nn.Module, x: Float[Tensor, "B T D"], layout: Layout, inputs: Any) -> Tensor:
    """The output of a head for whole documents, with those of n-grams of the `inputs` outside training, if any."""
    output, ngrams = head(x, layout), None if head.training else getattr(head, "ngrams", None)
    if ngrams is None:
        return output
    return output + ngrams(inputs if isinstance(inputs, Tensor) else inputs.ids, layout)
