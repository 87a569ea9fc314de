"""The laws of design over mixers that read a memory, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import READERS, WIDTH, ids, inputs, make_reader, shake

from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels import deterministic
from headway.nn.mixers import BidirectionalConfig, GRUConfig, select
from headway.nn.mixers.conditional_gru import additive
from headway.nn.models import (
    BlockConfig,
    BothBridgeConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    Prompt,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    VocabularyHeadConfig,
    attention_maps,
    build,
)

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
close = torch.testing.assert_close
every = pytest.mark.parametrize("name", READERS)
SOURCE = Layout.padded([5, 2, 4], 5)


def memory(mixer, rows: int = 3, seed: int = 8):
    return mixer.remember(inputs(3, 5, 6, seed=seed)[:rows], SOURCE.select(torch.arange(rows)))


@every
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1]])
def test_any_chunking_of_recurrent_is_parallel(name: str, chunks: list[int]) -> None:
    mixer, x = make_reader(name), inputs(3, 9, WIDTH)
    source = memory(mixer)
    whole = mixer(x, Layout.full(3, 9), None, source)[0]
    state, start, parts = mixer.initial_state(3, 9, like=x), 0, []
    for size in chunks:
        y, state = mixer(x[:, start : start + size], Layout.full(3, size, start), state, source)
        parts.append(y)
        start += size
    close(torch.cat(parts, 1), whole, **TOLERANCE)
    assert whole.shape[2] == READERS[name].width_out(WIDTH)


@every
def test_later_inputs_change_nothing_earlier(name: str) -> None:
    mixer, x = make_reader(name), inputs(3, 8, WIDTH)
    changed = x.clone()
    changed[:, 5:] += 1.0
    before, after = (mixer(value, Layout.full(3, 8), None, memory(mixer))[0] for value in (x, changed))
    close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert (after[:, 5:] != before[:, 5:]).any(-1).all()


@every
def test_padding_of_source_and_target_changes_nothing(name: str) -> None:
    mixer, x, encoded = make_reader(name), inputs(3, 7, WIDTH), inputs(3, 5, 6, seed=8)
    lengths = [7, 4, 1]
    out = mixer(x, Layout.padded(lengths, 7), None, mixer.remember(encoded, SOURCE))[0]
    assert out.isfinite().all()
    for row, (size, read) in enumerate(zip(lengths, SOURCE.lengths.tolist())):
        one = slice(row, row + 1)
        alone = mixer.remember(encoded[one, :read], Layout.full(1, read))
        close(out[row, :size], mixer(x[one, :size], Layout.full(1, size), None, alone)[0][0], **TOLERANCE)


@every
def test_ragged_prefill_then_decode_is_whole(name: str) -> None:
    mixer, x = make_reader(name), inputs(3, 9, WIDTH)
    source, lengths = memory(mixer), torch.tensor([5, 2, 4])
    whole = mixer(x, Layout.full(3, 9), None, source)[0]
    with torch.no_grad():
        state = mixer.initial_state(3, 9, like=x)
        prefix, state = mixer(x[:, :5], Layout.padded(lengths, 5), state, source)
        for row, size in enumerate(lengths):
            close(prefix[row, :size], whole[row, :size], **TOLERANCE)
        for step in range(4):
            at = lengths + step
            y, state = mixer(x[torch.arange(3), at][:, None], Layout(at[:, None]), state, source)
            close(y[:, 0], whole[torch.arange(3), at], **TOLERANCE)


@every
def test_rows_hold_still_while_others_go_on(name: str) -> None:
    mixer, x = make_reader(name), inputs(3, 6, WIDTH)
    source = memory(mixer)
    whole = mixer(x, Layout.full(3, 6), None, source)[0]
    with torch.no_grad():
        state = mixer.initial_state(3, 6, like=x)
        _, state = mixer(x[:, :3], Layout.full(3, 3), state, source)
        _, state = mixer(x[:, 3:5], Layout(torch.tensor([[3, 4], [-1, -1], [3, -1]])), state, source)
        _, state = mixer(x[:, :1], Layout(torch.full((3, 1), -1)), state, source)
        y, _ = mixer(
            torch.stack([x[0, 5:6], x[1, 3:4], x[2, 4:5]]), Layout(torch.tensor([[5], [3], [4]])), state, source
        )
    close(y[:, 0], torch.stack([whole[0, 5], whole[1, 3], whole[2, 4]]), **TOLERANCE)


@every
def test_beams_read_the_memory_of_their_sentence(name: str) -> None:
    mixer, x = make_reader(name), inputs(6, 3, WIDTH)
    source = memory(mixer)
    rows = torch.arange(3).repeat_interleave(2)
    together = mixer(x, Layout.full(6, 3), mixer.initial_state(6, 3, like=x), source)[0]
    apart = mixer(x, Layout.full(6, 3), None, select(source, rows))[0]
    close(together, apart, **TOLERANCE)


@every
def test_gradients(name: str) -> None:
    mixer, x = make_reader(name), inputs(2, 4, WIDTH).requires_grad_()
    encoded, target = inputs(2, 5, 6, seed=8).requires_grad_(), Layout.padded([4, 3], 4)
    kept, weights = target.mask[..., None], [p for p in mixer.parameters() if p.dim() > 1]

    def run(x: torch.Tensor, encoded: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return mixer(x, target, None, mixer.remember(encoded, Layout.padded([5, 2], 5)))[0] * kept

    assert torch.autograd.gradcheck(run, (x, encoded, *weights), fast_mode=True)


def test_the_cell_is_that_of_the_papers() -> None:
    """Cho et al. 2014, appendix A, and Bahdanau et al. 2015, appendix A.2.2, written out for one row."""
    for name in ("additive-wide", "fixed-wide"):
        mixer, x, h = make_reader(name), inputs(1, 4, WIDTH), inputs(1, 5, 6, seed=8)
        got = mixer(x, Layout.full(1, 4), None, mixer.remember(h, Layout.full(1, 5)))[0]
        (s,) = mixer.initial_state(1, 4, like=x).now
        w, b, u, c_ = mixer.input.weight, mixer.input.bias, mixer.hidden.weight, mixer.context.weight
        (wr, wz, wn), (br, bz, bn), (ur, uz, un), (cr, cz, cn) = (t.chunk(3) for t in (w, b, u, c_))
        for t in range(4):
            e, c = x[:, t], h[:, -1]
            if name == "additive-wide":
                scores = torch.tanh(mixer.query(s)[:, None] + mixer.keys(h)) @ mixer.score.weight[0]
                c = (scores.softmax(-1)[..., None] * h).sum(1)
            r = torch.sigmoid(e @ wr.T + br + s @ ur.T + c @ cr.T)
            z = torch.sigmoid(e @ wz.T + bz + s @ uz.T + c @ cz.T)
            inner = r * (s @ un.T + c @ cn.T) if name == "fixed-wide" else (r * s) @ un.T + c @ cn.T
            new = z * s + (1 - z) * torch.tanh(e @ wn.T + bn + inner)
            close(got[:, t], torch.cat([s if name == "additive-wide" else new, e, c], 1), **TOLERANCE)
            s = new


def test_deterministic_weights_are_the_fast_ones() -> None:
    given = inputs(3, 4), inputs(3, 5, 4, seed=1), inputs(3, 5, 6, seed=2), SOURCE.mask, inputs(1, 4, seed=3)
    fast = additive(*given)
    with deterministic():
        slow = additive(*given)
        alone = additive(*(t[1:2, :2] if t.dim() == 3 else t[1:2] for t in given[:3]), None, given[4])
    for got, wanted in zip(slow, fast):
        close(got, wanted, **TOLERANCE)
    assert torch.equal(alone[0], slow[0][1:2])


def rnnsearch() -> EncoderDecoderConfig:
    """RNNsearch in small, with its deep output."""
    bare = BlockConfig(feed_forward=None, placement="none", residual=False)
    embed, width = TokenEmbedConfig(), 10
    reads = replace(bare, mixer=BidirectionalConfig(GRUConfig(7, out=False), out=False))
    writes = replace(bare, mixer=replace(READERS["additive-wide"], cells=7, memory=None, learned_start=False))
    head = VocabularyHeadConfig(bias=True, maxout=4)
    return EncoderDecoderConfig(
        TransformerConfig(width, 11, None, StackConfig((reads,), None), embed, {}),
        TransformerConfig(width, 11, None, StackConfig((writes,), None), embed, {"vocabulary": head}),
        tie="none",
        bridge=BothBridgeConfig(directions="backward", project=True, activation="tanh"),
    )


def ready() -> EncoderDecoder:
    model = build(rnnsearch()).eval()
    assert isinstance(model, EncoderDecoder)
    shake(model)
    return model


def test_rnnsearch_generates_as_it_trains() -> None:
    model, source, target = ready(), ids(3, 5, seed=1), ids(3, 9, seed=2)
    lengths = torch.tensor([2, 1, 4])
    with torch.no_grad():
        whole = model.heads["vocabulary"](model(source, SOURCE, target, Layout.full(3, 9)).x)
        logits, decoding = model.start(Prompt(target[:, :4], Layout.padded(lengths, 4), source, SOURCE), 9)
        for step in range(5):
            close(logits, whole[torch.arange(3), lengths - 1 + step], **TOLERANCE)
            logits, decoding = model.step(target[torch.arange(3), lengths + step], decoding)


def test_alignments_are_attention_maps() -> None:
    model = ready()
    maps = attention_maps(model, lambda: model(ids(3, 5), SOURCE, ids(3, 4), Layout.padded([4, 2, 3], 4)))
    (name,) = maps
    assert name == "decoder.stack.blocks.0.mixer"
    assert maps[name].shape == (3, 1, 4, 5)
    close(maps[name][0].sum(-1), torch.ones(1, 4, dtype=torch.float64))
    assert bool((maps[name][1, :, :2, 2:] == 0).all())


def test_what_cannot_be_read_is_refused() -> None:
    mixer, x = make_reader("additive"), inputs(1, 4, WIDTH)
    packed, encoded = Layout.packed([[1, 3]], 4), inputs(1, 4, 6)
    with pytest.raises(UserError, match="several sources"):
        mixer.remember(encoded, packed)
    source = mixer.remember(encoded, Layout.full(1, 4))
    with pytest.raises(UserError, match="several targets"):
        mixer(x, packed, None, source)
    with pytest.raises(ConfigError, match="use it in a decoder"):
        mixer(x, Layout.full(1, 4))
    plain = replace(rnnsearch().decoder.stack.blocks[0], residual=True)
    with pytest.raises(ConfigError, match="residual to false"):
        build(TransformerConfig(10, 11, stack=StackConfig((plain,)), tie="none"))
