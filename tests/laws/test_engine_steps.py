"""Laws of the engine's one step: what a row says depends on neither the others, nor the pieces, nor the threads."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import FEED_FORWARDS, MIXERS, hybrid, ids, shake
from test_engine import LOWERED
from test_engine_rows import translator

from headway.engine import Engine, EngineDecoding, Format, OutOfBlocksError, Row, RowChunk, quantise
from headway.engine.operations import FAR, NEAR
from headway.engine.pool import pool
from headway.engine.sampling_batch import SamplingBatch
from headway.engine.sampling_kernels import UNIFORM
from headway.generate import Sampling
from headway.generate.compiled_sampling import SamplingTable
from headway.layout import Layout
from headway.nn.models import BlockConfig, CacheDtype, Transformer, build
from headway.visibility import Causal

FEEDS = list(FEED_FORWARDS.values())
CONTEXT = 200
TEXT = ids(1, CONTEXT, seed=7)[0].tolist()  # of which every row reads a part


def model_of(names: list[str], form: Format, context: int = CONTEXT) -> Transformer:
    blocks = tuple(
        BlockConfig(MIXERS[name], None, FEEDS[n % len(FEEDS)], placement=("pre", "post")[n % 2])  # type: ignore[arg-type]
        for n, name in enumerate(names)
    )
    config = replace(hybrid(), context=context)
    model = build(replace(config, stack=replace(config.stack, blocks=blocks))).eval()
    shake(model)
    assert isinstance(model, Transformer)
    quantise(model.float().requires_grad_(False), form)
    return model


def alone(engine: Engine, offset: int, count: int) -> torch.Tensor:
    """The logits after each of `count` symbols of TEXT from `offset` on, of one row, symbol by symbol."""
    [row] = engine.open(count=1).rows
    said = (TEXT[(offset + n) % CONTEXT] for n in range(count))
    return torch.cat([engine.compute([RowChunk(row, n, [symbol])]) for n, symbol in enumerate(said)])


class Driver:
    """Rows that read TEXT, each from an offset of its own, in steps that are drawn at random."""

    def __init__(self, engine: Engine, wanted: list[torch.Tensor], seed: int, guesses: bool) -> None:
        self.engine, self.wanted, self.guesses = engine, wanted, guesses
        self.draw, self.other = random.Random(seed), random.Random(seed)
        self.rows: list[list] = []  # of each the row, its offset, and how far it is

    def step(self, most: int) -> None:
        draw = self.draw
        while len(self.rows) < draw.randint(1, most):
            kind = draw.random()
            if kind < 0.3 and self.rows:
                row, offset, place = draw.choice(self.rows)
                self.rows.append([row.fork(), offset, place])
            else:
                self.rows.append([self.engine.open(count=1).rows[0], draw.randrange(len(self.wanted)), 0])
        pieces, expected = [], []
        for one in self.rows:
            row, offset, place = one
            count = draw.choice([1, 1, 1, 2, 5, 33]) if place else draw.choice([1, 7, 40])
            count = min(count, len(self.wanted[offset]) - place)
            if not count:
                continue
            said = [TEXT[(offset + place + n) % CONTEXT] for n in range(count)]
            wrong = self.guesses and draw.random() < 0.3
            if wrong:  # what is read beyond is read again, from where the sequence stands
                said += [draw.randrange(11) for _ in range(draw.randint(1, 4))][: CONTEXT - place - count]
            wanted = len(said) if wrong else draw.choice([0, 1, count])
            pieces.append(RowChunk(row, place, said, wanted))
            kept = self.wanted[offset][place : place + count]
            expected.append((kept[len(kept) - wanted :] if not wrong else kept, wanted))
            one[2] += count
        if not pieces:
            self.rows.clear()
            return
        count = sum(wanted for _, wanted in expected)
        table, places = SamplingTable(Sampling(0.9, top_k=7), count), list(range(count))
        self.other.shuffle(places)
        uniform = np.array([self.other.random() for _ in places])
        table.floats[:, UNIFORM] = uniform
        choosing = SamplingBatch(list(zip(table.addresses, places)))
        logits, end = self.engine.compute(pieces, choosing), 0
        behind_it = SamplingBatch(list(zip(table.addresses, places))).run(logits, pool(1))
        for chosen, behind in zip(choosing.choices, behind_it):
            assert (chosen == behind).all(), "a step chooses otherwise than is chosen behind it"
        for kept, wanted in expected:
            begin, end = end, end + wanted
            assert torch.equal(logits[begin : begin + len(kept)], kept)
        assert end == len(logits)
        for one in [one for one in self.rows if draw.random() < 0.1]:
            self.rows.remove(one)
            one[0].close()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("form", "cache"), [("fp32", "fp32"), ("fp32", "int8"), ("int8", "int8"), ("int4", "fp16")])
def test_rows_that_come_and_go_say_what_they_say_alone(form: Format, cache: CacheDtype, threads: int) -> None:
    """With every kind of attention, windows among them, wrong guesses, forks, and up to 65 rows."""
    with torch.inference_mode():
        model = model_of(LOWERED, form)
        single = Engine(model, threads=1, cache=cache)
        wanted = [alone(single, offset, 60 + 45 * offset) for offset in range(3)]
        engine = Engine(model, threads=threads, cache=cache)
        driver = Driver(engine, wanted, seed=threads, guesses=True)
        for most in (1, 2, 4, 17, 65, 9, 3, 30, 1, 12):
            driver.step(most)
        driver.rows.clear()
        assert engine._kv_blocks.used == 0


@pytest.mark.parametrize(("cache", "near"), [("fp32", 1e-5), ("fp16", 0.002), ("int8", 0.02)])
def test_far_positions_do_not_hang_on_how_they_are_reached(
    cache: CacheDtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pieces of a context have become long: read at once, in parts, symbol by symbol, beside twenty others, and
    with any number of threads, bit for bit; near to what torch says.
    """
    length = NEAR + FAR + 70
    text = ids(1, length, seed=3)[0].tolist()
    window = replace(MIXERS["attention-window"], pattern=Causal(window=NEAR + 100))  # type: ignore[call-arg]
    monkeypatch.setitem(MIXERS, "attention-window", window)
    with torch.inference_mode():
        model = model_of(["attention-grouped", "attention-window"], "fp32", 2048)
        engine, last = Engine(model, threads=2, cache=cache), text[-20:]
        [row] = engine.open(count=1).rows
        wanted = engine.compute([RowChunk(row, 0, text, 20)]).clone()
        exact = model.logits(torch.tensor([text]))[0, -20:]
        assert (wanted - exact).norm() < near * exact.norm()
        start = length - 20
        for threads in (1, 3):
            engine = Engine(model, threads=threads, cache=cache)
            [row] = engine.open(count=1).rows
            for begin, end in ((0, 90), (90, 1100), (1100, 1107), (1107, start)):
                engine.compute([RowChunk(row, begin, text[begin:end])])
            others = [RowChunk(one, 0, text[:n]) for n, one in enumerate(engine.open(count=20).rows, start=1)]
            found = engine.compute([*others, RowChunk(row.fork(), start, last, 20)])
            assert torch.equal(found[-20:], wanted)
            singly = [engine.compute([RowChunk(row, start + n, [symbol])]) for n, symbol in enumerate(last)]
            assert torch.equal(torch.cat(singly), wanted)


