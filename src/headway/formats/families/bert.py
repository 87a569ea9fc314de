"""BERT (Devlin et al. 2019): an encoder with post-norm layers, token types, and a head per task. Sentence encoders
(MiniLM and others) belong to this family as well.

DistilBERT (Sanh et al. 2019): half the layers, without token types and without a pooler. RoBERTa (Liu et al. 2019) and
XLM-R (Conneau et al. 2020): positions start after the padding id.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.errors import UserError
from headway.formats.heads import (
    POOLER,
    SPAN,
    SPAN_TENSOR,
    architecture,
    classifier,
    label_settings,
    num_outputs,
    pooler,
)
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    TensorRule,
    Unsplit,
    block_rules,
    expect,
    linear,
    linears,
    rule,
    tied_copy,
)
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
from headway.nn.models.score_biases import AlibiConfig
from headway.nn.parts.feedforward import ActivationName, GatedConfig, MLPConfig, hidden_width
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Full


def encoder_rows(dropout: float, norms: str) -> dict[str, tuple[Any, ...]]:
    """The settings of the layers of BERT, RoBERTa and vision transformers, with defaults; `norms` are fields with the
    number that is added to the variance.
    """
    return {
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("depth", 12),
        "num_attention_heads": ("block.mixer.heads", 12),
        "intermediate_size": ("block.feed_forward.hidden", 3072),
        "hidden_act": ("block.feed_forward.activation", "gelu", ACTIVATION),
        "hidden_dropout_prob": ("block.dropout embed.dropout", dropout),
        "attention_probs_dropout_prob": ("block.mixer.dropout", dropout),
        "layer_norm_eps": (norms, 1e-12),
    }


_BLOCK = BlockConfig(AttentionConfig(pattern=Full()), placement="post")
TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig((_BLOCK,), norm=None), embed=TokenEmbedConfig(LearnedConfig(), LayerNormConfig(), types=1)
    ),
    {
        "vocab_size": ("vocab_size", 30522),
        **encoder_rows(0.1, "block.norm.eps embed.norm.eps"),
        "max_position_embeddings": ("", 512),
        "type_vocab_size": ("embed.types", 2),
        "classifier_dropout": ("", float),
        "tie_word_embeddings": ("", True),
    },
)
IS_CAUSAL = "is_causal"  # not used by any encoder
OLDER = ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
OLDER += ("pooler_size_per_head", "pooler_type")  # not used by any class


def read_bert(settings: Settings, names: Collection[str]) -> TransformerConfig:
    heads: dict[str, HeadConfig] = {}
    kind = classifier(settings, names, "classifier.weight")
    if "cls.predictions.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        transform = TransformConfig(settings.activation("hidden_act"), norm)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    if "cls.seq_relationship.weight" in names:
        heads["next"] = PooledHeadConfig(2, dense=True, activation="tanh")
    heads |= read_classifier(settings, kind)
    if f"{SPAN_TENSOR}.weight" in names:
        heads["span"] = SPAN
    if "bert.pooler.dense.weight" in names and not heads.keys() & {"next", "classes"}:
        heads["pooled"] = POOLER
    if settings.values.get(_POSITIONS) != "alibi":
        return encoder(settings, heads)
    return with_alibi(settings, encoder(replace(settings, values={**settings.values, _POSITIONS: "absolute"}), heads))


_POSITIONS, _ALIBI = "position_embedding_type", "alibi"
_GATES: dict[str, ActivationName] = {"geglu": "gelu", "reglu": "relu"}  # activations by `feed_forward_type`


def with_alibi(settings: Settings, config: TransformerConfig) -> TransformerConfig:
    """Jina v2 (Günther et al. 2023): ALiBi in both directions instead of positions, and gated feed-forward layers."""
    settings.require("feed_forward_type", "original", *_GATES)
    gate, block = settings.get("feed_forward_type", str, "original"), config.stack.blocks[0]
    mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    if gate in _GATES:
        feed = GatedConfig(feed.hidden, activation=_GATES[gate], down_bias=True)
    block = replace(block, mixer=replace(mixer, bias=_ALIBI), feed_forward=feed)
    stack = replace(config.stack, blocks=(block,) * len(config.stack.blocks), biases={_ALIBI: AlibiConfig(mixer.heads)})
    embed = replace(expect(config.embed, TokenEmbedConfig), positions=None)
    return replace(config, stack=stack, embed=embed)


def without_alibi(config: TransformerConfig) -> tuple[TransformerConfig, dict[str, Any]]:
    """The reverse of `with_alibi`: BERT's configuration, and the settings that BERT has not."""
    block, head = config.stack.blocks[0], config.heads.get("vocabulary")
    mixer, feed, settings = expect(block.mixer, AttentionConfig), block.feed_forward, {"feed_forward_type": "original"}
    if isinstance(feed, GatedConfig):
        transform = head.transform if isinstance(head, VocabularyHeadConfig) else None
        settings["feed_forward_type"] = next(name for name, gate in _GATES.items() if gate == feed.activation)
        hidden = hidden_width(feed.hidden, feed.ratio, config.width)
        feed = MLPConfig(hidden, activation=transform.activation if transform else "gelu")
    block = replace(block, mixer=replace(mixer, bias=None), feed_forward=feed)
    stack = replace(config.stack, blocks=(block,) * len(config.stack.blocks), biases={})
    embed = replace(expect(config.embed, TokenEmbedConfig), positions=LearnedConfig())
    return replace(config, stack=stack, embed=embed), {**settings, _POSITIONS: "alibi"}


