"""ESM-2 (Lin et al. 2023) and ESM-1b (Rives et al. 2021): encoders of proteins, BERT with norms before each branch,
and rotary positions or, in ESM-1b, position vectors. The head that predicts contacts from attention is not read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families.bert import IS_CAUSAL, encoder_rows, label_rules, masked_rules, read_classifier
from headway.formats.heads import ESM_FREQUENCIES, POOLER, architecture, classifier, label_settings
from headway.formats.setting_table import SettingKind, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, block_rules, expect, linear, linears, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    HeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.models.token_dropout import TokenDropoutEmbedConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig, RotaryConfig
from headway.visibility import Full

_TOKENS, _PAD, _MASK = 33, 1, 32  # of ESM's alphabet
_ROWS = encoder_rows(0.1, "block.norm.eps stack.norm.eps")
TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((BlockConfig(AttentionConfig(pattern=Full())),))),
    {
        "vocab_size": ("vocab_size", _TOKENS, SettingKind(lambda settings, name: settings.get(name, int, _TOKENS))),
        **{name: row for name, row in _ROWS.items() if name != "hidden_act"},
        "hidden_dropout_prob": ("block.dropout", 0.1),
        "max_position_embeddings": ("", 1026),
        "position_embedding_type": ("", "absolute"),
        "rope_theta": ("", 10000.0),
        "emb_layer_norm_before": ("", bool),
        "token_dropout": ("", False),
        "tie_word_embeddings": ("", True),
    },
)


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    for name, value in (("tie_word_embeddings", True), ("is_decoder", False), ("is_folding_model", False)):
        settings.require(name, value)
    settings.require("position_embedding_type", "absolute", "rotary")
    settings.require("head_dim", settings.get("hidden_size", int) // settings.get("num_attention_heads", int))
    norm, rotary, positions = LayerNormConfig(settings.get("layer_norm_eps", float)), None, None
    context = settings.max_positions("max_position_embeddings")
    if settings.get("position_embedding_type", str) == "rotary":
        rotary = RotaryConfig(settings.get("rope_theta", float), stored=ESM_FREQUENCIES in names)
    else:
        positions = LearnedConfig(settings.get("pad_token_id", int, _PAD) + 1)
        context -= positions.offset
    parts = (positions, norm if settings.get("emb_layer_norm_before", bool, False) else None)
    embed = TokenEmbedConfig(*parts)
    if settings.get("token_dropout", bool):
        embed = TokenDropoutEmbedConfig(*parts, mask_id=settings.get("mask_token_id", int, _MASK))
    fields = {"context": context, "block.mixer.rotary": rotary, "embed": embed, "heads": read_heads(settings, names)}
    return TABLE.read(settings, fields)


def read_heads(settings: Settings, names: Collection[str]) -> dict[str, HeadConfig]:
    is_text_classifier = settings.architecture.endswith("ForSequenceClassification")
    kind = classifier(settings, names, "classifier.out_proj.weight" if is_text_classifier else "classifier.weight")
    heads = read_classifier(settings, kind)
    if "lm_head.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm))
    if "esm.pooler.dense.weight" in names:
        heads["pooled"] = POOLER
    return heads


def write(config: TransformerConfig) -> dict[str, Any]:
    embed, rotary = expect(config.embed, TokenEmbedConfig), expect(config.stack.blocks[0].mixer, AttentionConfig).rotary
    offset = embed.positions.offset if isinstance(embed.positions, LearnedConfig) else 0
    others = {
        "max_position_embeddings": (config.context or 0) + offset,
        "position_embedding_type": "absolute" if rotary is None else "rotary",
        "emb_layer_norm_before": embed.norm is not None,
        "token_dropout": isinstance(embed, TokenDropoutEmbedConfig),
        "tie_word_embeddings": True,
        "pad_token_id": offset - 1 if offset else _PAD,  # unused with rotary positions, but transformers needs it
        **({} if rotary is None else {"rope_theta": rotary.theta}),
        **({"mask_token_id": embed.mask_id} if isinstance(embed, TokenDropoutEmbedConfig) else {}),
    }
    settings = {**TABLE.write(config, others), **label_settings(config.heads)}
    return {"model_type": "esm", "architectures": architecture("Esm", config.heads), **settings}


def rules(config: TransformerConfig) -> list[TensorRule]:
    names = {
        "mix.before": "attention.LayerNorm",
        "mixer.qkv": "attention.self.{query,key,value}",
        "mixer.out": "attention.output.dense",
        "feed.before": "LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
    }
    embed, mixer = expect(config.embed, TokenEmbedConfig), expect(config.stack.blocks[0].mixer, AttentionConfig)
    tensor_rules = [
        rule("embed.table", "esm.embeddings.word_embeddings.weight"),
        *block_rules(config.stack, "esm.encoder.layer.{}.", lambda block: linears(names)),
        *linear("stack.norm", "esm.encoder.emb_layer_norm_after"),
        *(linear("heads.pooled.dense", "esm.pooler.dense") if "pooled" in config.heads else []),
        *masked_rules(config, "lm_head", "dense", "layer_norm"),
        *label_rules(config),
    ]
    if embed.positions is not None:
        tensor_rules.append(rule("embed.positions.table", "esm.embeddings.position_embeddings.weight"))
    if embed.norm is not None:
        tensor_rules += linear("embed.norm", "esm.embeddings.layer_norm")
    if mixer.rotary is not None and mixer.rotary.stored:
        layers = range(len(config.stack.blocks))
        tensor_rules += [rule(f"stack.blocks.{i}.mixer.frequencies", ESM_FREQUENCIES) for i in layers]
    return tensor_rules


FAMILY = Family(
    "esm",
    read,
    write,
    rules,
    renames=(
        (r"^(?=(embeddings|encoder|pooler|contact_head|rotary_embeddings)\.)", "esm."),
        (
            r"^esm\.encoder\.layer\.(\d+|\*)\.attention\.self\.rotary_embeddings\.inv_freq$",
            ESM_FREQUENCIES,
        ),  # all equal
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    skipped=(r"\.embeddings\.position_ids$", r"^esm\.contact_head\."),
    ignored=(IS_CAUSAL, "vocab_list", "esmfold_config", "add_cross_attention"),
    defaults={**TABLE.defaults, "eos_token_id": 2},
)
