"""GPT-2 (Radford et al. 2019): linear layers stored transposed; the tanh approximation of GELU.

GPT (Radford et al. 2018): post-norm layers without a final norm; its "gelu" is the tanh approximation.

The Decision Transformer (Chen et al. 2021) as in transformers: GPT-2's layers on linear projections of the inputs. Its
GPT-2 has tables of tokens and positions. The first is never read, and every token gets the first row of the second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from headway.errors import UserError, nearest
from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, TensorRule, Transposed, Unsplit, expect, layers, linear, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    StackConfig,
    StateVectorConfig,
    StepHeadConfig,
    TokenEmbedConfig,
    TrajectoryEmbedConfig,
    TransformerConfig,
    cycle,
)
from headway.nn.models.trajectories import step_heads
from headway.nn.parts.feedforward import ActivationName, MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig

ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SUMMARY = ("summary_activation", "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels")
SUMMARY += ("summary_type", "summary_use_proj")  # settings of a second head, which is not supported
OLDER = ("n_ctx", "n_special", "predict_special_tokens")  # no longer used by any class


def read_gpt2(settings: Settings, names: Collection[str]) -> TransformerConfig:
    width = settings.get("n_embd", int)
    block, norm = read_block(settings, width)
    return TransformerConfig(
        width,
        settings.get("vocab_size", int),
        settings.max_positions("n_positions"),
        StackConfig(cycle((block,), settings.get("n_layer", int)), norm),
        TokenEmbedConfig(positions=LearnedConfig(), dropout=settings.get("embd_pdrop", float)),
        *read_heads(settings),
    )


def read_block(settings: Settings, width: int) -> tuple[BlockConfig, LayerNormConfig]:
    """Return a layer, and the norm after the last one."""
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("scale_attn_weights", True)
    settings.require("add_cross_attention", False)
    norm = LayerNormConfig(settings.get("layer_norm_epsilon", float))
    hidden = settings.optional("n_inner", int) or 4 * width
    feed = MLPConfig(hidden=hidden, activation=settings.activation("activation_function"))
    mixer = AttentionConfig(settings.get("n_head", int), dropout=settings.get("attn_pdrop", float))
    return BlockConfig(mixer, None, feed, norm, dropout=settings.get("resid_pdrop", float)), norm


def write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TokenEmbedConfig)
    return {
        "model_type": "gpt2",
        **write_heads(config, PublishedClasses("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model")),
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_positions": config.context,
        **stack_settings(config),
        "embd_pdrop": embed.dropout,
    }


def stack_settings(config: TransformerConfig) -> dict[str, Any]:
    """The settings of the layers in a config.json."""
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "n_layer": len(config.stack.blocks),
        "n_head": attention.heads,
        "n_inner": feed.hidden if feed.hidden is not None else round(feed.ratio * config.width),
        "activation_function": published_activation(feed.activation),
        "layer_norm_epsilon": expect(block.norm, LayerNormConfig).eps,
        "attn_pdrop": attention.dropout,
        "resid_pdrop": block.dropout,
    }


def gpt2_rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        rule("embed.table", "transformer.wte.weight"),
        rule("embed.positions.table", "transformer.wpe.weight"),
        *stack_rules(config, "transformer"),
        *head_rules(config),
    ]


def stack_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    """The layers and the final norm, under `prefix`."""

    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"{prefix}.h.{i}"
        return [
            *linear(f"{target}.mix.before", f"{source}.ln_1"),
            *conv(f"{target}.mixer.qkv", f"{source}.attn.c_attn"),
            *conv(f"{target}.mixer.out", f"{source}.attn.c_proj"),
            *linear(f"{target}.feed.before", f"{source}.ln_2"),
            *conv(f"{target}.feed_forward.up", f"{source}.mlp.c_fc"),
            *conv(f"{target}.feed_forward.down", f"{source}.mlp.c_proj"),
        ]

    return [*layers(len(config.stack.blocks), layer), *linear("stack.norm", f"{prefix}.ln_f")]


def conv(target: str, source: str) -> list[TensorRule]:
    """A layer with a transposed weight (Conv1D); query, key and value are fused there as here."""
    return [
        rule(f"{target}.weight", f"{source}.weight", transform=Transposed()),
        rule(f"{target}.bias", f"{source}.bias", transform=Unsplit()),
    ]


_GPT2 = Family(
    "gpt2",
    read_gpt2,
    write_gpt2,
    gpt2_rules,
    renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
    skipped=(r"\.attn\.(bias|masked_bias)$",),
    aliases=ALIASES,
    ignored=(*SUMMARY, *OLDER),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
)


ACTIVATIONS: dict[str, ActivationName] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
PUBLISHED_ACTIVATIONS: dict[ActivationName, str] = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
GPT_CLASSES = PublishedClasses("OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification", "OpenAIGPTModel")


def read_gpt(settings: Settings, names: Collection[str]) -> TransformerConfig:
    activation = settings.get("afn", str)
    if activation not in ACTIVATIONS:
        raise UserError(f"{settings.source}: afn is {activation!r}; {nearest(activation, ACTIVATIONS)}")
    block = BlockConfig(
        AttentionConfig(settings.get("n_head", int), dropout=settings.get("attn_pdrop", float)),
        None,
        MLPConfig(activation=ACTIVATIONS[activation]),
        LayerNormConfig(settings.get("layer_norm_epsilon", float)),
        "post",
        dropout=settings.get("resid_pdrop", float),
    )
    return TransformerConfig(
        settings.get("n_embd", int),
        settings.get("vocab_size", int),
        settings.max_positions("n_positions"),
        StackConfig(cycle((block,), settings.get("n_layer", int)), None),
        TokenEmbedConfig(positions=LearnedConfig(), dropout=settings.get("embd_pdrop", float)),
        *read_heads(settings),
    )


def write_gpt(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "model_type": "openai-gpt",
        **write_heads(config, GPT_CLASSES),
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_positions": config.context,
        "n_layer": len(config.stack.blocks),
        "n_head": mixer.heads,
        "afn": PUBLISHED_ACTIVATIONS[feed.activation],
        "layer_norm_epsilon": expect(block.norm, LayerNormConfig).eps,
        "attn_pdrop": mixer.dropout,
        "resid_pdrop": block.dropout,
        "embd_pdrop": expect(config.embed, TokenEmbedConfig).dropout,
    }


def gpt_rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"transformer.h.{i}"
        return [
            *conv(f"{target}.mixer.qkv", f"{source}.attn.c_attn"),
            *conv(f"{target}.mixer.out", f"{source}.attn.c_proj"),
            *linear(f"{target}.mix.last", f"{source}.ln_1"),
            *conv(f"{target}.feed_forward.up", f"{source}.mlp.c_fc"),
            *conv(f"{target}.feed_forward.down", f"{source}.mlp.c_proj"),
            *linear(f"{target}.feed.last", f"{source}.ln_2"),
        ]

    return [
        rule("embed.table", "transformer.tokens_embed.weight"),
        rule("embed.positions.table", "transformer.positions_embed.weight"),
        *layers(len(config.stack.blocks), layer),
        *head_rules(config),
    ]


_GPT = Family(
    "openai-gpt",
    read_gpt,
    write_gpt,
    gpt_rules,
    renames=((r"^(?=(tokens_embed|positions_embed|h)\.)", "transformer."),),
    skipped=(r"\.attn\.bias$", r"position_ids$"),
    aliases=ALIASES,
    ignored=(*SUMMARY, *OLDER),
    defaults={
        "vocab_size": 40478,
        "n_positions": 512,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "afn": "gelu",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
)


_NAMES = {"heads.states": "predict_state", "heads.actions": "predict_action.0", "heads.returns": "predict_return"}


class FoldedBias:
    """The norm's bias plus the first row of a table, which every token gets. Without such a table, the file gets a
    row of zeros, and another for its token table.
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0] + parts[1][0]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor, torch.zeros_like(tensor)[None], torch.zeros_like(tensor)[None]]


