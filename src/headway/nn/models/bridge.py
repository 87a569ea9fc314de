"""What an encoder hands over to its decoder: what it says of each token, the states it has come to, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers import Bidirectional, Mixer
from headway.nn.models.block import Block
from headway.nn.models.stack import Stack
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.projection import Projection

Vectors = tuple[Tensor, ...]  # [B, N] each
Ends = tuple[Vectors, ...]  # of each direction of a mixer, the forward one first


@family
@dataclass(frozen=True)
class BridgeConfig:
    """How a decoder hears of the source."""

    memory: ClassVar[bool] = True  # whether its blocks read the encoder's output
    state: ClassVar[bool] = False  # whether its rows start from the encoder's last states


@register("memory")
@dataclass(frozen=True)
class MemoryBridgeConfig(BridgeConfig):
    """The decoder's blocks read the encoder's output."""


@register("state")
@dataclass(frozen=True)
class StateBridgeConfig(BridgeConfig):
    """The vectors that the encoder's mixers have come to start those of the decoder's rows.

    layers: block i starts from block i of the encoder ("same"), or each from the encoder's "last".
    directions: of a bidirectional encoder, whose vectors are handed over.
    summary: a vector of that size stands between: activation(V h) of the last block's vectors h (Cho et al. 2014), from
    which all blocks start and which is the whole memory where there is one.
    project: whether activation(V' h) starts a block, and not the h; None where the sizes differ.
    """

    memory: ClassVar[bool] = False
    state: ClassVar[bool] = True

    layers: Literal["same", "last"] = "same"
    directions: Literal["both", "forward", "backward"] = "both"
    summary: int | None = None
    project: bool | None = None
    activation: ActivationName | None = None  # after the maps that hand states over

    def __post_init__(self) -> None:
        if self.summary is not None and self.summary < 1:
            raise ConfigError(f"bridge.summary is {self.summary}; give the size of a vector, or none")


@register("both")
@dataclass(frozen=True)
class BothBridgeConfig(StateBridgeConfig):
    """States are handed over, and the decoder's blocks read the encoder's output, or else its `summary`."""

    memory: ClassVar[bool] = True


class Handed(NamedTuple):
    """What a bridge makes of the ends of an encoder."""

    starts: tuple[Vectors, ...]  # of each block of the decoder
    summary: Float[Tensor, "B N"] | None


class Bridge(nn.Module):
    """From what the encoder's mixers have come to, to what the decoder's start from."""

    def __init__(self, config: StateBridgeConfig, encoder: Stack, decoder: Stack) -> None:
        """Raises ConfigError, by name, for mixers whose state is no vectors, and for sizes that do not fit."""
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.sources = _sources(config, len(encoder.blocks), len(decoder.blocks))
        inner = [_sizes(encoder, number, config.directions, "encoder") for number in self.sources]
        self.sizes = [_sizes(decoder, number, "both", "decoder") for number in range(len(decoder.blocks))]
        self.summary = None
        if config.summary is not None:
            self.summary = Projection(sum(inner[-1]), config.summary)
            inner = [(config.summary,)] * len(inner)
        self.maps = nn.ModuleList(_map(config, *sizes, n) for n, sizes in enumerate(zip(inner, self.sizes)))

    def forward(self, ends: Sequence[Ends | None]) -> Handed:
        """`ends` are those of the encoder's blocks, at least of the ones in `sources`."""
        found = [self._of(ends[number]) for number in self.sources]
        summary = None
        if self.summary is not None:
            summary = self.activation(self.summary(torch.cat(found[-1], dim=-1)))
            found = [(summary,)] * len(found)
        pairs = zip(self.maps, found, self.sizes)
        return Handed(tuple(self._through(through, vectors, sizes) for through, vectors, sizes in pairs), summary)

    def _of(self, end: Ends | None) -> Vectors:
        ends = cast(Ends, end)
        if len(ends) == 1 or self.config.directions == "both":
            return tuple(vector for direction in ends for vector in direction)
        return ends[0 if self.config.directions == "forward" else 1]

    def _through(self, through: nn.Module, vectors: Vectors, sizes: tuple[int, ...]) -> Vectors:
        if not isinstance(through, Projection):
            return vectors
        return self.activation(through(torch.cat(vectors, dim=-1))).split(sizes, dim=-1)


def check_single(*layouts: Layout) -> None:
    """UserError for rows of several documents: an encoder hands one state a row over."""
    if not all(layout.single for layout in layouts):
        raise UserError("packed rows hold several documents, and a state is handed over to a row; give one a row")


def _sources(config: StateBridgeConfig, encoders: int, decoders: int) -> list[int]:
    """Which block of the encoder each of the decoder's starts from."""
    if config.layers == "last" or config.summary is not None:
        return [encoders - 1] * decoders
    if encoders != decoders:
        raise ConfigError(
            f"{decoders} blocks of the decoder cannot start from {encoders} of the encoder, each from its own; "
            "make the stacks of equal depth, or set bridge.layers to last"
        )
    return list(range(decoders))


def _sizes(stack: Stack, number: int, directions: str, side: str) -> tuple[int, ...]:
    """The sizes of the vectors of a block's state."""
    mixer = cast(Block, stack.blocks[number]).mixer
    parts = [mixer]
    if isinstance(mixer, Bidirectional) and side == "encoder":
        both = [mixer.forwards, mixer.backwards]
        parts = {"both": both, "forward": both[:1], "backward": both[1:]}[directions]
    if not all(isinstance(part, Mixer) and part.bridged for part in parts):
        raise ConfigError(
            f"block {number} of the {side} mixes by {type(mixer).__name__}, whose state is no vectors to hand over; "
            "choose a mixer such as lstm or gru, or set bridge to memory"
        )
    return tuple(size for part in parts for size in part.state_sizes)


def _map(config: StateBridgeConfig, given: tuple[int, ...], wanted: tuple[int, ...], block: int) -> nn.Module:
    if config.project or (config.project is None and given != wanted):
        return Projection(sum(given), wanted)
    if given != wanted:
        raise ConfigError(
            f"vectors of sizes {given} cannot start block {block} of the decoder, which has {wanted}; "
            "set bridge.project to true, or make them equal"
        )
    return nn.Identity()
