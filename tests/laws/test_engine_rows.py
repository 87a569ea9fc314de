"""Laws of the CPU engine over many rows: by tiles, on the matrix unit, and in programs whose threads share all work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CAUSAL, FEED_FORWARDS, MIXERS, hybrid, ids, seq2seq, shake
from test_engine import LOWERED

from headway.engine import Engine, Format, quantise
from headway.engine.decoder import EngineDecoding, LogitBuffers
from headway.engine.dots import FEW, MANY, PANEL_BYTES, TILES, few_dots, many_dots
from headway.engine.machine import compiled
from headway.engine.matrix_unit import CONFIGURATION, SCRATCH_BYTES, acquire, block_products, release
from headway.engine.packed_weights import pack, unpack
from headway.engine.processor import HAS_MATRIX_UNIT
from headway.engine.products import quantise as round_rows
from headway.engine.rounding import quantise_row
from headway.engine.tiles import INT8, tile_products
from headway.layout import Layout
from headway.nn.models import BlockConfig, EncoderDecoder, Prompt, Transformer, build

ROWS = 21  # more than a program of few rows takes, and no multiple of what the matrix unit takes at once
FEEDS = list(FEED_FORWARDS.values())
STEPPED = [name for name in CAUSAL if not getattr(MIXERS[name], "placed", False)]  # by the engine


def ready(config: object) -> Transformer | EncoderDecoder:
    model = build(config).eval()  # type: ignore[arg-type]
    shake(model)
    assert isinstance(model, (Transformer, EncoderDecoder))
    return model.float().requires_grad_(False)


def translator() -> EncoderDecoder:
    """Of the mixers that the engine knows."""
    config = seq2seq("all")
    stack = config.decoder.stack
    blocks = tuple(block for block in stack.blocks if not getattr(block.mixer, "placed", False))
    model = ready(replace(config, decoder=replace(config.decoder, stack=replace(stack, blocks=blocks))))
    assert isinstance(model, EncoderDecoder)
    return model


def same_alone(engine: Engine, prompt: Prompt, tokens: torch.Tensor) -> None:
    """All rows together, and each alone, bit for bit."""
    rows = torch.arange(len(tokens))
    with torch.inference_mode():
        _, states = engine.model.start(prompt, 64)  # type: ignore[operator]
        together = engine.adopt(states)
        memory = prompt.source is not None
        alone = [engine.adopt(states.select(rows[n : n + 1], rows[n : n + 1] if memory else None)) for n in rows]
        assert isinstance(together, EngineDecoding)
        for column in tokens.T:
            logits, together = engine.step(column, together)
            for row in range(len(tokens)):
                single, alone[row] = engine.step(column[row : row + 1], alone[row])  # type: ignore[assignment]
                assert torch.equal(single[0], logits[row])


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("name", STEPPED)
def test_many_rows_are_what_each_is_alone(name: str, form: Format) -> None:
    feed = FEEDS[STEPPED.index(name) % len(FEEDS)]
    placement = ("pre", "post", "sandwich")[STEPPED.index(name) % 3]
    blocks = tuple(BlockConfig(MIXERS[name], None, feed, placement=placement) for _ in range(2))  # type: ignore[arg-type]
    config = replace(hybrid(), context=64)
    model = ready(replace(config, stack=replace(config.stack, blocks=blocks)))
    engine = Engine(quantise(model, form), threads=2)  # type: ignore[arg-type]
    same_alone(engine, Prompt(ids(ROWS, 5), Layout.full(ROWS, 5)), ids(ROWS, 3, seed=3))


@pytest.mark.parametrize("threads", [1, 2])
def test_many_rows_of_a_translator(threads: int) -> None:
    model = translator()
    engine = Engine(quantise(model, "int8"), threads)  # type: ignore[arg-type]
    lengths = [1 + n % 9 for n in range(ROWS)]
    source = Layout.padded(lengths, 9)
    same_alone(engine, Prompt(ids(ROWS, 2), Layout.full(ROWS, 2), ids(ROWS, 9, seed=1), source), ids(ROWS, 2, seed=2))


@pytest.mark.parametrize("beams", [2, 11])
def test_rows_that_share_a_memory_are_what_each_is_alone(beams: int) -> None:
    """They attend to it together; one of them that is idle takes nothing from the others."""
    model = translator()
    engine = Engine(model, threads=2)
    prompt = Prompt(ids(3, 2), Layout.full(3, 2), ids(3, 40, seed=1), Layout.padded([40, 1, 33], 40))
    rows, tokens = torch.arange(3).repeat_interleave(beams), ids(3 * beams, 1, seed=2)[:, 0]
    with torch.inference_mode():
        _, states = model.start(prompt, 8)
        together = engine.adopt(states).select(rows)
        first = [n % beams == 1 for n in range(3 * beams)]
        together = together.at(together.positions.masked_fill(torch.tensor(first), -1))
        logits, _ = engine.step(tokens, together)
        for n, row in enumerate(rows.tolist()):
            one = torch.tensor([row])
            single, _ = engine.step(tokens[n : n + 1], engine.adopt(states.select(one, one)))
            assert first[n] or torch.equal(single[0], logits[n])


def test_fewer_rows_after_many_use_their_own_program() -> None:
    model = quantise(ready(replace(hybrid(), stack=replace(hybrid().stack, blocks=hybrid().stack.blocks[:1]))), "int8")
    engine = Engine(model, threads=2)  # type: ignore[arg-type]
    with torch.inference_mode():
        for rows in (ROWS, 3):
            prompt = Prompt(ids(rows, 5), Layout.full(rows, 5))
            logits, states = engine.start(prompt, 20)
            engine.step(logits.argmax(-1), states)
    assert [program.rows for _, program in sorted(engine._programs.items())] == [16, 128]


@compiled
def _on_the_unit(
    kind: int, w: int, ws: int, x: int, stride: int, xs: int, corr: int, groups: int, out: int, count: int,
    room: int,
) -> None:  # fmt: skip
    acquire(room + SCRATCH_BYTES)
    block_products(kind, w, ws, x, stride, xs, corr, groups, out, count, room, True)
    release()


@pytest.mark.skipif(not HAS_MATRIX_UNIT, reason="this processor has no matrix unit, or its system keeps it")
@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("columns", [64, 200, 512])
@pytest.mark.parametrize("rows", [16, 32])
def test_the_matrix_unit_gives_what_tiles_give(form: Format, columns: int, rows: int) -> None:
    packed, x = pack(torch.randn(16, columns) * 3, form), torch.randn(rows, columns)
    assert packed.scales is not None
    groups = packed.scales.shape[1]
    q, xs, corr = (np.zeros((rows, n), kind) for n, kind in ((64 * groups, np.int8), (groups, "f4"), (groups, "i4")))
    round_rows(
        packed.kind, x.data_ptr(), 4 * columns, columns, q.ctypes.data, xs.ctypes.data, corr.ctypes.data, 0, rows
    )
    one, two = np.zeros((rows, 16), "f4"), np.zeros((rows, 16), "f4")
    room = np.zeros(SCRATCH_BYTES + CONFIGURATION + 64, np.uint8)
    fields = (packed.kind, packed.weights.data_ptr(), packed.scales.data_ptr(), q.ctypes.data, 64 * groups)
    fields = (*fields, xs.ctypes.data, corr.ctypes.data, groups)
    _on_the_unit(*fields, one.ctypes.data, rows, -(-room.ctypes.data // 64) * 64)
    tile_products(*fields, two.ctypes.data, rows)
    assert (one == two).all()
    wanted = (q.reshape(rows, groups, 64) * xs[:, :, None]).reshape(rows, -1)[:, :columns] @ unpack(packed).numpy().T
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-3)


def dots_of(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """w x^T of up to TILES tiles of rows, by the form for so many rows of numbers."""
    (rows, columns), count = w.shape, len(x)
    fields, stride = (w.ctypes.data, rows, columns, x.ctypes.data), 4 * columns
    if count > FEW:
        out, room = np.full((TILES, MANY, 16), np.nan, "f4"), np.zeros(PANEL_BYTES, np.uint8)
        many_dots(*fields, stride, count, out.ctypes.data, room.ctypes.data, w.ctypes.data)
        return np.concatenate(list(out[:, :count]), 1)[:, :rows]
    out = np.full((count, 16 * TILES), np.nan, "f4")
    for row in range(0, rows, 16):
        few = np.zeros((count, 16), "f4")
        few_dots(w[row:].ctypes.data, min(16, rows - row), columns, x.ctypes.data, stride, count, few.ctypes.data)
        out[:, row : row + 16] = few
    return out[:, :rows]


@pytest.mark.parametrize(("rows", "columns"), [(128, 576), (37, 100), (16, 1536), (3, 1), (104, 257)])
def test_fp32_products_do_not_depend_on_how_many_rows_there_are(rows: int, columns: int) -> None:
    """Bit for bit, wherever weights lie in memory; and nearer to float64 than sums of all columns in turn."""
    rng = np.random.default_rng(rows)
    w = rng.standard_normal(rows * columns + 2).astype("f4")[2:].reshape(rows, columns)
    x = rng.standard_normal((MANY, columns)).astype("f4")
    alone = np.concatenate([dots_of(w, row[None]) for row in x])
    for count in (*range(1, 45), 128, 255, MANY):
        assert (dots_of(w, x[:count]) == alone[:count]).all()
    errors = alone - x.astype("f8") @ w.astype("f8").T
    assert np.sqrt(np.square(errors).mean()) < 3e-7 * np.sqrt(columns)


@pytest.mark.parametrize("columns", [128, 70])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_rounded_away(columns: int, broken: float) -> None:
    x = np.ones(columns, np.float32)
    x[-1] = broken
    q, scales, corrections = np.zeros(128, np.int8), np.zeros(2, np.float32), np.zeros(2, np.int32)
    quantise_row(x.ctypes.data, columns, INT8, q.ctypes.data, scales.ctypes.data, corrections.ctypes.data, 2)
    assert scales[0] == np.float32(1 / 127)
    assert np.isnan(scales[1])


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("most", [512, 16])
def test_prompts_are_read_as_steps_would_read_them(form: Format, most: int) -> None:
    """Bit for bit, ragged, with chunks that end within blocks, windows, and what is kept."""
    names = LOWERED
    blocks = tuple(
        BlockConfig(MIXERS[name], None, FEEDS[n % len(FEEDS)], placement=("pre", "post")[n % 2])  # type: ignore[arg-type]
        for n, name in enumerate(names)
    )
    config = replace(hybrid(), context=64)
    model = ready(replace(config, stack=replace(config.stack, blocks=blocks)))
    engine = Engine(quantise(model, form), threads=2)  # type: ignore[arg-type]
    engine.max_rows = most
    lengths = torch.tensor([41, 1, 33, 32, 7])
    prompts = ids(5, 41)
    with torch.inference_mode():
        found, states = engine.start(Prompt(prompts, Layout.padded(lengths.tolist(), 41)), 64)
        _, single = engine.start(Prompt(prompts[:, :1], Layout.full(5, 1)), 64)
        wanted = torch.zeros_like(found)
        first, _ = engine.start(Prompt(prompts[:, :1], Layout.full(5, 1)), 64)
        wanted[lengths == 1] = first[lengths == 1]
        for step in range(1, 41):
            going = step < lengths
            assert isinstance(single, EngineDecoding)
            logits, single = engine.step(prompts[:, step], single.at(torch.where(going, step, -1)))
            wanted[lengths == step + 1] = logits[lengths == step + 1]
        assert torch.equal(found, wanted)
        assert isinstance(states, EngineDecoding)
        assert isinstance(single, EngineDecoding)
        column = ids(5, 1, seed=9)[:, 0]
        assert torch.equal(engine.step(column, states)[0], engine.step(column, single.at(lengths))[0])


def test_results_are_the_callers_as_long_as_these_hold_them() -> None:
    results = LogitBuffers()
    first = results.rows(3, 5)
    part = first[1, 2:].fill_(1.0)
    again, third = results.rows(3, 5), results.rows(3, 5)
    assert len({t.data_ptr() for t in (first, again, third)}) == 3
    place = again.data_ptr()
    del again
    fourth = results.rows(2, 4)
    assert fourth.data_ptr() == place
    fourth.fill_(2.0)
    del first
    results.rows(3, 5).fill_(3.0)
    assert (part == 1.0).all()
