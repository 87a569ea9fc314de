"""Small random models whose sequences differ and end, for the tests of generation."""

from __future__ import annotations

import torch

from headway.engine.pool import Pool
from headway.generate import Sampler, Sampling
from headway.generate.torch_sampling import sample_rows
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    StackConfig,
    TokenEmbedConfig,
    Transformer,
    TransformerConfig,
    build,
)
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Full

BEGIN, END = 0, 1


def sharpen(model: torch.nn.Module, seed: int, gain: float) -> None:
    """Matrices large enough that the next symbol depends on the whole sequence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain)


def language_model(symbols: int = 23, context: int | None = 32, seed: int = 11) -> Transformer:
    config = TransformerConfig(
        16,
        symbols,
        context,
        StackConfig((BlockConfig(AttentionConfig(2)),) * 2),
        TokenEmbedConfig(LearnedConfig() if context else None),
        tie="none",
    )
    model = build(config)
    sharpen(model, seed, 0.5)
    assert isinstance(model, Transformer)
    return model.eval()


def translator(symbols: int = 23, context: int = 40, seed: int = 1, gain: float = 0.5) -> EncoderDecoder:
    embed = TokenEmbedConfig(LearnedConfig())
    encoder = BlockConfig(AttentionConfig(2, pattern=Full()))
    decoder = BlockConfig(AttentionConfig(2), CrossAttentionConfig(2))
    one = TransformerConfig(16, symbols, context, StackConfig((encoder,)), embed, {})
    two = TransformerConfig(16, symbols, context, StackConfig((decoder,) * 2), embed)
    model = build(EncoderDecoderConfig(one, two, tie="none"))
    sharpen(model, seed, gain)
    assert isinstance(model, EncoderDecoder)
    return model.eval()


def random_rows(lengths: list[int], symbols: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, symbols, (length,), generator=generator).tolist() for length in lengths]


class Rows:
    """Samplers of several rows, which take what they pick."""

    def __init__(self, sampling: Sampling, keys: list[int], prompts: list[list[int]], pool: Pool | None = None) -> None:
        self.samplers = [Sampler(sampling, key, prompt) for key, prompt in zip(keys, prompts)]
        self.pool = pool

    def pick(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The symbols and their log probabilities."""
        for sampler in self.samplers:
            sampler.step = step
        events = sample_rows(logits, range(len(self.samplers)), self.samplers, self.pool)
        for sampler, event in zip(self.samplers, events):
            assert event.id is not None
            sampler.take(event.id)
        return torch.tensor([event.id for event in events]), torch.tensor([event.logprob for event in events])

    def ahead(self, logits: torch.Tensor, after: list[int]) -> int | None:
        """What the first row would pick after more symbols."""
        return sample_rows(logits, [0], [self.samplers[0].after(after)], self.pool)[0].id

    def select(self, rows: list[int]) -> None:
        self.samplers = [self.samplers[row] for row in rows]
