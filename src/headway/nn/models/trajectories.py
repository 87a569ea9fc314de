"""Trajectory embeddings: return-to-go, state and action of each step as consecutive tokens (Chen et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout, cached_on_host, to_device
from headway.nn.models.agents import ObservationConfig, StateVectorConfig
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.positions import PositionsConfig
from headway.nn.parts.projection import Projection


class TrajectoryInputs(NamedTuple):
    """K steps of B rows. `returns` are scaled returns-to-go, None for a model without them; `actions` are Int[B, K]
    choices or Float[B, K, A], and may omit the last step's action, which is then still unknown.
    """

    returns: Float[Tensor, "B K"] | None
    states: Float[Tensor, "B K *S"]
    actions: Tensor
    timesteps: Int[Tensor, "B K"]

    def to(self, device: torch.device | str) -> TrajectoryInputs:
        return to_device(self, device)


@register("trajectories")
@dataclass(frozen=True)
class TrajectoryEmbedConfig(EmbedConfig):
    """Returns-to-go, states and actions as tokens. Without returns a step is its state and action: behaviour cloning.

    A learned timestep vector is added to all tokens of a step; with `anchored` it is the vector of the row's first
    step, as in the models for Atari, which also have token positions. If `rows` is not 0, every token gets the first
    row of a position table after the norm; models in the transformers library have this table and an unused token
    table.
    """

    states: ObservationConfig = StateVectorConfig()  # encoder of a state
    actions: int = 1  # number of choices, or size of an action
    discrete: bool = False  # whether actions are choices
    returns: bool = True  # whether returns-to-go are inputs
    timesteps: int = 1000  # number of timesteps with a learned vector
    anchored: bool = False  # whether all steps of a row have the vector of its first step
    activation: ActivationName | None = None  # activation after the layers over returns and actions
    positions: PositionsConfig | None = None  # position vectors of tokens, in addition to timesteps
    norm: NormConfig | None = LayerNormConfig()  # norm of all tokens
    rows: int = 0  # rows of the position table of published models
    unread: int = 0  # rows of the unused token table of published models
    dropout: float = 0.0  # dropout rate of all tokens

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return 3 if self.returns else 2

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        shape = " x ".join(map(str, self.states.shape))
        actions = f"{self.actions} {'choices' if self.discrete else 'dimensions'}"
        limit = "no limit" if context is None else context
        return f"states of {shape}, actions of {actions}, {self.tokens} tokens per step, context {limit}"

    def summary(self) -> str:
        return f"{self.kind}, {self.timesteps:,} timesteps, states by {self.states.kind}"  # type: ignore[attr-defined]

    def build(self, width: int, vocab_size: int, context: int | None) -> nn.Module:
        if self.actions < 1 or self.timesteps < 1:
            raise ConfigError(
                f"model.embed.actions={self.actions} and model.embed.timesteps={self.timesteps}; set both to at least 1"
            )
        return TrajectoryEmbed(self, width, context)


@cached_on_host
def _token_layout(layout: Layout, tokens: int, length: int) -> Layout:
    """The layout of the first `length` tokens, `tokens` for each step."""
    first = layout.positions[..., None] * tokens
    positions = torch.where(layout.mask[..., None], first + torch.arange(tokens, device=first.device), -1)
    return Layout(positions.flatten(1)[:, :length])


class TrajectoryEmbed(Embed):
    """Chen et al. 2021, algorithm 1. Takes the steps' layout and returns the tokens' layout."""

    def __init__(self, config: TrajectoryEmbedConfig, width: int, context: int | None) -> None:
        super().__init__()
        self.config = config
        self.returns = Projection(1, width) if config.returns else None
        self.states = config.states.build(width)
        self.actions = ChoiceEmbed(config.actions, width) if config.discrete else Projection(config.actions, width)
        self.timesteps = ChoiceEmbed(config.timesteps, width)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.positions = config.positions.build(width, context) if config.positions else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.places = ChoiceEmbed(config.rows, width) if config.rows else None
        self.unread = ChoiceEmbed(config.unread, width) if config.unread else None
        self.dropout = Dropout(config.dropout)

    def default_layout(self, inputs: TrajectoryInputs) -> Layout:
        return super().default_layout(inputs.timesteps)

    def forward(self, inputs: TrajectoryInputs, layout: Layout) -> tuple[Float[Tensor, "B T D"], Layout]:
        """T is the number of tokens in all steps, without an unknown last action's."""
        known, steps = inputs.actions.shape[1], inputs.timesteps.shape[1]
        if not steps - 1 <= known <= steps:
            raise UserError(f"{steps} steps but {known} actions; pass one action per step, or omit only the last")
        times = self._times(inputs.timesteps, layout)
        before = self._before_action(inputs, times)
        action = self.activation(self.actions(inputs.actions)) + times[:, :known]
        action = F.pad(action, (0, 0, 0, steps - known))
        x = torch.stack([*before, action], 2).flatten(1, 2)[:, : self.config.tokens * steps - (steps - known)]
        length, device = x.shape[1], layout.positions.device
        if layout.dense:
            return self._finish(x, Layout.full(layout.batch, length, device=device))
        return self._finish(x, _token_layout(layout, self.config.tokens, length))

    def step_tokens(
        self, action: Tensor, inputs: TrajectoryInputs, layout: Layout
    ) -> tuple[Float[Tensor, "B T D"], Layout]:
        """The tokens that one more step adds when continuing from states: the previous step's action ([B] or [B, A]),
        and the known inputs of this step. `inputs` and `layout` are of this step only.
        """
        times = self._times(inputs.timesteps, layout)
        earlier = times if self.config.anchored else self.timesteps((inputs.timesteps - 1).clamp(min=0))
        before = self._before_action(inputs, times)
        x = torch.cat([self.activation(self.actions(action[:, None])) + earlier, *before], 1)
        first = self.config.tokens * layout.positions - 1
        positions = first + torch.arange(x.shape[1], device=first.device)
        return self._finish(x, Layout(torch.where(layout.mask, positions, -1)))

    def _before_action(self, inputs: TrajectoryInputs, times: Tensor) -> list[Tensor]:
        """The tokens of each step before its action, [B, K, D] each."""
        tokens = [self.states(inputs.states) + times]
        if self.returns is not None:
            if inputs.returns is None:
                raise UserError("this model needs returns-to-go; pass one per step")
            tokens.insert(0, self.activation(self.returns(inputs.returns[..., None])) + times)
        return tokens

    def _times(self, timesteps: Int[Tensor, "B K"], layout: Layout) -> Float[Tensor, "B K D"]:
        if self.config.anchored:
            timesteps = timesteps - layout.positions.clamp(min=0)
        return self.timesteps(timesteps)

    def _finish(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        if self.positions is not None:
            x = x + self.positions(layout, x)
        x = self.norm(x)
        if self.places is not None:
            x = x + self.places.table[0]
        return self.dropout(x), layout


class ChoiceEmbed(nn.Module):
    """A learned vector per choice."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        return F.embedding(ids, self.table)


@register("steps")
@dataclass(frozen=True)
class StepHeadConfig(HeadConfig):
    """Numbers or logits from one token of each step."""

    outputs: int = 1  # numbers or logits per step
    token: int = 1  # index of the step's token to use, from 0
    tokens: int = 3  # tokens per step
    activation: ActivationName | None = None  # activation after the linear layer
    bias: bool = True  # whether the linear layer has a bias

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> StepHead:
        return StepHead(self, width)


class StepHead(nn.Module):
    def __init__(self, config: StepHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.project = Projection(width, config.outputs, config.bias)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B K O"]:
        return self.predict(x[:, self.config.token :: self.config.tokens])

    def predict(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Outputs from the vectors of the selected tokens."""
        return self.activation(self.project(x))


def step_heads(embed: TrajectoryEmbedConfig, *, states: bool = False, returns: bool = False) -> dict[str, HeadConfig]:
    """The action head over the state token, and optional heads for the next state and return over the action token."""
    last, choices = embed.tokens - 1, embed.discrete
    heads: dict[str, HeadConfig] = {
        "actions": StepHeadConfig(embed.actions, last - 1, embed.tokens, None if choices else "tanh")
    }
    if states:
        heads["states"] = StepHeadConfig(embed.states.shape[0], last, embed.tokens)
    if returns:
        heads["returns"] = StepHeadConfig(1, last, embed.tokens)
    return heads
