"""GPT-2 (Radford et al. 2019): linear layers stored transposed; the tanh approximation of GELU.

GPT (Radford et al. 2018): post-norm layers without a final norm; its "gelu" is the tanh approximation.

The Decision Transformer (Chen et al. 2021) as in transformers: GPT-2's layers on linear projections of the inputs. Its
GPT-2 has tables of tokens and positions. The first is never read, and every token gets the first row of the second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headway.errors import UserError, nearest
from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingKind, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    TensorRule,
    Transposed,
    Unsplit,
    block_rules,
    expect,
    linear,
    linears,
    rule,
)
from headway.nn.models import (
    BlockConfig,
    StackConfig,
    StateVectorConfig,
    StepHeadConfig,
    TokenEmbedConfig,
    TrajectoryEmbedConfig,
    TransformerConfig,
)
from headway.nn.models.trajectories import step_heads
from headway.nn.parts.feedforward import ActivationName
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


def stack_rows(heads: int, depth: int, activation: str) -> dict[str, tuple[Any, ...]]:
    """The settings of the layers, with defaults."""
    return {
        "n_layer": ("depth", depth),
        "n_head": ("block.mixer.heads", heads),
        "n_inner": ("block.feed_forward.hidden", int, SettingKind(_read_hidden)),
        "activation_function": ("block.feed_forward.activation", activation, ACTIVATION),
        "layer_norm_epsilon": ("block.norm.eps stack.norm.eps", 1e-5),
        "attn_pdrop": ("block.mixer.dropout", 0.1),
        "resid_pdrop": ("block.dropout", 0.1),
    }


def _read_hidden(settings: Settings, name: str) -> int:
    width = settings.get("n_embd" if "n_embd" in settings.values else "hidden_size", int)
    return settings.optional(name, int) or 4 * width


GPT2_TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((BlockConfig(),)), embed=TokenEmbedConfig(LearnedConfig())),
    {
        "vocab_size": ("vocab_size", 50257),
        "n_embd": ("width", 768),
        "n_positions": ("context", 1024, POSITIONS),
        **stack_rows(12, 12, "gelu_new"),
        "embd_pdrop": ("embed.dropout", 0.1),
        "tie_word_embeddings": ("", True),
    },
)


def require_plain_attention(settings: Settings) -> None:
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("scale_attn_weights", True)
    settings.require("add_cross_attention", False)


def read_gpt2(settings: Settings, names: Collection[str]) -> TransformerConfig:
    require_plain_attention(settings)
    return GPT2_TABLE.read(settings, read_heads(settings))


def write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    classes = PublishedClasses("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model")
    return {"model_type": "gpt2", **write_heads(config, classes), **GPT2_TABLE.write(config)}


def gpt2_rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        rule("embed.table", "transformer.wte.weight"),
        rule("embed.positions.table", "transformer.wpe.weight"),
        *stack_rules(config, "transformer"),
        *head_rules(config),
    ]


def stack_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    """The layers and the final norm, under `prefix`."""

    def layer(block: BlockConfig) -> list[TensorRule]:
        return [
            *linear("mix.before", "ln_1"),
            *conv("mixer.qkv", "attn.c_attn"),
            *conv("mixer.out", "attn.c_proj"),
            *linear("feed.before", "ln_2"),
            *conv("feed_forward.up", "mlp.c_fc"),
            *conv("feed_forward.down", "mlp.c_proj"),
        ]

    return [*block_rules(config.stack, f"{prefix}.h.{{}}.", layer), *linear("stack.norm", f"{prefix}.ln_f")]


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
    defaults=GPT2_TABLE.defaults,
)


ACTIVATIONS: dict[str, ActivationName] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
PUBLISHED_ACTIVATIONS: dict[ActivationName, str] = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}


def _read_activation(settings: Settings, name: str) -> ActivationName:
    activation = settings.get(name, str)
    if activation not in ACTIVATIONS:
        raise UserError(f"{settings.source}: {name} is {activation!r}; {nearest(activation, ACTIVATIONS)}")
    return ACTIVATIONS[activation]


_GPT_ACTIVATION = SettingKind(_read_activation, lambda name: PUBLISHED_ACTIVATIONS[name])

GPT_TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig((BlockConfig(placement="post"),), norm=None), embed=TokenEmbedConfig(LearnedConfig())
    ),
    {
        "vocab_size": ("vocab_size", 40478),
        "n_embd": ("width", 768),
        "n_positions": ("context", 512, POSITIONS),
        "n_layer": ("depth", 12),
        "n_head": ("block.mixer.heads", 12),
        "afn": ("block.feed_forward.activation", "gelu", _GPT_ACTIVATION),
        "layer_norm_epsilon": ("block.norm.eps", 1e-5),
        "attn_pdrop": ("block.mixer.dropout", 0.1),
        "resid_pdrop": ("block.dropout", 0.1),
        "embd_pdrop": ("embed.dropout", 0.1),
        "tie_word_embeddings": ("", True),
    },
)


def read_gpt(settings: Settings, names: Collection[str]) -> TransformerConfig:
    return GPT_TABLE.read(settings, read_heads(settings))


def write_gpt(config: TransformerConfig) -> dict[str, Any]:
    classes = PublishedClasses("OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification", "OpenAIGPTModel")
    return {"model_type": "openai-gpt", **write_heads(config, classes), **GPT_TABLE.write(config)}


def gpt_rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        return [
            *conv("mixer.qkv", "attn.c_attn"),
            *conv("mixer.out", "attn.c_proj"),
            *linear("mix.last", "ln_1"),
            *conv("feed_forward.up", "mlp.c_fc"),
            *conv("feed_forward.down", "mlp.c_proj"),
            *linear("feed.last", "ln_2"),
        ]

    return [
        rule("embed.table", "transformer.tokens_embed.weight"),
        rule("embed.positions.table", "transformer.positions_embed.weight"),
        *block_rules(config.stack, "transformer.h.{}.", layer),
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
    defaults=GPT_TABLE.defaults,
)


_HEADS = {
    "heads.states.project": "predict_state",
    "heads.actions.project": "predict_action.0",
    "heads.returns.project": "predict_return",
}


class FoldedBias:
    """The norm's bias plus the first row of a table, which every token gets. Without such a table, the file gets a
    row of zeros, and another for its token table.
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0] + parts[1][0]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor, torch.zeros_like(tensor)[None], torch.zeros_like(tensor)[None]]