def read_classifier(settings: Settings, kind: str | None) -> dict[str, HeadConfig]:
    if kind is None:
        return {}
    rate = settings.get("classifier_dropout", float, settings.get("hidden_dropout_prob", float))
    if kind == "classes":
        head = PooledHeadConfig(num_outputs(settings), dense=True, activation="tanh", dropout=rate)
    else:
        head = PooledHeadConfig(num_outputs(settings), pool="tokens", dropout=rate)
    return {kind: head}


def encoder(settings: Settings, heads: dict[str, HeadConfig], offset: int = 0) -> TransformerConfig:
    """`offset` is the position of the first token."""
    settings.require("position_embedding_type", "absolute")
    settings.require("is_decoder", False)
    settings.require("add_cross_attention", False)
    settings.require("tie_word_embeddings", True)
    types = settings.get("type_vocab_size", int)
    if types < 1:
        raise UserError(f"{settings.source}: type_vocab_size is {types}; it should be at least 1")
    context = settings.max_positions("max_position_embeddings") - offset
    return TABLE.read(settings, {"context": context, "embed.positions": LearnedConfig(offset), "heads": heads})


def write_bert(config: TransformerConfig) -> dict[str, Any]:
    stem, others = "Bert", {_POSITIONS: "absolute"}
    if _ALIBI in config.stack.biases:
        stem, (config, others) = "JinaBert", without_alibi(config)
    architectures = architecture(stem, config.heads)
    return {"model_type": "bert", "architectures": architectures, **shared_settings(config), **others}


def shared_settings(config: TransformerConfig) -> dict[str, Any]:
    """The settings that BERT shares with RoBERTa."""
    embed, head = expect(config.embed, TokenEmbedConfig), config.heads.get("classes") or config.heads.get("tags")
    others = {
        "max_position_embeddings": (config.context or 0) + expect(embed.positions, LearnedConfig).offset,
        "classifier_dropout": head.dropout if isinstance(head, PooledHeadConfig) else None,
        "tie_word_embeddings": True,
    }
    return {**TABLE.write(config, others), **label_settings(config.heads)}


def bert_rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        *encoder_rules(config, "bert"),
        *pooler(config.heads, "bert.pooler.dense", {"next": "cls.seq_relationship", "classes": "classifier"}),
        *masked_rules(config, "cls.predictions", "transform.dense", "transform.LayerNorm"),
        *(linear("heads.tags.project", "classifier") if "tags" in config.heads else []),
        *(linear("heads.span.project", SPAN_TENSOR) if "span" in config.heads else []),
    ]


def encoder_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    names = {
        "mixer.qkv": "attention.self.{query,key,value}",
        "mixer.out": "attention.output.dense",
        "mix.last": "attention.output.LayerNorm",
    }
    plain = {
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed.last": "output.LayerNorm",
    }
    gated = {"feed_forward.down": "mlp.wo", "feed.last": "mlp.layernorm"}

    def layer(block: BlockConfig) -> list[TensorRule]:
        if not isinstance(block.feed_forward, GatedConfig):
            return linears(names | plain)
        packed = linear("feed_forward.gate_up", "mlp.gated_layers", bias=False, transform=Unsplit())
        return [*linears(names | gated), *packed]

    tables = {"": "word", "positions.": "position", "types.": "token_type"}
    if expect(config.embed, TokenEmbedConfig).positions is None:
        del tables["positions."]
    return [
        *(rule(f"embed.{to}table", f"{prefix}.embeddings.{name}_embeddings.weight") for to, name in tables.items()),
        *linear("embed.norm", f"{prefix}.embeddings.LayerNorm"),
        *block_rules(config.stack, f"{prefix}.encoder.layer.{{}}.", layer),
    ]


