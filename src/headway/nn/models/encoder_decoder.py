"""An encoder, and a decoder that reads its output: translation and all that turns one sequence into another.

A bridge is what the encoder hands over: what it says of each token, the states it has come to, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers import Bidirectional, Memory, Mixer
from headway.nn.models.block import Block, BlockConfig
from headway.nn.models.stack import Stack
from headway.nn.models.transformer import (
    Decoding,
    Encoded,
    ModelConfig,
    Prompt,
    Transformer,
    TransformerConfig,
    shared_table,
    start_heads,
)
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, Terms
from headway.nn.parts.init import InitConfig, initialise
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


@register("encoder_decoder")
@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """`tie`: "all" shares one table among source, target and head; "embeddings" among source and target (T5 1.1);
    "head" the target's with the head; "none" nothing. `bridge` says what the decoder gets of the encoder.

    Beside its fields, `--set` takes width, depth (a number, or [encoder, decoder]), heads, mixer (the decoder's and,
    where it may see both ways, the encoder's), cross (none takes the cross-attention out), cells
    (of all recurrences, with what the papers size by them), context, symbols and
    dropout.
    """

    encoder: TransformerConfig = TransformerConfig()  # reads the source
    decoder: TransformerConfig = TransformerConfig()  # writes the target
    tie: Literal["none", "head", "embeddings", "all"] = "all"  # which tables are shared
    init: InitConfig = InitConfig()  # how weights start
    bridge: BridgeConfig = MemoryBridgeConfig()  # what the decoder gets of the encoder

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def symbols(self) -> int:
        return self.decoder.symbols

    @property
    def context(self) -> int | None:
        return self.decoder.context

    def build(self, seed: int | None = 0) -> EncoderDecoder:
        return EncoderDecoder(self, seed)


class Heard(NamedTuple):
    """What a decoder has of the sources: memories, vectors that its blocks start from, and auxiliary losses by name."""

    memories: tuple[Memory | None, ...] | None
    starts: tuple[tuple[Tensor, ...], ...] | None
    auxiliary: Terms


class EncoderDecoder(nn.Module):
    """Vaswani et al. 2017, figure 1, with any mixers; Sutskever et al. 2014, where states are handed over."""

    def __init__(self, config: EncoderDecoderConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        _check(config)
        own_head = config.tie in ("none", "embeddings")
        decoder = _fitted(config)
        self.decoder = Transformer(replace(decoder, tie="none" if own_head else "head"), None)
        table = shared_table(self.decoder.embed) if config.tie in ("embeddings", "all") else None
        self.encoder = Transformer(replace(config.encoder, tie="none"), None, table)
        self.heads = self.decoder.heads
        bridge = config.bridge
        self.bridge = None
        if isinstance(bridge, StateBridgeConfig):
            self.bridge = Bridge(bridge, self.encoder.stack, self.decoder.stack)
        depth = max(len(config.encoder.stack.blocks), len(config.decoder.stack.blocks))
        if seed is not None:
            initialise(self, config.init, depth, seed)
            start_heads(self.heads, config.init)

    def forward(
        self,
        source: Any,
        source_layout: Layout,
        target: Any,
        target_layout: Layout,
    ) -> Encoded:
        """The decoder's features for whole targets (teacher forcing); its heads read them.

        `source` is what the encoder's embed reads (symbols, Int[B, S], or frames, Float[B, S, M]), or what `hear` gave
        of it; `target` what the decoder's reads (symbols, Int[B, T]).
        """
        heard = self.hear(source, source_layout)
        x, layout = self.decoder.embed(target, target_layout)
        states = None
        if heard.starts is not None:
            check_single(layout)
            states = self.decoder.stack.begin(heard.starts, layout.length, like=x)
        x, _, terms = self.decoder.stack(x, layout, states, heard.memories)
        names = heard.auxiliary.keys() | terms.keys()
        auxiliary = {name: heard.auxiliary.get(name, 0.0) + terms.get(name, 0.0) for name in names}
        return Encoded(x, layout, auxiliary)  # type: ignore[arg-type]

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Encode the sources and read the targets' first symbols; see Transformer.start."""
        if prompt.source is None or prompt.source_layout is None:
            raise UserError("an encoder-decoder has no source to read; give prompt.source and prompt.source_layout")
        heard = self.hear(prompt.source, prompt.source_layout)
        return self.decoder.resume(prompt, capacity, heard.memories, heard.starts)

    def hear(self, source: Any, layout: Layout) -> Heard:
        """Encode the sources, for a decoder; those that are encoded already stay as they are."""
        if isinstance(source, Heard):
            return source
        if self.bridge is None:
            x, layout, terms, _ = self.encoder(source, layout)
            return Heard(self.decoder.stack.remember(x, layout, self.encoder.stack.placed(layout, x)), None, terms)
        check_single(layout)
        (x, layout, terms, _), ends = self.encoder.read(source, layout, self.bridge.sources)
        starts, summary = self.bridge(ends)
        positions = self.encoder.stack.placed(layout, x) if summary is None else None
        if summary is not None:
            x, layout = summary[:, None], Layout.full(summary.shape[0], 1, device=summary.device)
        memories = self.decoder.stack.remember(x, layout, positions) if self.config.bridge.memory else None
        return Heard(memories, starts, terms)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> tuple[Float[Tensor, "B C"], Decoding]:
        return self.decoder.step(ids, decoding)


def _check(config: EncoderDecoderConfig) -> None:
    same = (config.encoder.width, config.encoder.symbols) == (config.decoder.width, config.decoder.symbols)
    if config.tie in ("embeddings", "all") and not same:
        raise ConfigError(
            f"tie {config.tie} shares one table, but the encoder has width {config.encoder.width} and "
            f"{config.encoder.symbols} symbols, the decoder {config.decoder.width} and {config.decoder.symbols}; "
            "make them equal, or tie head"
        )
    blocks = config.decoder.stack.blocks
    reading = any(block.cross is not None or block.mixer.reads_memory for block in blocks)
    if reading and not config.bridge.memory:
        raise ConfigError(
            "blocks of the decoder read a memory, which bridge state does not hand over; "
            "set bridge to both, or cross to none"
        )
    if config.bridge.memory and not reading:
        raise ConfigError(
            "no block of the decoder reads the encoder; give at least one block a cross-attention, "
            "or set bridge to state"
        )
    if any(block.mixer.reads_memory for block in config.encoder.stack.blocks):
        raise ConfigError("a mixer of the encoder reads a memory, and there is none; choose another for the encoder")


def _fitted(config: EncoderDecoderConfig) -> TransformerConfig:
    """The decoder's configuration, with the width of the memory where that is not said and not the decoder's own."""
    summary = getattr(config.bridge, "summary", None)
    encoder = config.encoder
    width = summary or encoder.stack.width_out(encoder.embed.width_out(encoder.width, encoder.symbols))

    def fit(block: BlockConfig) -> BlockConfig:
        if block.cross is not None and block.cross.width is None and width != config.decoder.width:
            return replace(block, cross=replace(block.cross, width=width))
        if block.mixer.reads_memory and getattr(block.mixer, "memory", None) is None:
            return replace(block, mixer=replace(cast(Any, block.mixer), memory=width))
        return block

    blocks = tuple(map(fit, config.decoder.stack.blocks))
    return replace(config.decoder, stack=replace(config.decoder.stack, blocks=blocks))
