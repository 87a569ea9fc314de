"""Laws of whole models: hybrids of all mixers generate as they train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from cases import FEED_FORWARDS, NORMS, SCALINGS, hybrid, ids, inputs, seq2seq, shake

from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.layout import Layout
from headway.nn.kernels import deterministic, products
from headway.nn.models import (
    CaptionerConfig,
    EncoderDecoder,
    ModelConfig,
    Prompt,
    Transformer,
    TransformerConfig,
    attention_maps,
    build,
)
from headway.nn.models.presets import decoder
from headway.nn.parts.feedforward import ActivationName, GatedConfig, MLPConfig
from headway.nn.parts.positions import Rotary, RotaryConfig
from processes import Program

close = torch.testing.assert_close
TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}


def ready(config: ModelConfig) -> torch.nn.Module:
    model = build(config).eval()
    shake(model)
    return model


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_hybrid_generates_as_it_trains(positions: str) -> None:
    model = ready(hybrid(positions))
    assert isinstance(model, Transformer)
    tokens, lengths = ids(3, 12), torch.tensor([6, 1, 4])
    with torch.no_grad():
        whole = model.logits(tokens)
        logits, decoding = model.start(Prompt(tokens[:, :6], Layout.padded(lengths, 6)), 12)
        for step in range(6):
            close(logits, whole[torch.arange(3), lengths - 1 + step], **TOLERANCE)
            logits, decoding = model.step(tokens[torch.arange(3), lengths + step], decoding)


@pytest.mark.parametrize("tie", ["all", "head", "none"])
def test_seq2seq_generates_as_it_trains(tie: str) -> None:
    model = ready(seq2seq(tie))
    assert isinstance(model, EncoderDecoder)
    source, target = ids(3, 7, seed=1), ids(3, 9, seed=2)
    where, lengths = Layout.padded([7, 3, 5], 7), torch.tensor([2, 1, 4])
    with torch.no_grad():
        whole = model.heads["vocabulary"](model(source, where, target, Layout.full(3, 9)).x)
        prompt = Prompt(target[:, :4], Layout.padded(lengths, 4), source, where)
        logits, decoding = model.start(prompt, 9)
        for step in range(5):
            close(logits, whole[torch.arange(3), lengths - 1 + step], **TOLERANCE)
            logits, decoding = model.step(target[torch.arange(3), lengths + step], decoding)


def test_beams_read_the_memory_of_their_sentence() -> None:
    model = ready(seq2seq())
    assert isinstance(model, EncoderDecoder)
    source, where = ids(2, 5, seed=1), Layout.padded([5, 3], 5)
    begin = torch.tensor([[1], [2]])
    with torch.no_grad():
        _, decoding = model.start(Prompt(begin, Layout.full(2, 1), source, where), 6)
        beams = decoding.select(torch.tensor([0, 0, 0, 1, 1, 1]))
        after = torch.tensor([3, 4, 5, 6, 7, 8])
        logits, _ = model.step(after, beams)
        for row, token in enumerate(after):
            alone = decoding.select(torch.tensor([row // 3]), torch.tensor([row // 3]))
            single, _ = model.step(token[None], alone)
            close(logits[row], single[0], **TOLERANCE)


def test_packed_pairs_are_separate_pairs() -> None:
    model = ready(seq2seq())
    source, target = ids(1, 8, seed=1), ids(1, 9, seed=2)
    sources, targets = [3, 5], [4, 5]
    packed = model(source, Layout.packed([sources], 8), target, Layout.packed([targets], 9)).x
    s = t = 0
    for m, n in zip(sources, targets):
        alone = model(source[:, s : s + m], Layout.full(1, m), target[:, t : t + n], Layout.full(1, n)).x
        close(packed[:, t : t + n], alone, **TOLERANCE)
        s, t = s + m, t + n


def test_packed_memories_refuse_to_generate() -> None:
    model = ready(seq2seq())
    assert isinstance(model, EncoderDecoder)
    prompt = Prompt(torch.tensor([[1], [1]]), Layout.full(2, 1), ids(1, 8), Layout.packed([[3, 5]], 8))
    with pytest.raises(UserError, match="one document per row"):
        model.start(prompt, 4)


@pytest.mark.parametrize(
    "config", [hybrid(), seq2seq(), seq2seq("none"), CaptionerConfig()], ids=["hybrid", "all", "none", "captioner"]
)
def test_configs_survive_their_dict(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, to_dict(config)) == config


def test_weights_are_a_function_of_the_seed() -> None:
    first, second, third = (build(hybrid(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters()))


@pytest.mark.parametrize(("kv_heads", "hidden"), [(1, 160), (4, 160), (4, 45)])
def test_deterministic_rows_do_not_depend_on_the_batch(kv_heads: int, hidden: int) -> None:
    """In fp32: alone, in a batch, as one prompt and step by step give the same bits."""
    model = build(decoder(64, 3, 4, kv_heads, hidden, 97, 128)).eval()
    tokens = ids(5, 24, 97)
    with torch.no_grad(), deterministic():
        whole = model.logits(tokens)
        for row in range(5):
            assert torch.equal(model.logits(tokens[row : row + 1]), whole[row : row + 1])
        lengths = torch.tensor([20, 3, 11, 1, 17])
        logits, decoding = model.start(Prompt(tokens[:, :20], Layout.padded(lengths, 20)), 24)
        for step in range(4):
            assert torch.equal(logits, whole[torch.arange(5), lengths - 1 + step])
            logits, decoding = model.step(tokens[torch.arange(5), lengths + step], decoding)


@pytest.mark.parametrize("name", get_args(ActivationName))
@pytest.mark.parametrize("hidden", [16, 37])
def test_deterministic_activations_do_not_depend_on_the_batch(name: ActivationName, hidden: int) -> None:
    """In fp32, where the numbers of a row do and do not fill the processor's registers."""
    x, layout = inputs(5, 7, 16).float(), Layout.full(5, 7)
    for config in (MLPConfig(hidden=hidden, activation=name), GatedConfig(hidden=hidden, activation=name)):
        layer = config.build(16)
        shake(layer)
        layer.float()
        with torch.no_grad(), deterministic():
            whole, _ = layer(x, layout)
            for row in range(5):
                assert torch.equal(layer(x[row : row + 1], layout)[0], whole[row : row + 1])
            for t in range(7):
                assert torch.equal(layer(x[:, t : t + 1], layout)[0], whole[:, t : t + 1])


