"""T5 (Raffel et al. 2020): relative positions, RMS norms and no biases; scores are not divided by sqrt(head size).

Version 1.0 shares one table among source, target and head, and scales the tied head by 1 / sqrt(width). Version 1.1
(also Flan-T5) has gated feed-forwards and an untied head. mT5 (Xue et al. 2020) and ByT5 (2021) are of version 1.1;
in umT5 (Chung et al. 2023) each layer has relative positions of its own. An encoder alone embeds texts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.formats.setting_table import SettingKind, SettingTable
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, TensorRule, block_rules, expect, linears, rule, tied_copy, vocabulary
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import BlockConfig, EncoderDecoderConfig, StackConfig, TransformerConfig, VocabularyHeadConfig
from headway.nn.models.score_biases import RelativeConfig
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, MLPConfig, hidden_width
from headway.nn.parts.norm import RMSNormConfig
from headway.visibility import Causal, Full, Pattern

BIAS = "relative"  # the Stack's name for the bias that its layers share; the file stores it in layer 0
_STEMS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}  # beginnings of transformers' classes


def _stack(pattern: Pattern) -> StackConfig:
    mixer = AttentionConfig(pattern=pattern, qkv_bias=False, out_bias=False, scale=1.0, bias=BIAS)
    cross = CrossAttentionConfig(q_bias=False, kv_bias=False, out_bias=False, scale=1.0) if pattern.causal else None
    block = BlockConfig(mixer, cross, norm=RMSNormConfig())
    return StackConfig((block,), RMSNormConfig(), {BIAS: RelativeConfig(both_ways=not pattern.causal)})


_DEPTH = SettingKind(lambda settings, name: settings.get(name, int, settings.get("num_layers", int)))
TABLE = SettingTable(
    EncoderDecoderConfig(TransformerConfig(stack=_stack(Full()), heads={}), TransformerConfig(stack=_stack(Causal()))),
    {
        "vocab_size": ("{decoder,encoder}.vocab_size", 32128),
        "d_model": ("{decoder,encoder}.width", 512),
        "d_kv": ("{encoder,decoder}.block.mixer.head_size decoder.block.cross.head_size", 64),
        "num_layers": ("encoder.depth", 6),
        "num_decoder_layers": ("decoder.depth", int, _DEPTH),
        "num_heads": (
            "{encoder,decoder}.block.mixer.heads decoder.block.cross.heads "
            f"{{encoder,decoder}}.stack.biases.{BIAS}.heads",
            8,
        ),
        "relative_attention_num_buckets": (f"{{encoder,decoder}}.stack.biases.{BIAS}.buckets", 32),
        "relative_attention_max_distance": (f"{{encoder,decoder}}.stack.biases.{BIAS}.reach", 128),
        "dropout_rate": (
            "{encoder,decoder}.embed.dropout {encoder,decoder}.block.dropout {encoder,decoder}.block.mixer.dropout "
            "decoder.block.cross.dropout",
            0.1,
        ),
        "layer_norm_epsilon": ("{encoder,decoder}.block.norm.eps {encoder,decoder}.stack.norm.eps", 1e-6),
        "tie_word_embeddings": ("", True),
        "scale_decoder_outputs": ("", bool),
        "d_ff": ("", 2048),
        "feed_forward_proj": ("", "relu"),
    },
)


def read(name: str, settings: Settings, names: Collection[str]) -> EncoderDecoderConfig | TransformerConfig:
    encoder_class = f"{_STEMS[name]}EncoderModel"
    known = f"{_STEMS[name]}ForConditionalGeneration", encoder_class, "T5WithLMHeadModel"
    settings.require("architectures", *([architecture] for architecture in known))
    default = "scale_decoder_outputs" not in settings.values and settings.get("tie_word_embeddings", bool)
    # null means false in transformers; mT5 never scales
    scaled = name != "mt5" and settings.get("scale_decoder_outputs", bool, default)
    # Later files of version 1.1 claim a tied head but contain a separate one.
    tied = settings.get("tie_word_embeddings", bool) and (scaled or "lm_head.weight" not in names)
    head = VocabularyHeadConfig(scale=settings.get("d_model", int) ** -0.5 if scaled else 1.0)
    feed = read_feed(settings)
    fields = {"encoder.block.feed_forward": feed, "decoder.block.feed_forward": feed}
    fields |= {"decoder.heads": {"vocabulary": head}, "tie": "all" if tied else "embeddings"}
    config = TABLE.read(settings, fields)
    if name == "umt5":
        parts = with_bias_per_layer(config.encoder), with_bias_per_layer(config.decoder)
        config = replace(config, encoder=parts[0], decoder=parts[1])
    return config.encoder if settings.architecture == encoder_class else config


def with_bias_per_layer(config: TransformerConfig) -> TransformerConfig:
    blocks = [
        replace(block, mixer=replace(expect(block.mixer, AttentionConfig), bias=f"{BIAS}{i}"))
        for i, block in enumerate(config.stack.blocks)
    ]
    biases = {f"{BIAS}{i}": config.stack.biases[BIAS] for i in range(len(blocks))}
    return replace(config, stack=replace(config.stack, blocks=tuple(blocks), biases=biases))


def read_feed(settings: Settings) -> FeedForwardConfig:
    """`feed_forward_proj` is an activation, optionally after "gated-"; a gated "gelu" is the tanh approximation."""
    hidden, rate = settings.get("d_ff", int), settings.get("dropout_rate", float)
    projection = settings.get("feed_forward_proj", str)
    name = {"gated-gelu": "gelu_new"}.get(projection, projection.removeprefix("gated-"))
    activation = Settings({"feed_forward_proj": name}, settings.source).activation("feed_forward_proj")
    gated = projection.startswith("gated-")
    settings.require("is_gated_act", gated)  # written and read by transformers
    settings.require("dense_act_fn", name)
    if gated:
        return GatedConfig(hidden, activation=activation, dropout=rate)
    return MLPConfig(hidden, activation=activation, bias=False, dropout=rate)


def write(name: str, config: EncoderDecoderConfig | TransformerConfig) -> dict[str, Any]:
    if isinstance(config, TransformerConfig):
        decoder = replace(TABLE.model.decoder, width=config.width, vocab_size=config.vocab_size)
        settings = write(name, EncoderDecoderConfig(config, decoder, "embeddings"))
        depth = settings["num_layers"]
        return {**settings, "num_decoder_layers": depth, "architectures": [f"{_STEMS[name]}EncoderModel"]}
    block = config.encoder.stack.blocks[0]
    mixer, _ = expect(block.mixer, AttentionConfig), expect(block.norm, RMSNormConfig)
    if isinstance(block.feed_forward, GatedConfig):
        feed = block.feed_forward
        projection = f"gated-{'gelu' if feed.activation == 'gelu_tanh' else published_activation(feed.activation)}"
    else:
        feed = expect(block.feed_forward, MLPConfig)
        projection = published_activation(feed.activation)
    bias = expect(next(iter(config.encoder.stack.biases.values()), None), RelativeConfig)
    head = expect(config.decoder.heads["vocabulary"], VocabularyHeadConfig)
    others = {
        "d_kv": mixer.head_size or config.width // mixer.heads,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.reach,
        "tie_word_embeddings": config.tie == "all",
        **({} if name == "mt5" else {"scale_decoder_outputs": head.scale != 1.0}),
        "d_ff": hidden_width(feed.hidden, feed.ratio, config.width),
        "feed_forward_proj": projection,
    }
    return {
        "model_type": name,
        "architectures": [f"{_STEMS[name]}ForConditionalGeneration"],
        "is_encoder_decoder": True,
        **TABLE.write(config, others),
    }


def rules(config: EncoderDecoderConfig | TransformerConfig) -> list[TensorRule]:
    if isinstance(config, TransformerConfig):
        table = "embed.table"
        copies = [rule(table, "shared.weight"), tied_copy(table, "encoder.embed_tokens.weight")]
        return [*copies, *stack_rules(config.stack, "encoder", "stack")]
    table = "decoder.embed.table"
    return [
        rule(table, "shared.weight"),
        tied_copy(table, "encoder.embed_tokens.weight"),
        tied_copy(table, "decoder.embed_tokens.weight"),
        *stack_rules(config.encoder.stack, "encoder", "encoder.stack"),
        *stack_rules(config.decoder.stack, "decoder", "decoder.stack"),
        vocabulary(config, table, "lm_head.weight", "decoder.heads.vocabulary"),
    ]


def stack_rules(stack: StackConfig, component: str, target: str) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        cross = {
            "read.before": "1.layer_norm",
            "cross.q": "1.EncDecAttention.q",
            "cross.kv": "1.EncDecAttention.{k,v}",
            "cross.out": "1.EncDecAttention.o",
        }
        last = 1 if block.cross is None else 2
        gated = isinstance(block.feed_forward, GatedConfig)
        up, source = ("gate_up", f"{last}.DenseReluDense.wi_{{0,1}}") if gated else ("up", f"{last}.DenseReluDense.wi")
        names = {
            "mix.before": "0.layer_norm",
            "mixer.qkv": "0.SelfAttention.{q,k,v}",
            "mixer.out": "0.SelfAttention.o",
            **(cross if block.cross is not None else {}),
            "feed.before": f"{last}.layer_norm",
            f"feed_forward.{up}": source,
            "feed_forward.down": f"{last}.DenseReluDense.wo",
        }
        return linears(names, bias=False)

    bias_source = f"{component}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *(rule(f"{target}.biases.{name}.table", bias_source.format(i)) for i, name in enumerate(stack.biases)),
        *block_rules(stack, f"{component}.block.{{}}.layer.", layer, target),
        rule(f"{target}.norm.weight", f"{component}.final_layer_norm.weight"),
    ]


def _family(name: str, **defaults: Any) -> Family:
    return Family(
        name,
        partial(read, name),
        partial(write, name),
        rules,
        aliases={
            "hidden_size": "d_model",
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "head_dim": "d_kv",
        },
        ignored=("n_positions",),
        skipped=(r"\.EncDecAttention\.relative_attention_bias\.weight$",),  # unused tensors of older files
        defaults={**TABLE.defaults, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, **defaults},
    )


_LATER: dict[str, Any] = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
_LATER |= {"feed_forward_proj": "gated-gelu"}
FAMILIES = (_family("t5"), _family("mt5", **_LATER), _family("umt5", **_LATER))
