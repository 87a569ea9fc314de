"""Laws of decoding steps on a GPU, which is simulated: they wait for nothing and compute what the CPU computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import BIASES, CAUSAL, MIXERS, PLACES, READERS, WIDTH, ids, seq2seq, shake, translator
from torch import Tensor

from headway.layout import Layout, to_device
from headway.nn.models import (
    BlockConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    Prompt,
    StackConfig,
    Transformer,
    TransformerConfig,
    build,
)
from simulated_gpu import Waits, device

PROMPT = Prompt(ids(4, 4), Layout.padded([4, 1, 2, 3], 4))
SOURCE = ids(4, 5, seed=1), Layout.padded([5, 2, 1, 5], 5)


def run(model: Transformer | EncoderDecoder, prompt: Prompt, waits: Waits | None) -> list[Tensor]:
    """The logits of six steps: a row rests for two of them, and later rows are selected, two per source. With `waits`,
    no step may wait.
    """
    tokens, resting, rows, sources = to_device(
        (ids(4, 6, seed=3), torch.arange(4) == 1, torch.tensor([3, 3, 0, 0]), torch.tensor([3, 0])), prompt.ids.device
    )
    _, decoding = model.start(prompt, 20)
    outputs = []
    for number in range(6):
        positions, rests = decoding.positions, number in (1, 2)
        if rests:
            decoding = decoding.at(positions.masked_fill(resting, -1))
        if number == 4:
            decoding = decoding.select(rows, sources)
        if waits is not None:
            waits.clear()
        logits, decoding = model.step(tokens[:, number], decoding)
        assert waits is None or not waits.counts, waits.counts
        if rests:
            decoding = decoding.at(torch.where(resting, positions, positions + 1))
        outputs.append(logits.cpu()[[0, 2, 3]] if rests else logits.cpu())
    return outputs


@torch.inference_mode()
def check(config: TransformerConfig | EncoderDecoderConfig, prompt: Prompt) -> None:
    model: Any = build(config).eval()
    shake(model)
    expected = run(model.float(), prompt, None)
    with Waits() as waits:
        found = run(model.to(device()), to_device(prompt, device()), waits)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_each_mixer(name: str) -> None:
    stack = StackConfig((BlockConfig(MIXERS[name]),) * 2, biases=BIASES, positions=PLACES)
    check(TransformerConfig(WIDTH, 11, 64, stack), PROMPT)


@pytest.mark.parametrize("name", READERS)
def test_each_mixer_that_reads_a_memory(name: str) -> None:
    check(translator(name), PROMPT._replace(source=SOURCE[0], source_layout=SOURCE[1]))


def test_cross_attention() -> None:
    config = seq2seq()
    blocks = config.decoder.stack.blocks[:3]
    config = replace(config, decoder=replace(config.decoder, stack=replace(config.decoder.stack, blocks=blocks)))
    check(config, PROMPT._replace(source=SOURCE[0], source_layout=SOURCE[1]))
