"""Laws of the CPU engine over mixers whose state does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CAUSAL, MIXERS, READERS, WIDTH, ids, shake, translator

from headway.engine import Engine, EngineDecoding, Format, quantise
from headway.engine.instructions import WORDS, Opcode
from headway.engine.sequence_rows import states_of
from headway.generate import GREEDY, Limits, SearchConfig, Session, translate_ids
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoder,
    Prompt,
    StackConfig,
    Transformer,
    TransformerConfig,
    build,
)
from headway.nn.models.block import Placement

Model = Transformer | EncoderDecoder
close = torch.testing.assert_close
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}
FIXED = [name for name in CAUSAL if not isinstance(MIXERS[name], AttentionConfig)]
SYMBOLS = 11


def around(name: str, placement: Placement = "none", residual: bool = False) -> BlockConfig:
    return BlockConfig(MIXERS[name], None, None, placement=placement, residual=residual)


def decoder(*blocks: BlockConfig) -> Transformer:
    """A model in float64 with weights large enough that every part matters."""
    stack = StackConfig(blocks, None)
    model = build(TransformerConfig(WIDTH, SYMBOLS, 64, stack, tie="none")).eval()
    shake(model)
    return model.requires_grad_(False)


def follow(model: Model, engine: Engine, prompt: Prompt) -> None:
    """Both go on from a ragged prompt of 5 rows: one is padding for a while, and rows change places."""
    with torch.inference_mode():
        _, theirs = model.start(prompt, 60)
        ours = engine.adopt(theirs)
        for number, column in enumerate(ids(5, 12, seed=3).T):
            places = theirs.positions
            still = (torch.arange(5) == 1) & (number in (3, 4))
            if number == 6:
                order = torch.tensor([4, 1, 1, 0, 2])
                theirs, ours, places = theirs.select(order), ours.select(order), places[order]
            if number == 8:
                places = places[torch.tensor([3, 1, 2, 1, 4])]
                for decoding in (theirs, ours):
                    decoding.assign(torch.tensor([0, 3]), torch.tensor([3, 1]))
            theirs, ours = (d.at(places.masked_fill(still, -1)) for d in (theirs, ours))
            wanted, theirs = model.step(column, theirs)
            found, ours = engine.step(column, ours)
            close(found[~still].double(), wanted[~still], **TOLERANCE)
            theirs, ours = (d.at(places + (~still).long()) for d in (theirs, ours))


@pytest.mark.parametrize("name", FIXED)
def test_mixers_step_as_their_modules(name: str) -> None:
    """Wanted is what double precision gives."""
    model = decoder(around(name), around(name, "pre", True))
    engine = Engine(decoder(around(name), around(name, "pre", True)).float(), threads=1 + FIXED.index(name) % 3)
    prompt = Prompt(ids(5, 7), Layout.padded([7, 1, 4, 2, 6], 7))
    follow(model, engine, prompt)


def translators(reader: str) -> tuple[EncoderDecoder, EncoderDecoder]:
    """In double precision and in single."""
    made = build(translator(reader)).eval(), build(translator(reader)).eval()
    for model in made:
        shake(model)
        assert isinstance(model, EncoderDecoder)
        model.requires_grad_(False)
    return made[0], made[1].float()


@pytest.mark.parametrize("reader", READERS)
def test_readers_step_as_their_modules(reader: str) -> None:
    model, single = translators(reader)
    sources = ids(5, 70, seed=1), Layout.padded([70, 3, 33, 32, 1], 70)
    prompt = Prompt(ids(5, 7), Layout.padded([7, 1, 4, 2, 6], 7), *sources)
    follow(model, Engine(single, threads=1 + list(READERS).index(reader) % 3), prompt)


@pytest.mark.parametrize("reader", ["additive-wide", "fixed-wide"])
def test_beam_search_finds_the_same_translations(reader: str) -> None:
    model, single = translators(reader)
    sources = [[3, 4, 5], [6, 2, 2, 7, 9], [8]]
    search = SearchConfig(beam=4, n_best=2)
    wanted = translate_ids(model, sources, bos=0, eos=1, config=search)
    found = translate_ids(Engine(single, threads=2), sources, bos=0, eos=1, config=search)
    assert [[h.ids for h in some] for some in found] == [[h.ids for h in some] for some in wanted]


def test_attention_and_recurrences_in_one_model() -> None:
    blocks = [around(name, "pre", True) for name in ("attention-grouped", "lstm", "gated-delta", "attention", "gru")]
    engine = Engine(decoder(*blocks).float(), threads=2)
    follow(decoder(*blocks), engine, Prompt(ids(5, 33), Layout.padded([33, 1, 4, 31, 32], 33)))


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "mlstm", "gated-delta", "linear-attention-dpfp"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantised_models_step_as_their_modules(name: str, form: Format) -> None:
    """What differs is that torch does not round the states to 8 bits that a recurrence multiplies."""
    model = quantise(decoder(around(name, "pre", True)).float(), form)
    assert isinstance(model, Transformer)
    engine, errors = Engine(model, threads=2), []
    with torch.inference_mode():
        _, theirs = model.start(Prompt(ids(2, 4), Layout.full(2, 4)), 40)
        ours = engine.adopt(theirs)
        for column in ids(2, 20, seed=4).T:
            wanted, theirs = model.step(column, theirs)
            found, ours = engine.step(column, ours)
            errors.append(float((found - wanted).norm() / wanted.norm()))
    assert sum(errors) / len(errors) < 0.01


def test_rows_leave_when_they_have_ended() -> None:
    """Each when it comes to the end of its context."""
    model, engine = decoder(around("gru", "pre", True)), Engine(decoder(around("gru", "pre", True)).float())
    prompts = [[i % SYMBOLS] * (60 - 5 * i) for i in range(8)]
    wanted = [c.ids for c in Session(model).generate(prompts, GREEDY, Limits(20))]
    assert {len(found) for found in wanted} == {4, 9, 14, 19, 20}
    assert [c.ids for c in Session(engine).generate(prompts, GREEDY, Limits(20))] == wanted


def test_a_state_that_is_selected_is_a_copy() -> None:
    engine = Engine(decoder(around("lstm")).float())
    with torch.inference_mode():
        _, kept = engine.start(Prompt(ids(2, 3), Layout.full(2, 3)), 20)
        chosen = kept.select(torch.tensor([1, 0]))
        assert isinstance(kept, EngineDecoding)
        assert isinstance(chosen, EngineDecoding)
        states = states_of(kept.rows).copy()
        engine.step(torch.tensor([1, 2]), chosen)
    assert np.array_equal(states_of(kept.rows), states)
    assert not np.array_equal(states_of(chosen.rows), states[::-1])


def test_who_takes_parts_of_a_product_meets_who_uses_them() -> None:
    """Between two barriers nothing else touches the rows of a product of which any thread may make parts."""
    free, y, stride = (WORDS[Opcode.MULTIPLY][name] for name in ("free", "y", "y_stride"))
    for name in [*FIXED, "attention-grouped"]:
        engine = Engine(
            decoder(around(name, "pre", residual=True), around(name, "pre", residual=True)).float(), threads=2
        )
        table = engine._programs[False].table
        met, shared = (
            np.flatnonzero(table[:, 0] == Opcode.BARRIER),
            np.flatnonzero(table[:, free] * (table[:, 0] == Opcode.MULTIPLY)),
        )
        assert len(table) - 1 in shared  # the head's
        for number in shared[:-1]:
            place = np.searchsorted(met, number)
            others = np.delete(table[met[place - 1] + 1 : met[place]], number - met[place - 1] - 1, 0)
            first = table[number, y]
            assert not ((others[:, 1:] >= first) & (others[:, 1:] < first + table[number, stride])).any()