def masked_rules(config: TransformerConfig, prefix: str, dense: str, norm: str) -> list[TensorRule]:
    """The head for masked tokens, if there is one."""
    if "vocabulary" not in config.heads:
        return []
    target = "heads.vocabulary"
    return [
        *linears({f"{target}.transform.dense": f"{prefix}.{dense}", f"{target}.transform.norm": f"{prefix}.{norm}"}),
        rule(f"{target}.bias", f"{prefix}.bias"),
        tied_copy("embed.table", f"{prefix}.decoder.weight"),
        tied_copy(f"{target}.bias", f"{prefix}.decoder.bias"),
    ]


_BERT = Family(
    "bert",
    read_bert,
    write_bert,
    bert_rules,
    renames=(
        (r"^(?=(embeddings|encoder|pooler)\.)", "bert."),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    skipped=(r"\.embeddings\.position_ids$",),
    ignored=(*OLDER, IS_CAUSAL, "emb_pooler"),
    defaults=TABLE.defaults,
)


NORM = LayerNormConfig(1e-12)  # not configurable in the file
DISTILBERT_TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig((BlockConfig(AttentionConfig(pattern=Full()), norm=NORM, placement="post"),), norm=None),
        embed=TokenEmbedConfig(LearnedConfig(), NORM),
    ),
    {
        "vocab_size": ("vocab_size", 30522),
        "dim": ("width", 768),
        "n_layers": ("depth", 6),
        "n_heads": ("block.mixer.heads", 12),
        "hidden_dim": ("block.feed_forward.hidden", 3072),
        "activation": ("block.feed_forward.activation", "gelu", ACTIVATION),
        "dropout": ("block.dropout embed.dropout", 0.1),
        "attention_dropout": ("block.mixer.dropout", 0.1),
        "max_position_embeddings": ("context", 512, POSITIONS),
        "tie_word_embeddings": ("", True),
        "seq_classif_dropout": ("", 0.2),
    },
)


def read_distilbert(settings: Settings, names: Collection[str]) -> TransformerConfig:
    settings.require("tie_word_embeddings", True)
    heads: dict[str, HeadConfig] = {}
    kind = classifier(settings, names, "classifier.weight")
    if "vocab_projector.bias" in names:
        transform = TransformConfig(settings.activation("activation"), NORM)
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=transform)
    if kind == "classes":
        rate = settings.get("seq_classif_dropout", float)
        heads["classes"] = PooledHeadConfig(num_outputs(settings), dense=True, activation="relu", dropout=rate)
    if kind == "tags":
        rate = settings.get("dropout", float)
        heads["tags"] = PooledHeadConfig(num_outputs(settings), pool="tokens", dropout=rate)
    if f"{SPAN_TENSOR}.weight" in names:
        heads["span"] = SPAN
    return DISTILBERT_TABLE.read(settings, {"heads": heads})


def write_distilbert(config: TransformerConfig) -> dict[str, Any]:
    head = config.heads.get("classes")
    others = {"tie_word_embeddings": True}
    others |= {"seq_classif_dropout": head.dropout} if isinstance(head, PooledHeadConfig) else {}
    return {
        "model_type": "distilbert",
        "architectures": architecture("DistilBert", config.heads),
        **DISTILBERT_TABLE.write(config, others),
        **label_settings(config.heads),
    }


