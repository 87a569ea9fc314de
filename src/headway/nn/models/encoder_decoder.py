"""An encoder, and a decoder that reads its output: translation and all that turns one sequence into another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.mixers import Memory
from headway.nn.models.block import BlockConfig
from headway.nn.models.bridge import Bridge, BridgeConfig, MemoryBridgeConfig, StateBridgeConfig, check_single
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
from headway.nn.parts.feedforward import Terms
from headway.nn.parts.init import InitConfig, initialise


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
