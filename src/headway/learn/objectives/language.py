"""Classification with an auxiliary language-modelling loss, as GPT was fine-tuned in 2018."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.data import IGNORE_INDEX
from headway.errors import ConfigError
from headway.learn.examples import Batch
from headway.learn.objectives.classes import ClassifiedSamples
from headway.learn.objectives.ngram_classes import TextClassification
from headway.learn.objectives.predictions import HEAD
from headway.learn.token_rows import Inputs
from headway.nn.models import (
    Loss,
    ModelConfig,
    Transformer,
    TransformerConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)

_VOCABULARY = "vocabulary"  # the head of a language model


class LanguageClassification(TextClassification):
    """Cross-entropy of the classes plus `language_weight` times the cross-entropy of each text's next tokens (Radford
    et al. 2018, "Improving language understanding by generative pre-training", equation 5).
    """

    def __init__(self, language_weight: float, *args: Any) -> None:
        super().__init__(*args)
        self.language_weight = language_weight

    def adapt(self, model: ModelConfig, examples: ClassifiedSamples) -> ModelConfig:
        """`model` with both heads; keeps its own vocabulary head. ConfigError for a model that is not causal."""
        if not isinstance(model, TransformerConfig) or not model.stack.causal:
            raise ConfigError(
                f"task.language_weight={self.language_weight:g} needs a causal model, which predicts next tokens; set "
                "it to 0, or start from a run of the recipe text"
            )
        adapted = cast(TransformerConfig, super().adapt(model, examples))
        vocabulary = model.heads.get(_VOCABULARY) or VocabularyHeadConfig()
        return replace(adapted, heads={**adapted.heads, _VOCABULARY: vocabulary})

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"loss": batch.tokens, "language": int((next_tokens(cast(Inputs, batch.inputs)) != IGNORE_INDEX).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        inputs, heads = cast(Inputs, batch.inputs), cast(Transformer, model).heads
        encoded = model(*inputs)
        classes = self.entropy(heads[HEAD](encoded.x, encoded.layout), batch.targets, self.smoothing)
        head, count = cast(VocabularyHead, heads[_VOCABULARY]), self.counts(batch.host)["language"]
        language = head.loss(encoded.x, next_tokens(inputs), count=count)
        return {
            "loss": Loss(classes, batch.tokens),
            "language": Loss(self.language_weight * language.total, language.count),
        }


def next_tokens(inputs: Inputs) -> Int[Tensor, "B T"]:
    """The token after each token of a text, -100 at its end and at padding."""
    labels = torch.full_like(inputs.tokens.ids, IGNORE_INDEX)
    labels[:, :-1] = torch.where(inputs.layout.positions[:, 1:] > 0, inputs.tokens.ids[:, 1:], IGNORE_INDEX)
    return labels
