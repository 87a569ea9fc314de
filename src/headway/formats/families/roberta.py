"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT whose positions start after the padding id."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from headway.errors import UserError
from headway.formats.families.bert import (
    DEFAULTS,
    IS_CAUSAL,
    classifier_dropout,
    encoder,
    encoder_rules,
    shared_settings,
    tagger,
)
from headway.formats.heads import POOLER, architecture, classifier, num_outputs
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect, linear, rule, tied_copy
from headway.nn.models import (
    HeadConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    heads: dict[str, HeadConfig] = {}
    is_text_classifier = settings.architecture.endswith("ForSequenceClassification")
    kind = classifier(settings, names, "classifier.out_proj.weight" if is_text_classifier else "classifier.weight")
    if "lm_head.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm))
    if kind == "classes":
        rate = classifier_dropout(settings)
        heads["classes"] = PooledHeadConfig(num_outputs(settings), dense=True, activation="tanh", dropout=rate)
    if kind == "tags":
        heads["tags"] = tagger(settings)
    if "roberta.pooler.dense.weight" in names:
        heads["pooled"] = POOLER
    pad = settings.get("pad_token_id", int)
    if pad < 0:
        raise UserError(f"{settings.source}: pad_token_id is {pad}; positions start after it, so set it to 0 or more")
    return encoder(settings, heads, offset=pad + 1)


def write(name: str, stem: str, config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TokenEmbedConfig)
    return {
        "model_type": name,
        "architectures": architecture(stem, config.heads),
        **shared_settings(config),
        "pad_token_id": expect(embed.positions, LearnedConfig).offset - 1,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    heads = config.heads
    tensor_rules = encoder_rules(config, "roberta")
    if "pooled" in heads:
        tensor_rules += linear("heads.pooled.dense", "roberta.pooler.dense")
    if "vocabulary" in heads:
        tensor_rules += masked_rules()
    if "classes" in heads:
        tensor_rules += linear("heads.classes.dense", "classifier.dense")
        tensor_rules += linear("heads.classes.project", "classifier.out_proj")
    if "tags" in heads:
        tensor_rules += linear("heads.tags.project", "classifier")
    return tensor_rules


def masked_rules() -> list[TensorRule]:
    return [
        *linear("heads.vocabulary.transform.dense", "lm_head.dense"),
        *linear("heads.vocabulary.transform.norm", "lm_head.layer_norm"),
        rule("heads.vocabulary.bias", "lm_head.bias"),
        tied_copy("embed.table", "lm_head.decoder.weight"),
        tied_copy("heads.vocabulary.bias", "lm_head.decoder.bias"),
    ]


def _family(name: str, stem: str, **defaults: Any) -> Family:
    return Family(
        name,
        read,
        partial(write, name, stem),
        rules,
        renames=((r"^(?=(embeddings|encoder|pooler)\.)", "roberta."),),
        skipped=(r"\.embeddings\.position_ids$",),
        ignored=(IS_CAUSAL,),
        defaults={**DEFAULTS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **defaults},
    )


FAMILIES = (_family("roberta", "Roberta", vocab_size=50265), _family("xlm-roberta", "XLMRoberta"))
