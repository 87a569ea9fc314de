"""A stack of blocks, with the score biases they share and a final norm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import family
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers.attention import POSITIONS
from headway.nn.mixers.base import Memory, State
from headway.nn.models.block import Block, BlockConfig, ParallelBlock
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.norm import LayerNormConfig, NormConfig
from headway.nn.parts.positions import PositionsConfig


@family
@dataclass(frozen=True)
class BiasConfig:
    """A term added to attention scores; its module maps (x, query layout, key layout) to [B, H, T, S]."""

    heads: int = 8  # heads of the attention layers that use it

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError


@dataclass(frozen=True)
class StackConfig:
    """Blocks, the score biases and positions that their attention shares, and a final norm."""

    blocks: tuple[BlockConfig, ...] = ()  # one block per layer
    norm: NormConfig | None = LayerNormConfig()  # norm after the last block
    biases: dict[str, BiasConfig] = field(default_factory=dict)  # score biases, which mixers refer to by name
    positions: PositionsConfig | None = None  # positions of queries and keys, for attention with placed=true
    shared: bool = False  # whether all blocks are one, with the same weights (Lan et al. 2020, ALBERT)

    @property
    def causal(self) -> bool:
        return all(block.mixer.causal for block in self.blocks)

    def width_out(self, width: int) -> int:
        """Output width of a stack whose input is `width` wide."""
        for block in self.blocks:
            width = block.mixer.width_out(width)
        return width


def cycle(blocks: Sequence[BlockConfig], depth: int) -> tuple[BlockConfig, ...]:
    """`depth` blocks that repeat a pattern: `cycle((local, local, full), 12)`."""
    return tuple(blocks[i % len(blocks)] for i in range(depth))


class StackOutput(NamedTuple):
    x: Float[Tensor, "B T D"]
    states: tuple[State, ...] | None
    terms: Terms


class CompiledStack(Protocol):
    """Compiled code for whole documents that replaces a stack's blocks and final norm (`headway.engine.encoder`)."""

    def fits(self, x: Float[Tensor, "B T D"], layout: Layout) -> bool:
        """Whether it supports these inputs."""
        ...

    def __call__(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]: ...


def _build(config: BlockConfig, width: int, shared: nn.ModuleDict) -> Block:
    if config.convolution is not None:
        from headway.nn.models.convolved import ConvolvedBlock  # of one family

        return ConvolvedBlock(config, width, shared, config.convolution)
    return (ParallelBlock if config.placement == "parallel" else Block)(config, width, shared)


class Stack(nn.Module):
    def __init__(self, config: StackConfig, width: int) -> None:
        super().__init__()
        if not config.blocks:
            raise ConfigError("the stack has no blocks; set model.depth to 1 or more")
        if config.shared and len({*config.blocks}) > 1:
            raise ConfigError("the stack's blocks differ, so they cannot share weights; set its shared to false")
        self.biases = nn.ModuleDict({name: bias.build(width) for name, bias in config.biases.items()})
        self.positions = config.positions.build(width, None) if config.positions else None
        shared = self.biases
        if self.positions is not None:
            shared = nn.ModuleDict({**self.biases, POSITIONS: self.positions})
        self.blocks = nn.ModuleList()
        self.width_in = self.width = width  # width of the input and of the output
        self.program: CompiledStack | None = None  # set when weights are packed
        for block in config.blocks:
            first = self.blocks[0] if config.shared and self.blocks else None
            self.blocks.append(first or _build(block, self.width, shared))
            self.width = block.mixer.width_out(self.width)
        self.norm = config.norm.build(self.width) if config.norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        states: Sequence[State] | None = None,
        memories: Sequence[Memory] | None = None,
    ) -> StackOutput:
        if self.program is not None and states is None and memories is None and self.program.fits(x, layout):
            return StackOutput(self.program(x, layout), None, {})
        new_states: list[State] = []
        terms: Terms = {}
        none = [None] * len(self.blocks)
        for block, state, memory in zip(self.blocks, states or none, memories or none):
            x, state, extra = block(x, layout, state, memory)
            new_states.append(state)
            terms = terms | {name: terms.get(name, 0.0) + value for name, value in extra.items()}
        return StackOutput(self.norm(x), tuple(new_states) if states is not None else None, terms)

    def encode(self, x: Float[Tensor, "B T D"], layout: Layout, final_blocks: Collection[int]) -> StackOutput:
        """Process whole documents, one per row. For the blocks with an index in `final_blocks`, the states are the
        mixer's final vectors in each direction; None for the others.
        """
        final_states: list[State] = []
        terms: Terms = {}
        for index, block in enumerate(self._blocks()):
            x, state, extra = block.encode(x, layout) if index in final_blocks else block(x, layout)
            final_states.append(state)
            terms = terms | {name: terms.get(name, 0.0) + value for name, value in extra.items()}
        return StackOutput(self.norm(x), tuple(final_states), terms)

    def states_from(self, vectors: Sequence[tuple[Tensor, ...]], capacity: int, *, like: Tensor) -> tuple[State, ...]:
        """Initial states built from the given vectors of each block."""
        pairs = zip(self._blocks(), vectors, strict=True)
        return tuple(block.mixer.state_from(start, capacity, like=like) for block, start in pairs)

    def initial_states(self, batch: int, capacity: int, *, like: Tensor) -> tuple[State, ...]:
        return tuple(block.mixer.initial_state(batch, capacity, like=like) for block in self._blocks())

    def carry(self, states: Sequence[State]) -> tuple[State, ...]:
        """Final states of one batch as initial states of the next; see `Mixer.carry`."""
        return tuple(block.mixer.carry(state) for block, state in zip(self._blocks(), states, strict=True))

    def remember(
        self, encoded: Float[Tensor, "M S E"], layout: Layout, positions: Float[Tensor, "#M S E"] | None = None
    ) -> tuple[Memory | None, ...]:
        """Each block's projection of an encoder's output; None for blocks that do not read one. `positions` are those
        of the encoder's stack.
        """
        return tuple(block.remember(encoded, layout, positions) for block in self._blocks())

    def position_vectors(self, layout: Layout, like: Tensor) -> Float[Tensor, "#B T D"] | None:
        """The positions that attention adds to queries and keys, for a decoder that reads this stack's output."""
        return None if self.positions is None else self.positions(layout, like)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
