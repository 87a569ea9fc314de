"""An encoder, and a decoder that reads its output: translation and other sequence-to-sequence models.

A bridge is what the encoder passes to the decoder: its output per token, its final states, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers import Bidirectional, Memory, Mixer
from headway.nn.models.block import Block, BlockConfig
from headway.nn.models.embeds import Embed, EmbedConfig, TokenInputs
from headway.nn.models.stack import Stack
from headway.nn.models.transformer import (
    Decoding,
    ModelConfig,
    ModelFeatures,
    Prompt,
    Transformer,
    TransformerConfig,
    shared_table,
    start_heads,
)
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.projection import Projection


@register("one_hot")
@dataclass(frozen=True)
class OneHotEmbedConfig(EmbedConfig):
    """One-hot vectors as wide as the vocabulary: the first layer has separate weights for each token."""

    def width_out(self, width: int, vocab_size: int) -> int:
        return vocab_size

    def build(self, width: int, vocab_size: int, context: int | None) -> OneHotEmbed:
        return OneHotEmbed(vocab_size)


class OneHotEmbed(Embed):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.symbols = vocab_size
        self.register_buffer("one", torch.ones((), device="cpu"), persistent=False)  # has the model's dtype and device

    def forward(self, inputs: Int[Tensor, "B T"], layout: Layout) -> tuple[Float[Tensor, "B T C"], Layout]:
        return F.one_hot(inputs, self.symbols).to(cast(Tensor, self.one)), layout


Vectors = tuple[Tensor, ...]  # [B, N] each
FinalStates = tuple[Vectors, ...]  # one per direction of a mixer, the forward one first


@family
@dataclass(frozen=True)
class BridgeConfig:
    """How a decoder gets information about the source."""

    memory: ClassVar[bool] = True  # whether the decoder's blocks read the encoder's output
    state: ClassVar[bool] = False  # whether the decoder starts from the encoder's final states


@register("memory")
@dataclass(frozen=True)
class MemoryBridgeConfig(BridgeConfig):
    """The decoder's blocks read the encoder's output."""


@register("state")
@dataclass(frozen=True)
class StateBridgeConfig(BridgeConfig):
    """The decoder's mixers start from the final vectors of the encoder's mixers.

    layers: block i starts from block i of the encoder ("same"), or every block from the encoder's "last".
    directions: directions of a bidirectional encoder whose final vectors are used.
    summary: size of a vector in between: activation(V h) of the last block's vectors h (Cho et al. 2014), from which
    all blocks start; it is also the whole memory if the blocks read one.
    project: whether a block starts from activation(V' h) instead of h; none: only if the sizes differ.
    """

    memory: ClassVar[bool] = False
    state: ClassVar[bool] = True

    layers: Literal["same", "last"] = "same"
    directions: Literal["both", "forward", "backward"] = "both"
    summary: int | None = None
    project: bool | None = None
    activation: ActivationName | None = None  # activation after V and V'

    def __post_init__(self) -> None:
        if self.summary is not None and self.summary < 1:
            raise ConfigError(f"bridge.summary is {self.summary}; set a vector size of at least 1, or none")


@register("both")
@dataclass(frozen=True)
class BothBridgeConfig(StateBridgeConfig):
    """The decoder starts from the encoder's final states, and its blocks read the encoder's output or its `summary`."""

    memory: ClassVar[bool] = True


class BridgeOutput(NamedTuple):
    """A bridge's output from the final vectors of an encoder."""

    starts: tuple[Vectors, ...]  # one per block of the decoder
    summary: Float[Tensor, "B N"] | None


class Bridge(nn.Module):
    """Maps the final vectors of the encoder's mixers to initial vectors of the decoder's."""

    def __init__(self, config: StateBridgeConfig, encoder: Stack, decoder: Stack) -> None:
        """Raises ConfigError for mixers whose state is not a set of vectors, and for sizes that do not fit."""
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        encoders, decoders = len(encoder.blocks), len(decoder.blocks)
        # The encoder block from which each decoder block starts.
        self.sources = list(range(decoders))
        if config.layers == "last" or config.summary is not None:
            self.sources = [encoders - 1] * decoders
        elif encoders != decoders:
            raise ConfigError(
                f"{decoders} decoder blocks cannot each start from one of {encoders} encoder blocks; "
                "make the stacks equally deep, or set bridge.layers to last"
            )
        inner = [_sizes(encoder, number, config.directions, "encoder") for number in self.sources]
        self.sizes = [_sizes(decoder, number, "both", "decoder") for number in range(decoders)]
        self.summary = None
        if config.summary is not None:
            self.summary = Projection(sum(inner[-1]), config.summary)
            inner = [(config.summary,)] * len(inner)
        self.maps = nn.ModuleList()
        for block, (sizes, target_sizes) in enumerate(zip(inner, self.sizes)):
            if config.project or (config.project is None and sizes != target_sizes):
                self.maps.append(Projection(sum(sizes), target_sizes))
            elif sizes == target_sizes:
                self.maps.append(nn.Identity())
            else:
                raise ConfigError(
                    f"vectors of sizes {sizes} cannot initialise decoder block {block}, which needs {target_sizes}; "
                    "set bridge.project to true, or make the sizes equal"
                )

    def forward(self, final_states: Sequence[FinalStates | None]) -> BridgeOutput:
        """`final_states` come from the encoder's blocks; blocks that are not in `sources` may have None."""
        inputs: list[Vectors] = []
        for number in self.sources:
            directions = cast(FinalStates, final_states[number])
            if len(directions) > 1 and self.config.directions != "both":
                directions = (directions[0 if self.config.directions == "forward" else 1],)
            inputs.append(tuple(vector for direction in directions for vector in direction))
        summary = None
        if self.summary is not None:
            summary = self.activation(self.summary(torch.cat(inputs[-1], dim=-1)))
            inputs = [(summary,)] * len(inputs)
        starts = tuple(
            self.activation(projection(torch.cat(vectors, dim=-1))).split(sizes, dim=-1)
            if isinstance(projection, Projection)
            else vectors
            for projection, vectors, sizes in zip(self.maps, inputs, self.sizes)
        )
        return BridgeOutput(starts, summary)


def check_single(*layouts: Layout) -> None:
    """Raise UserError for rows of several documents: an encoder passes on one state per row."""
    if not all(layout.single for layout in layouts):
        raise UserError("packed rows contain several documents, but a row has one state; pass one document per row")


def _sizes(stack: Stack, number: int, directions: str, stack_name: str) -> tuple[int, ...]:
    """The vector sizes of a block's state."""
    mixer = cast(Block, stack.blocks[number]).mixer
    parts = [mixer]
    if isinstance(mixer, Bidirectional) and stack_name == "encoder":
        both = [mixer.forwards, mixer.backwards]
        parts = {"both": both, "forward": both[:1], "backward": both[1:]}[directions]
    if not all(isinstance(part, Mixer) and part.bridged for part in parts):
        raise ConfigError(
            f"block {number} of the {stack_name} has the mixer {type(mixer).__name__}, whose state is not a set of "
            "vectors; "
            "choose a mixer such as lstm or gru, or set bridge to memory"
        )
    return tuple(size for part in parts for size in part.state_sizes)


@register("encoder_decoder")
@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """An encoder and a decoder. `tie` "all" shares one table among source, target and head; "embeddings" between source
    and target (T5 1.1); "head" between target and head; "none" nothing.

    In addition to its fields, `--set` takes:
    width, depth (a number, or [encoder, decoder]), heads, mixer (of the decoder and, in both directions, of the
    encoder), cross (none removes the cross-attention), cells (of all recurrences, and the sizes that the papers derive
    from them), context, vocab_size and dropout.
    """

    encoder: TransformerConfig = TransformerConfig()  # stack over the source
    decoder: TransformerConfig = TransformerConfig()  # stack that generates the target
    tie: Literal["none", "head", "embeddings", "all"] = "all"  # embedding tables to share
    init: InitConfig = InitConfig()  # initialisation of the weights
    bridge: BridgeConfig = MemoryBridgeConfig()  # what the encoder passes to the decoder

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def context(self) -> int | None:
        return self.decoder.context

    def build(self, seed: int | None = 0) -> EncoderDecoder:
        return EncoderDecoder(self, seed)


class EncodedSource(NamedTuple):
    """Encoded sources for a decoder: memories, initial vectors of its blocks, and auxiliary losses by name."""

    memories: tuple[Memory | None, ...] | None
    starts: tuple[tuple[Tensor, ...], ...] | None
    auxiliary: Terms


class EncoderDecoder(nn.Module):
    """Vaswani et al. 2017, figure 1, with any mixers; Sutskever et al. 2014 if the bridge passes states."""

    def __init__(self, config: EncoderDecoderConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        sizes = [(part.width, part.vocab_size) for part in (config.encoder, config.decoder)]
        if config.tie in ("embeddings", "all") and sizes[0] != sizes[1]:
            raise ConfigError(
                f"tie {config.tie} shares one table, but the encoder has width {sizes[0][0]} and {sizes[0][1]} tokens, "
                f"the decoder {sizes[1][0]} and {sizes[1][1]}; make them equal, or set tie to head"
            )
        blocks = config.decoder.stack.blocks
        reading = any(block.cross is not None or block.mixer.reads_memory for block in blocks)
        if reading and not config.bridge.memory:
            raise ConfigError(
                "the decoder's blocks read the encoder's output, which bridge state does not pass on; "
                "set bridge to both, or cross to none"
            )
        if config.bridge.memory and not reading:
            raise ConfigError(
                "no decoder block reads the encoder's output; add cross-attention to at least one block, "
                "or set bridge to state"
            )
        if any(block.mixer.reads_memory for block in config.encoder.stack.blocks):
            raise ConfigError("a mixer of the encoder reads an encoder's output; choose another mixer for the encoder")
        separate_head = config.tie in ("none", "embeddings")
        decoder = _with_memory_width(config)
        self.decoder = Transformer(replace(decoder, tie="none" if separate_head else "head"), None)
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

    def forward(self, source: Any, source_layout: Layout, target: Any, target_layout: Layout) -> ModelFeatures:
        """The decoder's features for whole targets (teacher forcing); its heads read them.

        `source` goes to the encoder's embedding (token ids, Int[B, S], or frames, Float[B, S, M]), or is the output of
        `encode`; `target` goes to the decoder's embedding (token ids, Int[B, T]).
        """
        encoded = self.encode(source, source_layout)
        x, layout = self.decoder.embed(target, target_layout)
        states = None
        if encoded.starts is not None:
            check_single(layout)
            states = self.decoder.stack.states_from(encoded.starts, layout.length, like=x)
        x, _, terms = self.decoder.stack(x, layout, states, encoded.memories)
        names = encoded.auxiliary.keys() | terms.keys()
        auxiliary = {name: encoded.auxiliary.get(name, 0.0) + terms.get(name, 0.0) for name in names}
        return ModelFeatures(x, layout, auxiliary)  # type: ignore[arg-type]

    def output(self, head: str, inputs: TokenInputs, layout: Layout) -> Tensor:
        """The output of a head for whole texts, one per row, which both the encoder and the decoder read (Lewis et al.
        2019, section 3.1). The decoder starts with a text's last token, its end token.
        """
        last = layout.lengths[:, None] - 1
        previous = torch.where(layout.positions > 0, layout.positions - 1, last)
        encoded = self(inputs.ids, layout, inputs.ids.gather(1, previous), layout)
        return self.heads[head](encoded.x, encoded.layout)

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Encode the sources and process the targets' first tokens; see Transformer.start."""
        if prompt.source is None or prompt.source_layout is None:
            raise UserError("the prompt has no source to encode; pass prompt.source and prompt.source_layout")
        encoded = self.encode(prompt.source, prompt.source_layout)
        return self.decoder.start(prompt, capacity, encoded.memories, encoded.starts)

    def encode(self, source: Any, layout: Layout) -> EncodedSource:
        """Encode the sources for a decoder; sources that are already encoded are returned unchanged."""
        if isinstance(source, EncodedSource):
            return source
        if self.bridge is None:
            return self.remember(self.encoder(source, layout))
        check_single(layout)
        (x, layout, terms, _), final_states = self.encoder.encode(source, layout, self.bridge.sources)
        starts, summary = self.bridge(final_states)
        positions = self.encoder.stack.position_vectors(layout, x) if summary is None else None
        if summary is not None:
            x, layout = summary[:, None], Layout.full(summary.shape[0], 1, device=summary.device)
        memories = self.decoder.stack.remember(x, layout, positions) if self.config.bridge.memory else None
        return EncodedSource(memories, starts, terms)

    def remember(self, encoded: ModelFeatures) -> EncodedSource:
        """The encoder's output as the decoder's memories, without initial vectors."""
        positions = self.encoder.stack.position_vectors(encoded.layout, encoded.x)
        memories = self.decoder.stack.remember(encoded.x, encoded.layout, positions)
        return EncodedSource(memories, None, encoded.auxiliary)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> tuple[Float[Tensor, "B C"], Decoding]:
        return self.decoder.step(ids, decoding)


def _with_memory_width(config: EncoderDecoderConfig) -> TransformerConfig:
    """The decoder's configuration, with the memory's width filled in where it is unset and not the decoder's own."""
    summary = getattr(config.bridge, "summary", None)
    encoder = config.encoder
    width = summary or encoder.stack.width_out(encoder.embed.width_out(encoder.width, encoder.vocab_size))

    def set_width(block: BlockConfig) -> BlockConfig:
        if block.cross is not None and block.cross.width is None and width != config.decoder.width:
            return replace(block, cross=replace(block.cross, width=width))
        if block.mixer.reads_memory and getattr(block.mixer, "memory", None) is None:
            return replace(block, mixer=replace(cast(Any, block.mixer), memory=width))
        return block

    blocks = tuple(map(set_width, config.decoder.stack.blocks))
    return replace(config.decoder, stack=replace(config.decoder.stack, blocks=blocks))
