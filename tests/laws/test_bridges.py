"""Laws of models whose encoder hands its states over: they generate as they train, alone and in any batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import HEADS, WIDTH, ids, shake

from headway.config import from_dict, override, to_dict
from headway.errors import ConfigError, UserError
from headway.generate import SearchConfig, beam_search
from headway.layout import Layout
from headway.nn.mixers import (
    AttentionConfig,
    BidirectionalConfig,
    CrossAttentionConfig,
    ElmanConfig,
    GRUConfig,
    LSTMConfig,
    MixerConfig,
)
from headway.nn.models import (
    BlockConfig,
    BothBridgeConfig,
    BridgeConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    ModelConfig,
    Prompt,
    StackConfig,
    StateBridgeConfig,
    TokenEmbedConfig,
    TransformerConfig,
    build,
)
from headway.nn.parts.feedforward import MLPConfig

close = torch.testing.assert_close
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}
BIG = LSTMConfig(cells=12)


def model(
    encoder: MixerConfig, decoder: MixerConfig, bridge: BridgeConfig, depth: tuple[int, int] = (2, 2)
) -> EncoderDecoderConfig:
    """Plain stacks; with a cross-attention where a memory is handed over and the mixer does not read it itself."""
    cross = CrossAttentionConfig(HEADS) if bridge.memory and not decoder.reads_memory else None
    reads, writes = BlockConfig(encoder, None, MLPConfig(hidden=8)), BlockConfig(decoder, cross, None)

    def part(block: BlockConfig, count: int) -> TransformerConfig:
        return TransformerConfig(WIDTH, 11, 64, StackConfig((block,) * count), TokenEmbedConfig())

    return EncoderDecoderConfig(replace(part(reads, depth[0]), heads={}), part(writes, depth[1]), bridge=bridge)


MODELS: dict[str, EncoderDecoderConfig] = {
    "lstm": model(LSTMConfig(), LSTMConfig(), StateBridgeConfig()),
    "gru-both": model(GRUConfig(), GRUConfig(learned_start=True), BothBridgeConfig()),
    "projected": model(GRUConfig(cells=6), LSTMConfig(), StateBridgeConfig(activation="tanh")),
    "last": model(AttentionConfig(HEADS), BIG, StateBridgeConfig(layers="last"), (2, 3)),
    "bidirectional": model(BidirectionalConfig(BIG), BIG, BothBridgeConfig(activation="tanh")),
    "backward": model(BidirectionalConfig(BIG), BIG, StateBridgeConfig(directions="backward", project=False)),
    "summary": model(ElmanConfig(), GRUConfig(), BothBridgeConfig(summary=5, activation="tanh"), (1, 2)),
}
last = MODELS["last"].encoder.stack
MODELS["last"] = replace(
    MODELS["last"],
    encoder=replace(MODELS["last"].encoder, stack=replace(last, blocks=(last.blocks[0], BlockConfig(GRUConfig())))),
)
every = pytest.mark.parametrize("name", MODELS)


def ready(config: ModelConfig) -> EncoderDecoder:
    found = build(config).eval()
    assert isinstance(found, EncoderDecoder)
    shake(found)
    return found


@every
def test_it_generates_as_it_trains(name: str) -> None:
    found = ready(MODELS[name])
    source, target = ids(3, 7, seed=1), ids(3, 9, seed=2)
    where, lengths = Layout.padded([7, 3, 5], 7), torch.tensor([2, 1, 4])
    with torch.no_grad():
        whole = found.heads["vocabulary"](found(source, where, target, Layout.full(3, 9)).x)
        logits, decoding = found.start(Prompt(target[:, :4], Layout.padded(lengths, 4), source, where), 9)
        for step in range(5):
            close(logits, whole[torch.arange(3), lengths - 1 + step], **TOLERANCE)
            logits, decoding = found.step(target[torch.arange(3), lengths + step], decoding)


@every
def test_ragged_pairs_are_separate_pairs(name: str) -> None:
    found = ready(MODELS[name])
    source, target, sizes, lengths = ids(3, 7, seed=1), ids(3, 6, seed=2), [7, 3, 1], [2, 6, 4]
    together = found(source, Layout.padded(sizes, 7), target, Layout.padded(lengths, 6)).x
    for row, (m, n) in enumerate(zip(sizes, lengths)):
        one = slice(row, row + 1)
        alone = found(source[one, :m], Layout.full(1, m), target[one, :n], Layout.full(1, n)).x
        close(together[row, :n], alone[0], **TOLERANCE)


@every
def test_the_source_reaches_every_target_token_and_gradients_the_source(name: str) -> None:
    found = ready(MODELS[name])
    source, target = ids(1, 4, seed=1), ids(1, 5, seed=2)
    other = source.clone()
    other[0, 0] = (source[0, 0] + 1) % 11
    first, second = (found(s, Layout.full(1, 4), target, Layout.full(1, 5)).x for s in (source, other))
    assert (first != second).any(-1).all()
    first.square().sum().backward()
    first_block = [(n, p) for n, p in found.encoder.named_parameters() if "blocks.1." not in n]
    read = [p for n, p in first_block if n.endswith(("input.weight", "qkv.weight", "table"))]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in read)


@every
@pytest.mark.parametrize("beam", [1, 3])
def test_beams_are_those_of_each_sentence_alone(name: str, beam: int) -> None:
    found = ready(MODELS[name])
    source, sizes, search = ids(3, 6, seed=1), [6, 2, 4], SearchConfig(beam, n_best=beam)
    begin = torch.ones(3, 1, dtype=torch.long)
    prompt = Prompt(begin, Layout.full(3, 1), source, Layout.padded(sizes, 6))
    together = beam_search(found, prompt, [7, 5, 6], 2, search)
    for row, size in enumerate(sizes):
        one = slice(row, row + 1)
        alone = Prompt(begin[one], Layout.full(1, 1), source[one, :size], Layout.full(1, size))
        (best,) = beam_search(found, alone, [[7, 5, 6][row]], 2, search)
        assert [h.ids for h in best] == [h.ids for h in together[row]]
        assert [h.score for h in best] == pytest.approx([h.score for h in together[row]], abs=1e-9)


@every
def test_its_config_survives_its_dict(name: str) -> None:
    assert from_dict(ModelConfig, to_dict(MODELS[name])) == MODELS[name]


def test_packed_rows_are_refused() -> None:
    found = ready(MODELS["lstm"])
    packed, full = Layout.packed([[2, 3]], 5), Layout.full(1, 5)
    for source, target in ((packed, full), (full, packed)):
        with pytest.raises(UserError, match="pass one document per row"):
            found(ids(1, 5), source, ids(1, 5), target)


REFUSED = [
    (
        model(AttentionConfig(HEADS), LSTMConfig(), StateBridgeConfig()),
        "encoder has the mixer SelfAttention.*set bridge to memory",
    ),
    (
        model(LSTMConfig(), AttentionConfig(HEADS), StateBridgeConfig()),
        "block 0 of the decoder has the mixer SelfAttention",
    ),
    (model(LSTMConfig(), LSTMConfig(), StateBridgeConfig(), (1, 2)), "set bridge.layers to last"),
    (model(GRUConfig(), LSTMConfig(), StateBridgeConfig(project=False)), "set bridge.project to true"),
    (override(model(LSTMConfig(), LSTMConfig(), BothBridgeConfig()), {"bridge": "state"}), "set bridge to both"),
    (override(model(LSTMConfig(), LSTMConfig(), StateBridgeConfig()), {"bridge": "memory"}), "set bridge to state"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_cannot_be_handed_over_is_refused_before_any_work(config: EncoderDecoderConfig, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(config, None)


def test_settings_take_the_cross_attention_out() -> None:
    config = model(LSTMConfig(), LSTMConfig(), BothBridgeConfig())
    bare = override(config, {"cross": None, "bridge": "state"})
    assert bare == model(LSTMConfig(), LSTMConfig(), StateBridgeConfig())
    with pytest.raises(ConfigError, match="use none"):
        override(config, {"cross": 4})
