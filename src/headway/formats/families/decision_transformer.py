"""The Decision Transformer (Chen et al. 2021) as in transformers: GPT-2's layers on linear projections of the inputs.

Its GPT-2 has tables of tokens and positions. The first is never read, and every token gets the first row of the second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.families.gpt2 import ALIASES, OLDER, read_block, stack_rules, stack_settings
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect, linear, rule
from headway.nn.models import (
    StackConfig,
    StateVectorConfig,
    StepHeadConfig,
    TrajectoryEmbedConfig,
    TransformerConfig,
    cycle,
)
from headway.nn.models.trajectories import step_heads
from headway.nn.parts.norm import LayerNormConfig

_NAMES = {"heads.states": "predict_state", "heads.actions": "predict_action.0", "heads.returns": "predict_return"}


class FoldedBias:
    """The norm's bias plus the first row of a table, which every token gets. Without such a table, the file gets a
    row of zeros, and another for its token table.
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0] + parts[1][0]]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor, torch.zeros_like(tensor)[None], torch.zeros_like(tensor)[None]]


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
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


def write(config: TransformerConfig) -> dict[str, Any]:
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


def rules(config: TransformerConfig) -> list[TensorRule]:
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


FAMILY = Family(
    "decision_transformer",
    read,
    write,
    rules,
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
