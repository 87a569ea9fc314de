"""ELECTRA (Clark et al. 2020): BERT whose embedding has a width of its own, without a pooler.

The discriminator predicts which tokens a generator has replaced (head "replaced"); the generator is a masked model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families.bert import (
    IS_CAUSAL,
    TABLE,
    encoder,
    encoder_rules,
    label_heads,
    label_rules,
    shared_settings,
)
from headway.formats.families.gpt2 import SUMMARY
from headway.formats.heads import architecture
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect, linear, linears, rule, tied_copy
from headway.nn.models import (
    HeadConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig

_REPLACED = {"heads.replaced.dense": "dense", "heads.replaced.project": "dense_prediction"}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    width, inner = settings.get("hidden_size", int), settings.get("embedding_size", int)
    heads: dict[str, HeadConfig] = {}
    if "generator_lm_head.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        transform = TransformConfig("gelu", norm, width=None if inner == width else inner)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    if "discriminator_predictions.dense.weight" in names:
        activation = settings.activation("hidden_act")
        heads["replaced"] = PooledHeadConfig(1, pool="tokens", dense=True, activation=activation)
    heads |= label_heads(settings, names)
    if isinstance(heads.get("classes"), PooledHeadConfig):
        heads["classes"] = replace(heads["classes"], activation="gelu")  # type: ignore[call-arg]
    config = encoder(settings, heads)
    if inner == width:
        return config
    return replace(config, embed=replace(expect(config.embed, TokenEmbedConfig), width=inner, projects="sum"))


def write(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "electra",
        "architectures": architecture("Electra", config.heads),
        **shared_settings(config),
        "embedding_size": expect(config.embed, TokenEmbedConfig).width or config.width,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    embed = expect(config.embed, TokenEmbedConfig)
    tensor_rules = encoder_rules(config, "electra")
    if embed.width is not None:
        tensor_rules += linear("embed.project", "electra.embeddings_project")
    if "vocabulary" in config.heads:
        names = {"transform.dense": "dense", "transform.norm": "LayerNorm"}
        tensor_rules += linears({f"heads.vocabulary.{k}": f"generator_predictions.{v}" for k, v in names.items()})
        tensor_rules.append(rule("heads.vocabulary.bias", "generator_lm_head.bias"))
        tensor_rules.append(tied_copy("embed.table", "generator_lm_head.weight"))
    if "replaced" in config.heads:
        tensor_rules += linears({k: f"discriminator_predictions.{v}" for k, v in _REPLACED.items()})
    return [*tensor_rules, *label_rules(config)]


FAMILY = Family(
    "electra",
    read,
    write,
    rules,
    renames=(
        (r"^(?=(embeddings|encoder|embeddings_project)\.)", "electra."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    skipped=(r"\.embeddings\.position_ids$",),
    ignored=(IS_CAUSAL, *SUMMARY),
    defaults={
        **TABLE.defaults,
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
)
