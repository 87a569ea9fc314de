"""DeBERTa v2 and v3 (He et al. 2021, 2023): BERT with disentangled attention to relative positions, whose vectors all
layers share, and a dense layer with GELU before the classes. The largest of v2 have a convolution next to the first
layer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.families.bert import IS_CAUSAL, encoder_rows, masked_rules
from headway.formats.heads import SPAN, SPAN_TENSOR, architecture, classifier, label_settings, num_outputs, pooler
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingTable
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, FlattenedRows, TensorRule, block_rules, expect, linear, linears, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    HeadConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.models.block import ConvolutionConfig
from headway.nn.models.disentangled import DisentangledConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Full

_BIAS = "relative"  # the stack's name for the vectors that its layers share
_TERMS = {"p2c": "position_to_content", "c2p": "content_to_position"}
_BLOCK = BlockConfig(AttentionConfig(pattern=Full()), placement="post")
TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((_BLOCK,), norm=None), embed=TokenEmbedConfig(norm=LayerNormConfig())),
    {
        "vocab_size": ("vocab_size", 128100),
        **encoder_rows(0.1, "block.norm.eps embed.norm.eps"),
        "max_position_embeddings": ("context", 512, POSITIONS),
        "type_vocab_size": ("embed.types", 0),
        "relative_attention": ("", False),
        "position_biased_input": ("", True),
        "pooler_hidden_act": ("", "gelu", ACTIVATION),
        "norm_rel_ebd": ("", "none"),
        "share_att_key": ("", False),
        "position_buckets": ("", -1),
        "max_relative_positions": ("", -1),
        "conv_kernel_size": ("", 0),
        "conv_act": ("", "tanh"),
        "tie_word_embeddings": ("", True),
    },
)


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    for name, value in (("tie_word_embeddings", True), ("conv_groups", 1)):
        settings.require(name, value)
    width, heads = settings.get("hidden_size", int), settings.get("num_attention_heads", int)
    for name in ("embedding_size", "pooler_hidden_size"):
        settings.require(name, width)
    config, relative = TABLE.read(settings, {"heads": read_heads(settings, names)}), read_relative(settings, heads)
    size, scale = settings.get("attention_head_size", int, width // heads), None
    if relative is not None and size > 0:
        scale = (size * (1 + relative.content_to_position + relative.position_to_content)) ** -0.5
    mixer = expect(config.stack.blocks[0].mixer, AttentionConfig)
    mixer = replace(mixer, head_size=size, scale=scale, bias=_BIAS if relative else None)
    first, *others = (replace(block, mixer=mixer) for block in config.stack.blocks)
    taps = settings.get("conv_kernel_size", int)
    if taps > 0:
        first = replace(first, convolution=ConvolutionConfig(taps, settings.activation("conv_act")))
    stack = replace(config.stack, blocks=(first, *others), biases={_BIAS: relative} if relative else {})
    positions = LearnedConfig() if settings.get("position_biased_input", bool) else None
    return replace(config, stack=stack, embed=replace(expect(config.embed, TokenEmbedConfig), positions=positions))


def read_relative(settings: Settings, heads: int) -> DisentangledConfig | None:
    if not settings.get("relative_attention", bool):
        settings.require("pos_att_type", [], "")
        return None
    terms = settings.values.get("pos_att_type")  # a list, or a string such as "p2c|c2p"
    terms = [part.strip() for part in terms.lower().split("|")] if isinstance(terms, str) else terms
    terms = replace(settings, values={"pos_att_type": terms}).get("pos_att_type", list[str], [])
    if not terms or not {*terms} <= _TERMS.keys():
        raise UserError(f"{settings.source}: pos_att_type is {terms}; name at least one of {', '.join(_TERMS)}")
    buckets, reach = settings.get("position_buckets", int), settings.get("max_relative_positions", int)
    reach = reach if reach > 0 else settings.get("max_position_embeddings", int)
    norms = [name.strip() for name in settings.get("norm_rel_ebd", str).lower().split("|")]
    return DisentangledConfig(
        heads,
        span=buckets if buckets > 0 else reach,
        reach=reach if buckets > 0 else None,
        norm=LayerNormConfig(settings.get("layer_norm_eps", float)) if "layer_norm" in norms else None,
        **{field: name in terms for name, field in _TERMS.items()},
        shared=settings.get("share_att_key", bool),
    )


def read_heads(settings: Settings, names: Collection[str]) -> dict[str, HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    if "cls.predictions.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        transform = TransformConfig(settings.activation("hidden_act"), norm)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    kind, rate = classifier(settings, names, "classifier.weight"), settings.get("hidden_dropout_prob", float)
    if kind == "classes":
        rate, activation = settings.get("cls_dropout", float, rate), settings.activation("pooler_hidden_act")
        heads[kind] = PooledHeadConfig(num_outputs(settings), dense=True, activation=activation, dropout=rate)
    if kind == "tags":
        heads[kind] = PooledHeadConfig(num_outputs(settings), pool="tokens", dropout=rate)
    return heads | ({"span": SPAN} if f"{SPAN_TENSOR}.weight" in names else {})


def relative_of(config: TransformerConfig) -> DisentangledConfig | None:
    return expect(config.stack.biases[_BIAS], DisentangledConfig) if config.stack.biases else None


def write(config: TransformerConfig) -> dict[str, Any]:
    embed, relative, block = expect(config.embed, TokenEmbedConfig), relative_of(config), config.stack.blocks[0]
    mixer, head = expect(block.mixer, AttentionConfig), config.heads.get("classes")
    others: dict[str, Any] = {
        "relative_attention": relative is not None,
        "position_biased_input": embed.positions is not None,
        "attention_head_size": mixer.head_size or config.width // mixer.heads,
        "legacy": True,
        "tie_word_embeddings": True,
    }
    if relative is not None:
        others |= {
            "pos_att_type": [name for name, field in _TERMS.items() if getattr(relative, field)],
            "share_att_key": relative.shared,
            "norm_rel_ebd": "none" if relative.norm is None else "layer_norm",
            "position_buckets": -1 if relative.reach is None else relative.span,
            "max_relative_positions": relative.reach or relative.span,
        }
    if block.convolution is not None:
        activation = published_activation(block.convolution.activation)
        others |= {"conv_kernel_size": block.convolution.taps, "conv_act": activation}
    if isinstance(head, PooledHeadConfig) and head.activation is not None:
        others |= {"pooler_hidden_act": published_activation(head.activation), "cls_dropout": head.dropout}
    settings = {**TABLE.write(config, others), **label_settings(config.heads)}
    return {"model_type": "deberta-v2", "architectures": architecture("DebertaV2", config.heads), **settings}


def rules(config: TransformerConfig) -> list[TensorRule]:
    embed, relative, convolution = config.embed, relative_of(config), config.stack.blocks[0].convolution

    def layer(block: BlockConfig) -> list[TensorRule]:
        names = {
            "mixer.qkv": "attention.self.{query,key,value}_proj",
            "mixer.out": "attention.output.dense",
            "mix.last": "attention.output.LayerNorm",
            "feed_forward.up": "intermediate.dense",
            "feed_forward.down": "output.dense",
            "feed.last": "output.LayerNorm",
        }
        if relative is not None and not relative.shared:
            names |= {"mixer.terms.k": "attention.self.pos_key_proj"} if relative.content_to_position else {}
            names |= {"mixer.terms.q": "attention.self.pos_query_proj"} if relative.position_to_content else {}
        return linears(names)

    tensor_rules = [
        rule("embed.table", "deberta.embeddings.word_embeddings.weight"),
        *linear("embed.norm", "deberta.embeddings.LayerNorm"),
        *block_rules(config.stack, "deberta.encoder.layer.{}.", layer),
        *pooler(config.heads, "pooler.dense", {"classes": "classifier", "tags": "classifier", "span": SPAN_TENSOR}),
        *masked_rules(config, "cls.predictions", "transform.dense", "transform.LayerNorm"),
    ]
    if isinstance(embed, TokenEmbedConfig) and embed.positions is not None:
        tensor_rules.append(rule("embed.positions.table", "deberta.embeddings.position_embeddings.weight"))
    if embed.types:
        tensor_rules.append(rule("embed.types.table", "deberta.embeddings.token_type_embeddings.weight"))
    if relative is not None:
        tensor_rules.append(rule(f"stack.biases.{_BIAS}.table", "deberta.encoder.rel_embeddings.weight"))
        tensor_rules += linear(f"stack.biases.{_BIAS}.norm", "deberta.encoder.LayerNorm") if relative.norm else []
    if convolution is not None:
        kernel = FlattenedRows((config.width, convolution.taps))
        first, source = "stack.blocks.0.convolution.product", "deberta.encoder.conv"
        tensor_rules.append(rule(f"{first}.weight", f"{source}.conv.weight", transform=kernel))
        tensor_rules.append(rule(f"{first}.bias", f"{source}.conv.bias"))
        tensor_rules += linear("stack.blocks.0.norm", f"{source}.LayerNorm")
    return tensor_rules


FAMILY = Family(
    "deberta-v2",
    read,
    write,
    rules,
    renames=(
        (r"^(?=(embeddings|encoder)\.)", "deberta."),
        # The head of v3, which computes the same (`legacy` false).
        (r"^lm_predictions\.lm_head\.(?=dense|LayerNorm)", "cls.predictions.transform."),
        (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
    ),
    skipped=(r"\.embeddings\.position_ids$", r"^mask_predictions\."),  # the discriminator's head, which no class has
    ignored=(IS_CAUSAL, "legacy", "pooler_dropout", "cls_dropout"),
    defaults={
        **TABLE.defaults,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "layer_norm_eps": 1e-7,
        "conv_groups": 1,
    },
)