def distilbert_rules(config: TransformerConfig) -> list[TensorRule]:
    names = {
        "mixer.qkv": "attention.{q,k,v}_lin",
        "mixer.out": "attention.out_lin",
        "mix.last": "sa_layer_norm",
        "feed_forward.up": "ffn.lin1",
        "feed_forward.down": "ffn.lin2",
        "feed.last": "output_layer_norm",
    }
    tensor_rules = [
        rule("embed.table", "distilbert.embeddings.word_embeddings.weight"),
        rule("embed.positions.table", "distilbert.embeddings.position_embeddings.weight"),
        *linear("embed.norm", "distilbert.embeddings.LayerNorm"),
        *block_rules(config.stack, "distilbert.transformer.layer.{}.", lambda block: linears(names)),
    ]
    if "vocabulary" in config.heads:
        tensor_rules += linear("heads.vocabulary.transform.dense", "vocab_transform")
        tensor_rules += linear("heads.vocabulary.transform.norm", "vocab_layer_norm")
        tensor_rules.append(rule("heads.vocabulary.bias", "vocab_projector.bias"))
        tensor_rules.append(tied_copy("embed.table", "vocab_projector.weight"))
    if "classes" in config.heads:
        tensor_rules += linears({"heads.classes.dense": "pre_classifier", "heads.classes.project": "classifier"})
    if "tags" in config.heads:
        tensor_rules += linear("heads.tags.project", "classifier")
    if "span" in config.heads:
        tensor_rules += linear("heads.span.project", SPAN_TENSOR)
    return tensor_rules


_DISTILBERT = Family(
    "distilbert",
    read_distilbert,
    write_distilbert,
    distilbert_rules,
    renames=((r"^(?=(embeddings|transformer)\.)", "distilbert."),),
    skipped=(r"\.embeddings\.position_ids$",),
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    ignored=(IS_CAUSAL, "sinusoidal_pos_embds", "tie_weights_"),  # the table of positions is in the file
    defaults=DISTILBERT_TABLE.defaults,
)


def roberta_heads(settings: Settings, names: Collection[str], prefix: str) -> dict[str, HeadConfig]:
    heads: dict[str, HeadConfig] = {}
    if "lm_head.bias" in names:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig("gelu", norm))
    heads |= label_heads(settings, names)
    if f"{prefix}.pooler.dense.weight" in names:
        heads["pooled"] = POOLER
    return heads


def label_heads(settings: Settings, names: Collection[str]) -> dict[str, HeadConfig]:
    """The heads of `label_rules`."""
    is_text_classifier = settings.architecture.endswith("ForSequenceClassification")
    kind = classifier(settings, names, "classifier.out_proj.weight" if is_text_classifier else "classifier.weight")
    span = {"span": SPAN} if f"{SPAN_TENSOR}.weight" in names else {}
    return read_classifier(settings, kind) | span


def read_roberta(settings: Settings, names: Collection[str]) -> TransformerConfig:
    heads = roberta_heads(settings, names, "roberta")
    pad = settings.get("pad_token_id", int)
    if pad < 0:
        raise UserError(f"{settings.source}: pad_token_id is {pad}; positions start after it, so set it to 0 or more")
    return encoder(settings, heads, offset=pad + 1)


def write_roberta(name: str, stem: str, config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TokenEmbedConfig)
    return {
        "model_type": name,
        "architectures": architecture(stem, config.heads),
        **shared_settings(config),
        "pad_token_id": expect(embed.positions, LearnedConfig).offset - 1,
    }


def roberta_rules(config: TransformerConfig) -> list[TensorRule]:
    return [*encoder_rules(config, "roberta"), *roberta_head_rules(config, "roberta")]


def roberta_head_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    pooled = linear("heads.pooled.dense", f"{prefix}.pooler.dense") if "pooled" in config.heads else []
    return [*pooled, *masked_rules(config, "lm_head", "dense", "layer_norm"), *label_rules(config)]


def label_rules(config: TransformerConfig) -> list[TensorRule]:
    """The heads for labels and answers, whose names RoBERTa and its relatives share."""
    names = {
        "classes": {"heads.classes.dense": "classifier.dense", "heads.classes.project": "classifier.out_proj"},
        "tags": {"heads.tags.project": "classifier"},
        "span": {"heads.span.project": SPAN_TENSOR},
    }
    return [tensor_rule for head, layers in names.items() if head in config.heads for tensor_rule in linears(layers)]


def _roberta(name: str, stem: str, **defaults: Any) -> Family:
    return Family(
        name,
        read_roberta,
        partial(write_roberta, name, stem),
        roberta_rules,
        renames=((r"^(?=(embeddings|encoder|pooler)\.)", "roberta."),),
        skipped=(r"\.embeddings\.position_ids$",),
        ignored=(IS_CAUSAL,),
        defaults={**TABLE.defaults, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **defaults},
    )


FAMILIES = (_BERT, _DISTILBERT, _roberta("roberta", "Roberta", vocab_size=50265), _roberta("xlm-roberta", "XLMRoberta"))