@pytest.mark.parametrize("name", ["lstm", "gru", "gated-delta", "dynamic-links"])
def test_rows_with_states_say_what_they_say_alone(name: str) -> None:
    with torch.inference_mode():
        model = model_of([name, "attention-grouped", name], "fp32")
        single = Engine(model, threads=1)
        wanted = [alone(single, offset, 30 + 10 * offset) for offset in range(3)]
        for threads in (1, 2):
            driver = Driver(Engine(model, threads=threads), wanted, seed=threads, guesses=False)
            for most in (1, 3, 20, 5):
                driver.step(most)


def test_many_threads_change_nothing() -> None:
    with torch.inference_mode():
        model = model_of(LOWERED[:3], "int8")
        wanted = alone(Engine(model, threads=1), 0, 9)
        assert torch.equal(alone(Engine(model, threads=64), 0, 9), wanted)


def test_sources_of_any_length_are_read_in_one_step() -> None:
    """Rows of translations and beams of one of them, with prompts of any length."""
    model, sources = translator(), ids(3, 70, seed=1)
    lengths, said = [70, 1, 33], TEXT[:9]
    engine = Engine(model, threads=2)
    with torch.inference_mode():
        heard = [model.encode(sources[n : n + 1, :length], Layout.full(1, length)) for n, length in enumerate(lengths)]
        whole = [Layout.full(1, length) for length in lengths]

        def opened(number: int) -> Row:
            return engine.open(heard[number], whole[number]).rows[0]

        wanted = [engine.compute([RowChunk(opened(number), 0, said, 9)]) for number in range(3)]
        first = opened(0)
        rows = [first.fork(), first.fork(), opened(2), first, opened(1)]
        found = engine.compute([RowChunk(row, 0, said, 1 + n) for n, row in enumerate(rows)])
        for n, number in enumerate((0, 0, 2, 0, 1)):
            begin = n * (n + 1) // 2
            assert torch.equal(found[begin : begin + n + 1], wanted[number][9 - n - 1 :])


def test_a_cache_that_is_full_is_said_before_anything_is_written() -> None:
    with torch.inference_mode():
        engine = Engine(model_of(["attention"], "fp32"), threads=1)
        kept = engine.open(count=2)
        assert isinstance(kept, EngineDecoding)
        engine.limit_cache(3 * engine._kv_blocks.size)
        first, second = kept.rows
        engine.compute([RowChunk(first, 0, TEXT[:40])])
        with pytest.raises(OutOfBlocksError, match="1 blocks of keys and values are missing"):
            engine.compute([RowChunk(first, 40, [1]), RowChunk(second, 0, TEXT[:40])])
        assert [len(row.blocks) for row in kept.rows] == [2, 0]
        assert engine.lacking([RowChunk(second, 0, TEXT[:32])]) == 0
        first.truncate(32)
        engine.compute([RowChunk(first, 32, [1]), RowChunk(second, 0, TEXT[:32])])
        assert engine.lacking([RowChunk(second, 32, [1])]) == 1
