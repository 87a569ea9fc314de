"""A vision tower, a projector and a decoder that reads their image tokens before the text, as in LLaVA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models.embeds import TokenEmbed, TokenEmbedConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.transformer import (
    Decoding,
    ModelConfig,
    ModelFeatures,
    Prompt,
    Transformer,
    TransformerConfig,
    check_prompt,
)
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName, Terms
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.projection import Projection

IMAGE = 1  # layout group of an image's tokens, which attend to each other in both directions


@dataclass(frozen=True)
class ProjectorConfig:
    """From the tower's vectors to the decoder's: one linear layer (`layers` 1; Liu et al. 2023, "Visual instruction
    tuning", equation 1), or two with an activation between them (Liu et al. 2024, "Improved baselines").
    """

    layers: Literal[1, 2] = 2  # linear layers
    activation: ActivationName = "gelu"  # activation between two layers
    bias: bool = True  # whether the layers have biases


@register("captioner")
@dataclass(frozen=True)
class CaptionerConfig(ModelConfig):
    """An image tower without heads and a text decoder, whose context includes the image's tokens.

    In addition to its fields, `--set` takes width, depth, heads (each a number, or [tower, decoder]), mixer (of both;
    bidirectional in a bidirectional tower), dropout, drop_path, vocab_size and context (of text).
    Attention is bidirectional over an image's tokens and causal over text; other mixers process an image like text,
    from its first token to the last.
    """

    tower: TransformerConfig = TransformerConfig(embed=PatchEmbedConfig(), heads={}, tie="none")  # image encoder
    decoder: TransformerConfig = TransformerConfig()  # stack that generates the text
    projector: ProjectorConfig = ProjectorConfig()  # map from the tower's vectors to the decoder's
    init: InitConfig = InitConfig(matrices="fan_in")  # initialisation of the projector only

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def images(self) -> PatchEmbedConfig:
        """The tower's patch embedding. Raises ConfigError for a tower with other inputs."""
        embed = self.tower.embed
        if not isinstance(embed, PatchEmbedConfig):
            kind = getattr(embed, "kind", type(embed).__name__)
            raise ConfigError(
                f"model.tower has embed {kind}, which does not take images; use a tower with embed patches"
            )
        return embed

    @property
    def prefix(self) -> int:
        """Decoder tokens of an image of the tower's size: its patches."""
        return self.images.length - self.images.tokens - self.images.registers

    @property
    def context(self) -> int | None:
        """Maximum text tokens next to an image; None for no limit."""
        return None if self.decoder.context is None else self.decoder.context - self.prefix

    def build(self, seed: int | None = 0) -> Captioner:
        return Captioner(self, seed)


class Projector(nn.Module):
    def __init__(self, config: ProjectorConfig, width: int, out: int) -> None:
        super().__init__()
        self.first = Projection(width, out, config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.second = Projection(out, out, config.bias) if config.layers == 2 else None

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N D"]:
        x = self.first(x)
        return x if self.second is None else self.second(self.activation(x))


class Captioner(nn.Module):
    """Liu et al. 2023, figure 1: an image's patches, encoded by the tower and projected, precede the text.

    The patches attend to each other in both directions, like the prefix of a prefix language model (Raffel et al. 2020,
    figure 3) and as in PaliGemma (Beyer et al. 2024); LLaVA itself is causal there.
    """

    def __init__(self, config: CaptionerConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        decoder, prefix = config.decoder, config.prefix
        if not isinstance(decoder.embed, TokenEmbedConfig):
            raise ConfigError("model.decoder has no token embedding, which image tokens need; set its embed to tokens")
        if decoder.embed.projects == "sum":
            raise ConfigError(
                "model.decoder projects sums of tokens, but image tokens are projected already; set its "
                "embed.projects to tokens"
            )
        if not decoder.stack.causal:
            raise ConfigError("model.decoder sees later tokens, so it cannot generate; use causal mixers, as in GPT")
        if any(block.cross is not None or block.mixer.reads_memory for block in decoder.stack.blocks):
            raise ConfigError(
                "model.decoder reads an encoder's output, but here images are a prefix; remove that layer"
            )
        if decoder.context is not None and decoder.context <= prefix:
            raise ConfigError(
                f"model.decoder has a context of {decoder.context}, which the {prefix} patches of an image fill; "
                "use larger patches, smaller images, or a decoder with a longer context"
            )
        seeds: Sequence[int | None] = (None,) * 3 if seed is None else (seed, seed + 1, seed + 2)
        self.tower = Transformer(replace(config.tower, heads={}, tie="none"), seeds[0])
        self.decoder = Transformer(config.decoder, seeds[1])
        self.projector = Projector(config.projector, self.tower.stack.width, config.decoder.width)
        self.heads = self.decoder.heads
        if seeds[2] is not None:
            initialise(self.projector, config.init, 1, seeds[2])

    def forward(self, images: Float[Tensor, "M C H W"], ids: Int[Tensor, "B T"], layout: Layout) -> ModelFeatures:
        """The decoder's features of whole texts, each after its image, for `heads["vocabulary"]`."""
        x, joined_layout, terms = self._join_inputs(images, ids, layout)
        x, _, decoder_terms = self.decoder.stack(x, joined_layout)
        names = terms.keys() | decoder_terms.keys()
        auxiliary = cast(Terms, {name: terms.get(name, 0.0) + decoder_terms.get(name, 0.0) for name in names})
        return ModelFeatures(x[:, -layout.length :], layout, auxiliary)

    def encode_images(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], Terms]:
        """The decoder's image tokens, one vector per patch, and the tower's auxiliary losses."""
        x, _, terms, _ = self.tower(images)
        front = self.config.images.tokens + self.config.images.registers
        return self.projector(x[:, front:]), terms

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Decoding]:
        """Encode `prompt.source`, one image per row, and process the texts' first tokens; see Transformer.start.

        `capacity` counts text tokens.
        """
        if prompt.source is None:
            raise UserError("the prompt has no image; pass prompt.source, Float[B, C, H, W]")
        check_prompt(prompt.layout, capacity, self.config.context)
        x, joined_layout, _ = self._join_inputs(prompt.source, prompt.ids, prompt.layout)
        return self.decoder.prefill(x, joined_layout, capacity + x.shape[1] - prompt.layout.length)

    def step(self, ids: Int[Tensor, "B"], decoding: Decoding) -> tuple[Float[Tensor, "B C"], Decoding]:
        return self.decoder.step(ids, decoding)

    def _join_inputs(
        self, images: Float[Tensor, "M C H W"], ids: Int[Tensor, "B T"], layout: Layout
    ) -> tuple[Float[Tensor, "B S D"], Layout, Terms]:
        """Input of the decoder's first block: the image's tokens from position 0 on, then the text's."""
        if not layout.single:
            raise UserError("packed rows contain several texts, but a row has one image; pass one text per row")
        if images.shape[0] != ids.shape[0]:
            raise UserError(f"{images.shape[0]} images for {ids.shape[0]} texts; pass one image per text")
        image_tokens, terms = self.encode_images(images)
        count = image_tokens.shape[1]
        image_positions = torch.arange(count, device=ids.device).expand(layout.batch, count)
        text_positions = torch.where(layout.mask, layout.positions + count, -1)
        group = torch.cat([torch.full_like(image_positions, IMAGE), torch.zeros_like(text_positions)], 1)
        joined_layout = Layout(torch.cat([image_positions, text_positions], 1), layout.dense, group)
        context = self.config.decoder.context
        if context is not None and joined_layout.length > context:
            raise UserError(
                f"an image with {count} patches and {layout.length} text tokens exceed the context of {context}; "
                "make the image smaller, or shorten the text"
            )
        embed = cast(TokenEmbed, self.decoder.embed)
        return (
            embed.add_positions(torch.cat([image_tokens, embed.look_up(ids)], 1), joined_layout),
            joined_layout,
            terms,
        )
