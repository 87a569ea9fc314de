"""Token embeddings without mask tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.config_kinds import register
from headway.layout import Layout
from headway.nn.models.embeds import TokenEmbed, TokenEmbedConfig, TokenInputs

_MASKED = 0.15 * 0.8  # share of tokens that ESM-2 replaces by the mask token in training


@register("token_dropout")
@dataclass(frozen=True)
class TokenDropoutEmbedConfig(TokenEmbedConfig):
    """Tokens whose vectors make up for those of mask tokens, which are zero."""

    mask_id: int = 0  # id of the mask token

    def build(self, width: int, vocab_size: int, context: int | None) -> TokenEmbed:
        return TokenDropoutEmbed(self, width, vocab_size, context)


class TokenDropoutEmbed(TokenEmbed):
    """Lin et al. 2023 (ESM-2), token dropout: masked tokens are zeros, and the others of a document are scaled to the
    sum that they have on average in training.
    """

    def __init__(self, config: TokenDropoutEmbedConfig, width: int, vocab_size: int, context: int | None) -> None:
        super().__init__(config, width, vocab_size, context)
        self.mask_id = config.mask_id

    def forward(
        self, inputs: Int[Tensor, "B T"] | TokenInputs, layout: Layout
    ) -> tuple[Float[Tensor, "B T D"], Layout]:
        ids, types = (inputs, None) if isinstance(inputs, Tensor) else inputs
        x = self._drop(self.look_up(ids), ids == self.mask_id, layout)
        return self.add_positions(x, layout, types), layout

    def _drop(self, x: Float[Tensor, "B T E"], masked: Bool[Tensor, "B T"], layout: Layout) -> Float[Tensor, "B T E"]:
        documents = layout.segments
        counts = torch.zeros(2, layout.batch, int(layout.host.segments.max()) + 1, dtype=x.dtype, device=x.device)
        tokens = torch.stack([masked & layout.mask, layout.mask]).to(x.dtype)
        counts.scatter_add_(2, documents.expand(2, -1, -1), tokens)
        share = (counts[0] / counts[1].clamp(min=1)).gather(1, documents)[..., None]
        return x.masked_fill(masked[..., None], 0.0) * (1 - _MASKED) / (1 - share).clamp(min=1e-6)
