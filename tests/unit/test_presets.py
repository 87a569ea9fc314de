"""Published architectures have exactly their published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.config import override
from headway.domains import recipe
from headway.errors import ConfigError
from headway.nn.mixers import DeltaConfig, LinearAttentionConfig, LSTMConfig, MixerConfig
from headway.nn.models import BlockConfig, OneHotEmbedConfig, StackConfig, TransformerConfig, describe, outline
from headway.nn.models.presets import preset

SIZES = {
    "transformer-base": 63_082_496,
    "transformer-big": 214_245_376,
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-135m": 134_515_008,
    "llama-1.1b": 1_100_048_384,
    "llama-8b": 8_030_261_248,
    "bert-base": 109_482_240,  # with the pooler and without a vocabulary head, as the next two
    "bert-large": 335_141_888,
    "roberta-base": 124_645_632,
    "marian-base": 60_554_496,
    "gpt-1m": 809_856,
    "gpt-10m": 10_770_816,
    "gpt-30m": 30_062_592,
    "modernbert-base": 149_655_232,  # with its vocabulary head
    "vit-ti16": 5_717_416,  # at 1,000 classes, as all of these
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-b32": 88_224_232,
    "vit-l16": 304_326_632,
    "vit-h14": 632_045_800,
    "deit-ti16": 5_910_800,  # distilled: two tokens and two heads
    "deit-s16": 22_436_432,
    "deit-b16": 87_338_192,
    "whisper-tiny": 37_184_640,  # trained ones: without the table of sinusoids, as all of Whisper
    "whisper-base": 71_825_920,
    "whisper-small": 240_582_912,
    "whisper-medium": 762_321_920,
    "whisper-large-v2": 1_541_384_960,
    "whisper-large-v3": 1_541_570_560,
    "whisper-turbo": 806_958_080,
    "clip-b32": 151_277_313,
    "clip-b16": 149_620_737,
    "clip-l14": 427_616_513,
    "decision-hopper": 727_567,  # 1,000 timesteps, with the heads of states and returns
    "decision-atari": 2_962_208,  # 10,000 timesteps, Breakout's four actions
    "chess-9m": 8_954_240,  # with the head of action values
    "chess-136m": 136_479_872,
    "chess-270m": 270_730_368,
}
GPT3 = {  # table 2.1 of Brown et al. 2020 rounds to three digits
    "gpt3-small": 125e6,
    "gpt3-medium": 350e6,
    "gpt3-large": 760e6,
    "gpt3-xl": 1.3e9,
    "gpt3-2.7b": 2.7e9,
    "gpt3-6.7b": 6.7e9,
    "gpt3-13b": 13e9,
    "gpt3-175b": 175e9,
}


ANCESTORS = {  # weights without biases, by hand from the papers, and the biases of gates, maps and softmax beside them
    "seq2seq-lstm-2014": (384_000_000, 8 * 4_000 + 80_000),
    "seq2seq-gru-2014": (24_200_700, 2 * 3_000 + 2 * 1_000 + 1_000 + 15_001),
    "seq2seq-gru-2014-full": (125_500_000, 2 * 3_000 + 2 * 1_000 + 1_000 + 15_000),
    "seq2seq-gru-rnnenc": (69_541_740, 2 * 3_000 + 2 * 1_000 + 1_000 + 30_001),
    "seq2seq-gru-rnnsearch": (80_402_740, 3 * 3_000 + 1_000 + 1_000 + 1_000 + 30_001),
}


@pytest.mark.parametrize("name", ANCESTORS)
def test_ancestors(name: str) -> None:
    found, (weights, biases) = describe(preset(name)), ANCESTORS[name]
    assert (found["weights_without_biases"], found["parameters"]) == (weights, weights + biases)
    assert found["state_bytes_per_token"] == 0


def test_ancestors_shrink_by_settings() -> None:
    small = override(preset("seq2seq-gru-2014"), {"width": 12, "cells": 20, "symbols": 50, "depth": 1})
    head, bridge = small.decoder.heads["vocabulary"], small.bridge  # type: ignore[attr-defined]
    assert (head.maxout, bridge.summary) == (10, 20)
    deep = override(preset("seq2seq-lstm-2014"), {"width": 12, "depth": 2, "symbols": 50})
    assert describe(deep)["weights_without_biases"] == 4 * 4 * 12 * 24 + 3 * 50 * 12
    with pytest.raises(ConfigError, match="no mixer of this model has cells"):
        override(preset("transformer-base"), {"cells": 4})


def test_a_mixer_that_reads_takes_the_place_of_the_cross_attention() -> None:
    model = override(preset("transformer-base"), {"mixer": {"kind": "conditional_gru", "cells": 64}, "width": 32})
    block = model.decoder.stack.blocks[0]  # type: ignore[attr-defined]
    assert block.cross is None
    assert block.mixer.reads_memory
    assert model.encoder.stack.blocks[0].mixer.mixer.cells == 64  # type: ignore[attr-defined]
    assert describe(model)["parameters"] > 0


def test_an_outline_has_all_that_no_file_holds() -> None:
    """So that a file makes a model of it."""
    symbols = replace(recipe("shakespeare").model, vocab_size=128, embed=OneHotEmbedConfig(), tie="none")
    found = []
    for config in (symbols, *(recipe(name).model for name in ("robotics", "metaworld", "chess"))):
        model = outline(config)
        found += [buffer for name, buffer in model.named_buffers() if name not in model.state_dict()]
        assert all(parameter.is_meta for parameter in model.parameters())
    assert found
    assert not any(buffer.is_meta for buffer in found)


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    assert describe(preset(name))["parameters"] == SIZES[name]


@pytest.mark.parametrize("name", GPT3)
def test_gpt3(name: str) -> None:
    """Within 2 % of the rounded figures; of the XL row its printed 24 heads of 128 make 1.52 billion, not 1.3."""
    published = 1.517e9 if name == "gpt3-xl" else GPT3[name]
    assert describe(preset(name))["parameters"] == pytest.approx(published, rel=0.02)


def test_costs_are_told_without_allocating() -> None:
    found = describe(preset("gpt3-175b"))
    assert found["weights_bytes"] == 4 * found["parameters"]
    assert found["state_bytes_per_token"] == 96 * 2 * 12288 * 4
    assert found["flop_per_token"] > 2 * 174e9


@pytest.mark.parametrize(
    ("mixer", "weights", "scan"),
    [
        # Four heads of 4: S is 4 x 5, as the sum of weights is a fifth value; k v^T, + S, S^T q; and a division.
        (LinearAttentionConfig(4), 16 * 48 + 16 * 16, 4 * (20 + 20 + 2 * 20 + 5)),
        # W is 8 x 4, as DPFP doubles the keys: W k, its error times beta, the outer product, + W, W q.
        (DeltaConfig(4), 16 * 48 + 16 * 16 + 16 * 4, 4 * (2 * 32 + 4 + 4 + 32 + 32 + 2 * 32)),
        # f c, i g, their sum and o tanh(c), for each of 16 cells.
        (LSTMConfig(), 16 * 64 + 16 * 64 + 16 * 16, 16 * 4),
    ],
)
def test_scans_are_counted_as_by_hand(mixer: MixerConfig, weights: int, scan: int) -> None:
    block = BlockConfig(mixer, feed_forward=None)
    found = describe(TransformerConfig(16, 11, stack=StackConfig((block,))))
    assert found["flop_per_token"] == 2 * (weights + 16 * 11) + scan


def test_settings_change_the_whole_stack() -> None:
    model = override(preset("llama-135m"), {"width": 128, "depth": 4, "heads": 6, "dropout": 0.1, "symbols": 100})
    assert len(model.stack.blocks) == 4  # type: ignore[attr-defined]
    block = model.stack.blocks[0]  # type: ignore[attr-defined]
    assert (block.mixer.heads, block.mixer.kv_heads, block.dropout) == (6, 2, 0.1)
    both = override(preset("transformer-base"), {"depth": [2, 3], "width": 64, "symbols": 50})
    assert [len(part.stack.blocks) for part in (both.encoder, both.decoder)] == [2, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt2", {"widht": 3}, "did you mean 'width'"),
        ("gpt2", {"width": -1}, "integer above 0"),
        ("gpt2", {"mixer": "atention"}, "did you mean 'attention'"),
        ("gpt2", {"mixer": {"kind": "attention", "pattern": {"kind": "full"}}}, "sees later tokens"),
        ("transformer-base", {"depth": 0}, "integer above 0"),
        ("gtp2", {}, "did you mean 'gpt2'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(preset(name), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100}, "width 100 is not divisible by heads 12; choose heads from 1, 2, 4, 5, 10, 20"),
        ({"context": None}, "learned positions need a context"),
        ({"symbols": 0}, "the vocabulary has 0 tokens"),
    ],
)
def test_what_cannot_be_built_is_told_before_any_work(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(override(preset("gpt2"), settings))
