"""BART (Lewis et al. 2019): the transformer of 2017 with learned positions from 2 on and normalised embeddings. Its
classifier's decoder reads the text, too, and its last token is classified.

Marian (Junczys-Dowmunt et al. 2018), as in the OPUS-MT models: the transformer of 2017, with a bias on the logits, and
positions with sines before cosines. Decoding starts with the padding token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from headway.formats.heads import label_settings, num_outputs
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    SingleRow,
    TensorRule,
    block_rules,
    expect,
    linear,
    linears,
    rule,
    tied_copy,
)
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EmbedConfig,
    EncoderDecoderConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig, SinusoidalConfig
from headway.visibility import Full

ALIASES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
OLDER = ("add_bias_logits", "extra_pos_embeddings", "static_position_embeddings", "do_blenderbot_90_layernorm")
OLDER += ("student_encoder_layers", "student_decoder_layers", "replacing_rate")  # no longer used by any class
LOGITS_BIAS = "final_logits_bias"
PARTS = ("encoder", "decoder")


def setting_table(embed: EmbedConfig, placement: Literal["pre", "post"] = "post", **defaults: Any) -> SettingTable:
    """The settings of BART and its relatives, with defaults that differ from its own. Norms before each layer need one
    after the last.
    """
    norm = LayerNormConfig() if placement == "pre" else None
    encoder = BlockConfig(AttentionConfig(pattern=Full()), placement=placement)
    decoder = BlockConfig(cross=CrossAttentionConfig(), placement=placement)
    table = SettingTable(
        EncoderDecoderConfig(
            TransformerConfig(stack=StackConfig((encoder,), norm), embed=embed, heads={}),
            TransformerConfig(stack=StackConfig((decoder,), norm), embed=embed),
        ),
        {
            "vocab_size": ("{encoder,decoder}.vocab_size", 50265),
            "d_model": ("{encoder,decoder}.width", 1024),
            "max_position_embeddings": ("{encoder,decoder}.context", 1024, POSITIONS),
            "activation_function": ("{encoder,decoder}.block.feed_forward.activation", "gelu", ACTIVATION),
            "dropout": ("{encoder,decoder}.embed.dropout {encoder,decoder}.block.dropout", 0.1),
            "attention_dropout": ("{encoder,decoder}.block.mixer.dropout decoder.block.cross.dropout", 0.0),
            "activation_dropout": ("{encoder,decoder}.block.feed_forward.dropout", 0.0),
            "scale_embedding": ("{encoder,decoder}.embed.scaled", False),
            "tie_word_embeddings": ("", True),
            **stack_rows(12, 16, 4096),
        },
    )
    changes = {name: (table.rows[name][0], default, *table.rows[name][2:]) for name, default in defaults.items()}
    return replace(table, rows={**table.rows, **changes})


def stack_rows(depth: int, heads: int, hidden: int) -> dict[str, tuple[Any, ...]]:
    """The settings of the encoder and the decoder, which have separate names, with defaults."""
    rows: dict[str, tuple[Any, ...]] = {}
    for part, other_heads in zip(PARTS, ("", " decoder.block.cross.heads")):
        rows |= {
            f"{part}_layers": (f"{part}.depth", depth),
            f"{part}_attention_heads": (f"{part}.block.mixer.heads{other_heads}", heads),
            f"{part}_ffn_dim": (f"{part}.block.feed_forward.hidden", hidden),
        }
    return rows


def read_plain(
    table: SettingTable, settings: Settings, names: Collection[str], fields: Mapping[str, Any] | None = None
) -> EncoderDecoderConfig:
    before = table.model.encoder.stack.norm is not None
    settings.require("tie_word_embeddings", True)
    settings.require("normalize_before", before)
    settings.require("add_final_layer_norm", before)
    head = VocabularyHeadConfig(bias=LOGITS_BIAS in names)
    return table.read(settings, {"decoder.heads": {"vocabulary": head}, **(fields or {})})


def write_plain(table: SettingTable, name: str, architecture: str, config: EncoderDecoderConfig) -> dict[str, Any]:
    settings = table.write(config, {"tie_word_embeddings": True})
    return {"model_type": name, "architectures": [architecture], "is_encoder_decoder": True, **settings}


BART_TABLE = setting_table(TokenEmbedConfig(LearnedConfig(offset=2), LayerNormConfig()))


CLASSIFIER = "BartForSequenceClassification"


def read_bart(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["BartForConditionalGeneration"], ["BartModel"], [CLASSIFIER])
    config = read_plain(BART_TABLE, settings, names)
    if settings.architecture != CLASSIFIER:
        return config
    settings.require("decoder_start_token_id", settings.get("eos_token_id", int))  # the decoder starts with the end
    rate = settings.get("classifier_dropout", float, 0.0)
    head = PooledHeadConfig(num_outputs(settings), "last", dense=True, activation="tanh", dropout=rate)
    return replace(config, decoder=replace(config.decoder, heads={"classes": head}))


def write_bart(config: EncoderDecoderConfig) -> dict[str, Any]:
    heads = config.decoder.heads
    if "classes" not in heads:
        return write_plain(BART_TABLE, "bart", "BartForConditionalGeneration", config)
    rate = expect(heads["classes"], PooledHeadConfig).dropout
    return {**write_plain(BART_TABLE, "bart", CLASSIFIER, config), **label_settings(heads), "classifier_dropout": rate}


def bart_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    tensor_rules = shared_table()
    for part, stack in zip(PARTS, (config.encoder.stack, config.decoder.stack)):
        tensor_rules.append(rule(f"{part}.embed.positions.table", f"model.{part}.embed_positions.weight"))
        tensor_rules += linear(f"{part}.embed.norm", f"model.{part}.layernorm_embedding")
        tensor_rules += stack_rules(stack, part)
    return [*tensor_rules, *head_rules(config)]


def shared_table() -> list[TensorRule]:
    """One table for source, target and head; some files store copies of it."""
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    table = "decoder.embed.table"
    return [rule(table, "model.shared.weight"), *(tied_copy(table, name) for name in copies)]


_CLASSIFIER_LAYERS = {"dense": "dense", "project": "out_proj"}


def head_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    if "classes" in config.decoder.heads:
        target = "decoder.heads.classes"
        return linears({f"{target}.{ours}": f"classification_head.{name}" for ours, name in _CLASSIFIER_LAYERS.items()})
    biased = expect(config.decoder.heads["vocabulary"], VocabularyHeadConfig).bias
    return [rule("decoder.heads.vocabulary.bias", LOGITS_BIAS, transform=SingleRow())] if biased else []


def stack_rules(stack: StackConfig, component: str) -> list[TensorRule]:
    side = "before" if stack.norm is not None else "last"  # where the norms of a layer are
    before = {
        "mixer.qkv": "self_attn.{q,k,v}_proj",
        "mixer.out": "self_attn.out_proj",
        f"mix.{side}": "self_attn_layer_norm",
    }
    cross = {
        "cross.q": "encoder_attn.q_proj",
        "cross.kv": "encoder_attn.{k,v}_proj",
        "cross.out": "encoder_attn.out_proj",
        f"read.{side}": "encoder_attn_layer_norm",
    }
    after = {"feed_forward.up": "fc1", "feed_forward.down": "fc2", f"feed.{side}": "final_layer_norm"}
    tensor_rules = block_rules(
        stack,
        f"model.{component}.layers.{{}}.",
        lambda block: linears({**before, **(cross if block.cross is not None else {}), **after}),
        f"{component}.stack",
    )
    final = linear(f"{component}.stack.norm", f"model.{component}.layer_norm") if stack.norm is not None else []
    return [*tensor_rules, *final]


_RENAMES = ((r"^(?=(shared|encoder|decoder)\.)", "model."),)
_BART = Family(
    "bart",
    read_bart,
    write_bart,
    bart_rules,
    renames=_RENAMES,
    aliases=ALIASES,
    ignored=OLDER,
    skipped=(r"^model\.(encoder|decoder)\.version$",),
    defaults={
        **BART_TABLE.defaults,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
)


MARIAN_TABLE = setting_table(TokenEmbedConfig(SinusoidalConfig(interleaved=False)), vocab_size=58101)


def read_marian(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["MarianMTModel"], ["MarianModel"])
    settings.require("normalize_embedding", False)
    config = read_plain(MARIAN_TABLE, settings, names)
    if settings.get("share_encoder_decoder_embeddings", bool):
        return config
    vocab_size = settings.get("decoder_vocab_size", int, config.decoder.vocab_size)
    return replace(config, decoder=replace(config.decoder, vocab_size=vocab_size), tie="head")


def write_marian(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        **write_plain(MARIAN_TABLE, "marian", "MarianMTModel", config),
        "pad_token_id": config.vocab_size - 1,
        "decoder_start_token_id": config.vocab_size - 1,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.tie == "all",
    }


def marian_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    two_tables = [
        rule("decoder.embed.table", "model.decoder.embed_tokens.weight"),
        rule("encoder.embed.table", "model.encoder.embed_tokens.weight"),
        tied_copy("decoder.embed.table", "lm_head.weight"),
    ]
    return [
        *(shared_table() if config.tie == "all" else two_tables),
        *stack_rules(config.encoder.stack, "encoder"),
        *stack_rules(config.decoder.stack, "decoder"),
        *head_rules(config),
    ]


_MARIAN = Family(
    "marian",
    read_marian,
    write_marian,
    marian_rules,
    renames=_RENAMES,
    aliases=ALIASES,
    ignored=(*OLDER, "decoder_vocab_size"),  # equals vocab_size unless there are two tables
    skipped=(r"\.embed_positions\.weight$",),
    defaults={
        **MARIAN_TABLE.defaults,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58100,
        "share_encoder_decoder_embeddings": True,
    },
)
FAMILIES = (_BART, _MARIAN)
