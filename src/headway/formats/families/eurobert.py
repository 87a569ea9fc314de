"""EuroBERT (Boizard et al. 2025): a Llama that attends in both directions, with heads for masked tokens and labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import llama
from headway.formats.heads import architecture, classifier, label_settings, num_outputs
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, linear, linears, rule, vocabulary
from headway.nn.models import HeadConfig, PooledHeadConfig, TransformerConfig, VocabularyHeadConfig
from headway.nn.models.pooled import Pool

# The pooling before the classes: which tokens, and whether it follows the dense layer.
_POOLS: dict[str, tuple[Pool, bool]] = {"bos": ("first", False), "mean": ("mean", False), "late": ("mean", True)}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    config = llama.read(replace(settings, values={**settings.values, "architectures": None}), names)
    heads: dict[str, HeadConfig] = {}
    kind = classifier(settings, names, "classifier.weight")
    if kind == "tags":
        heads[kind] = PooledHeadConfig(num_outputs(settings), pool="tokens")
    if kind == "classes":
        settings.require("classifier_pooling", *_POOLS)
        pool, late = _POOLS[settings.get("classifier_pooling", str)]
        heads[kind] = PooledHeadConfig(num_outputs(settings), pool, dense=True, activation="gelu", late=late)
    if settings.architecture.endswith("ForMaskedLM"):
        heads["vocabulary"] = VocabularyHeadConfig(bias=settings.get("mlp_bias", bool))
    return replace(llama.bidirectional(config), heads=heads, tie=config.tie if "vocabulary" in heads else "none")


def write(config: TransformerConfig) -> dict[str, Any]:
    head = config.heads.get("classes")
    pooling = [
        name for name, pool in _POOLS.items() if isinstance(head, PooledHeadConfig) and pool == (head.pool, head.late)
    ]
    plain = replace(llama.causal(config), heads={})
    return {
        **llama.writer("eurobert", "EuroBert", llama.write_biases)(plain),
        "architectures": architecture("EuroBert", config.heads),
        **({"classifier_pooling": pooling[0]} if pooling else {}),
        **label_settings(config.heads),
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    tensor_rules = llama.rules(replace(config, heads={}))
    head = config.heads.get("vocabulary")
    if isinstance(head, VocabularyHeadConfig):
        tensor_rules.append(vocabulary(config, "embed.table", "lm_head.weight"))
        tensor_rules += [rule("heads.vocabulary.bias", "lm_head.bias")] if head.bias else []
    if "classes" in config.heads:
        tensor_rules += linears({"heads.classes.dense": "dense", "heads.classes.project": "classifier"})
    return [*tensor_rules, *(linear("heads.tags.project", "classifier") if "tags" in config.heads else [])]


_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_pooling": "late",
    "pad_token_id": 128001,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
FAMILY: Family = replace(llama.family("eurobert", read, write, rules, **_DEFAULTS), read=read, write=write)