def test_deterministic_equals_fast_up_to_rounding() -> None:
    model = ready(hybrid())
    tokens, where = ids(2, 9), Layout.packed([[4, 5], [7]], 9)
    with torch.no_grad():
        fast = model(tokens, where).x
        with deterministic():
            slow = model(tokens, where).x
    kept = where.mask
    close(slow[kept], fast[kept], **TOLERANCE)


@pytest.mark.parametrize("how", ["products", "autocast"])
def test_low_precision_stays_close(how: str) -> None:
    """bf16 keeps 8 bits of a factor: features of unit scale stay within a few hundredths, gradients within 5 %."""
    model = build(decoder(64, 3, 4, 2, 160, 97, 128))
    assert isinstance(model, Transformer)
    tokens = ids(4, 32, 97)
    context = products("bf16") if how == "products" else torch.autocast("cpu", dtype=torch.bfloat16)

    def features_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        x = model(tokens).x
        loss = model.heads["vocabulary"].loss(x, tokens.roll(-1, 1))
        loss.total.backward()
        return x.detach().float(), model.stack.blocks[0].mixer.qkv.weight.grad.clone()

    exact, gradient = features_and_gradient()
    with context:
        rough, rough_gradient = features_and_gradient()
    assert (rough - exact).abs().mean() < 0.02
    assert (rough - exact).abs().max() < 0.2
    assert (rough_gradient - gradient).norm() < 0.05 * gradient.norm()


COMPILED = """
import torch
from headway.nn.models import build
from headway.nn.models.presets import decoder
model = build(decoder(32, 2, 4, 2, 64, 31, 64)).eval()
tokens = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(0))
compiled = torch.compile(model, backend="aot_eager")
with torch.no_grad():
    torch.testing.assert_close(compiled(tokens).x, model(tokens).x, rtol=1e-5, atol=1e-5)
"""


def test_compiled_is_plain(tmp_path: Path) -> None:
    """In a process of its own: what checks shapes in the others cannot be traced."""
    program = Program(tmp_path, COMPILED)
    _, err = program.wait()
    assert program.returncode == 0, err


def test_attention_maps_name_every_layer() -> None:
    model = ready(seq2seq())
    maps = attention_maps(model, lambda: model(ids(1, 4), Layout.full(1, 4), ids(1, 3), Layout.full(1, 3)))
    crosses = [name for name in maps if name.endswith("cross")]
    assert len(crosses) == len(model.decoder.stack.blocks)  # type: ignore[union-attr]
    assert maps[crosses[0]].shape == (1, 4, 3, 4)
    close(maps[crosses[0]].sum(-1), torch.ones(1, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward_ignores_padding_and_order(name: str) -> None:
    module = FEED_FORWARDS[name].build(16)
    shake(module)
    x = inputs(2, 5, 16)
    y, terms = module(x, Layout.full(2, 5))
    close(module(x.flip(1), Layout.full(2, 5))[0].flip(1), y, **TOLERANCE)
    changed = x.clone()
    changed[1, 3:] = 7.0
    where = Layout.padded([5, 3], 5)
    for term in terms:
        close(module(x, where)[1][term], module(changed, where)[1][term], **TOLERANCE)


def test_balance_is_smallest_where_experts_share_equally() -> None:
    module = FEED_FORWARDS["experts"].build(16)
    shake(module)
    x = inputs(4, 16, 16) + 2.0  # tokens alike, so that the router prefers the same experts for all
    uneven = module(x, Layout.full(4, 16))[1]["balance"]
    with torch.no_grad():
        module.router.weight.zero_()
    even = module(x, Layout.full(4, 16))[1]["balance"]
    close(even.item(), 0.01)
    assert uneven > 1.2 * even


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    module = NORMS[name].build(16).double()
    y = module(inputs(3, 16) * 5)
    centred = y - y.mean(-1, keepdim=True) if name.startswith("layer") else y
    close(centred.square().mean(-1), torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_turn_by_distance_alone(name: str) -> None:
    rotary = Rotary(RotaryConfig(100.0, scaling=SCALINGS[name]), 4)
    cos, sin = rotary.angles(Layout.full(1, 30), inputs(1))
    close(cos.square() + sin.square(), torch.full_like(cos, rotary.factor**2))
    plain = Rotary(RotaryConfig(100.0), 4)
    assert not torch.equal(rotary.frequencies, plain.frequencies)
    assert (rotary.frequencies <= plain.frequencies + 1e-12).all()


def test_copies_are_independent() -> None:
    config = hybrid()
    model = build(config)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert any(p.abs().sum() > 0 for p in other.parameters())
    assert isinstance(config, TransformerConfig)
