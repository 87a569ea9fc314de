"""An encoder, and a decoder that reads its output: translation and all that turns one sequence into another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.models import resize
from headway.models.transformer import (
    Decoding,
    Encoded,
    ModelConfig,
    Prompt,
    Transformer,
    TransformerConfig,
    shared_table,
    start_heads,
)
from headway.parts.init import InitConfig, initialise


@register("encoder_decoder")
@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """`tie`: "all" shares one table among source, target and head; "embeddings" among source and target (T5 1.1);
    "head" the target's with the head; "none" nothing.

    Beside its fields, `--set` takes width, depth (a number, or [encoder, decoder]), heads, mixer (the decoder's and,
    where it may see both ways, the encoder's), context, symbols and dropout.
    """

    encoder: TransformerConfig = TransformerConfig()
    decoder: TransformerConfig = TransformerConfig()
    tie: Literal["none", "head", "embeddings", "all"] = "all"
    init: InitConfig = InitConfig()

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

    def _both(self, setter: str, first: Any, second: Any) -> EncoderDecoderConfig:
        encoder, decoder = getattr(self.encoder, setter)(first), getattr(self.decoder, setter)(second)
        return replace(self, encoder=encoder, decoder=decoder)

    def set_width(self, value: Any) -> EncoderDecoderConfig:
        return self._both("set_width", value, value)

    def set_depth(self, value: Any) -> EncoderDecoderConfig:
        first, second = value if isinstance(value, list) and len(value) == 2 else (value, value)
        return self._both("set_depth", first, second)

    def set_heads(self, value: Any) -> EncoderDecoderConfig:
        return self._both("set_heads", value, value)

    def set_mixer(self, value: Any) -> EncoderDecoderConfig:
        return self._both("set_mixer", value, value)

    def set_dropout(self, value: Any) -> EncoderDecoderConfig:
        return self._both("set_dropout", value, value)

    def set_symbols(self, value: Any) -> EncoderDecoderConfig:
        size = resize.whole("model.symbols", value)
        return replace(self, encoder=replace(self.encoder, symbols=size), decoder=replace(self.decoder, symbols=size))

    def set_context(self, value: Any) -> EncoderDecoderConfig:
        size = None if value is None else resize.whole("model.context", value)
        return replace(self, encoder=replace(self.encoder, context=size), decoder=replace(self.decoder, context=size))


class EncoderDecoder(nn.Module):
    """Vaswani et al. 2017, figure 1, with any mixers."""

    def __init__(self, config: EncoderDecoderConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        _check(config)
        own_head = config.tie in ("none", "embeddings")
        self.decoder = Transformer(replace(config.decoder, tie="none" if own_head else "head"), None)
        table = shared_table(self.decoder.embed) if config.tie in ("embeddings", "all") else None
        self.encoder = Transformer(replace(config.encoder, tie="none"), None, table)
        self.heads = self.decoder.heads
        depth = max(len(config.encoder.stack.blocks), len(config.decoder.stack.blocks))
        if seed is not None:
            initialise(self, config.init, depth, seed)
            start_heads(self.heads, config.init)

    def forward(
        self,
        source: Int[Tensor, "B S"],
        source_layout: Layout,
        target: Int[Tensor, "B T"],
        target_layout: Layout,
    ) -> Encoded:
        """The decoder's features for whole targets (teacher forcing); `heads["vocabulary"]` reads them."""
        encoded = self.encoder(source, source_layout)
        memories = self.decoder.stack.remember(encoded.x, encoded.layout)
        x, layout = self.decoder.embed(target, target_layout)
        x, _, terms = self.decoder.stack(x, layout, None, memories)
        names = encoded.auxiliary.keys() | terms.keys()
        auxiliary = {name: encoded.auxiliary.get(name, 0.0) + terms.get(name, 0.0) for name in names}
        return Encoded(x, layout, auxiliary)  # type: ignore[arg-type]

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Encode the sources and read the targets' first symbols; see Transformer.start."""
        if prompt.source is None or prompt.source_layout is None:
            raise UserError("an encoder-decoder has no source to read; give prompt.source and prompt.source_layout")
        encoded = self.encoder(prompt.source, prompt.source_layout)
        memories = self.decoder.stack.remember(encoded.x, encoded.layout)
        return self.decoder.resume(prompt, capacity, memories)

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
    if not any(block.cross for block in config.decoder.stack.blocks):
        raise ConfigError("no block of the decoder reads the encoder; give at least one block a cross-attention")