TRAJECTORY_TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig((BlockConfig(),)), embed=TrajectoryEmbedConfig(StateVectorConfig()), tie="none"
    ),
    {
        "hidden_size": ("width", 128),
        "state_dim": ("embed.states.size", 17),
        "act_dim": ("embed.actions", 4),
        "max_ep_len": ("embed.timesteps", 4096),
        "action_tanh": ("", True),
        "vocab_size": ("embed.unread", 1),
        "n_positions": ("embed.rows", 1024),
        **stack_rows(1, 3, "relu"),
        "embd_pdrop": ("embed.dropout", 0.1),
    },
)


def read_trajectories(settings: Settings, names: Collection[str]) -> TransformerConfig:
    require_plain_attention(settings)
    has_tables = settings.get("n_positions", int) != 1
    config = TRAJECTORY_TABLE.read(settings, {} if has_tables else {"embed.rows": 0, "embed.unread": 0})
    heads = step_heads(config.embed, states=True, returns=True)
    if not settings.get("action_tanh", bool):
        heads["actions"] = StepHeadConfig(config.embed.actions, 1, config.embed.tokens)
    return replace(config, heads=heads)


def write_trajectories(config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TrajectoryEmbedConfig)
    if embed.discrete or not isinstance(embed.norm, LayerNormConfig):
        raise UserError("this family takes continuous actions and normalises the embedding; choose another family")
    settings = TRAJECTORY_TABLE.write(
        config,
        {
            "action_tanh": expect(config.heads["actions"], StepHeadConfig).activation == "tanh",
            "vocab_size": embed.unread or 1,
            "n_positions": embed.rows or 1,
        },
    )
    return {"model_type": "decision_transformer", "architectures": ["DecisionTransformerModel"], **settings}


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
        *linears({"embed.returns": "embed_return", "embed.states": "embed_state", "embed.actions": "embed_action"}),
        rule("embed.norm.weight", "embed_ln.weight"),
        *bias,
        *stack_rules(config, "encoder"),
        *linears(_HEADS),
    ]


_DECISION_TRANSFORMER = Family(
    "decision_transformer",
    read_trajectories,
    write_trajectories,
    trajectory_rules,
    skipped=(r"\.attn\.(bias|masked_bias)$",),
    aliases={name: own for name, own in ALIASES.items() if name != "hidden_size"},
    ignored=OLDER,
    defaults=TRAJECTORY_TABLE.defaults,
)
FAMILIES = (_GPT2, _GPT, _DECISION_TRANSFORMER)