def read_trajectories(settings: Settings, names: Collection[str]) -> TransformerConfig:
    width = settings.get("hidden_size", int)
    block, norm = read_block(settings, width)
    rows = settings.get("n_positions", int)
    embed = TrajectoryEmbedConfig(
        StateVectorConfig(settings.get("state_dim", int)),
        settings.get("act_dim", int),
        timesteps=settings.get("max_ep_len", int),
        rows=0 if rows == 1 else rows,
        unread=0 if rows == 1 else settings.get("vocab_size", int),
        dropout=settings.get("embd_pdrop", float),
    )
    heads = step_heads(embed, states=True, returns=True)
    if not settings.get("action_tanh", bool):
        heads["actions"] = StepHeadConfig(embed.actions, 1, embed.tokens)
    return TransformerConfig(
        width,
        stack=StackConfig(cycle((block,), settings.get("n_layer", int)), norm),
        embed=embed,
        heads=heads,
        tie="none",
    )


def write_trajectories(config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TrajectoryEmbedConfig)
    if embed.discrete or not isinstance(embed.norm, LayerNormConfig):
        raise UserError("this family takes continuous actions and normalises the embedding; choose another family")
    return {
        "model_type": "decision_transformer",
        "architectures": ["DecisionTransformerModel"],
        "hidden_size": config.width,
        "state_dim": expect(embed.states, StateVectorConfig).size,
        "act_dim": embed.actions,
        "max_ep_len": embed.timesteps,
        "action_tanh": expect(config.heads["actions"], StepHeadConfig).activation == "tanh",
        "vocab_size": embed.unread or 1,
        "n_positions": embed.rows or 1,
        **stack_settings(config),
        "embd_pdrop": embed.dropout,
    }


def trajectory_rules(config: TransformerConfig) -> list[TensorRule]:
    embed = expect(config.embed, TrajectoryEmbedConfig)
    tables = ("encoder.wpe.weight", "encoder.wte.weight")
    if embed.rows:
        bias = [rule("embed.places.table", tables[0]), rule("embed.unread.table", tables[1])]
        bias.append(rule("embed.norm.bias", "embed_ln.bias"))
    else:
        bias = [rule("embed.norm.bias", "embed_ln.bias", *tables, transform=FoldedBias())]
    return [
        rule("embed.timesteps.table", "embed_timestep.weight"),
        *linear("embed.returns", "embed_return"),
        *linear("embed.states", "embed_state"),
        *linear("embed.actions", "embed_action"),
        rule("embed.norm.weight", "embed_ln.weight"),
        *bias,
        *stack_rules(config, "encoder"),
        *(tensor_rule for target, source in _NAMES.items() for tensor_rule in linear(f"{target}.project", source)),
    ]


_DECISION_TRANSFORMER = Family(
    "decision_transformer",
    read_trajectories,
    write_trajectories,
    trajectory_rules,
    skipped=(r"\.attn\.(bias|masked_bias)$",),
    aliases={name: own for name, own in ALIASES.items() if name != "hidden_size"},
    ignored=OLDER,
    defaults={
        "hidden_size": 128,
        "state_dim": 17,
        "act_dim": 4,
        "max_ep_len": 4096,
        "action_tanh": True,
        "vocab_size": 1,
        "n_positions": 1024,
        "n_layer": 3,
        "n_head": 1,
        "activation_function": "relu",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
    },
)
FAMILIES = (_GPT2, _GPT, _DECISION_TRANSFORMER)
