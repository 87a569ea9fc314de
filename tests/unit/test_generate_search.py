"""Beam search against enumeration, greedy search and itself; translation keeps order and batches change nothing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from generate_models import BEGIN, END, language_model, random_rows, translator

from headway.errors import ConfigError, UserError
from headway.generate import (
    Hypothesis,
    Sampling,
    SearchConfig,
    beam_search,
    sample_steps,
    score_ids,
    score_targets,
    search_steps,
    translate_ids,
)
from headway.generate.prompts import make_prompt
from headway.generate.search import largest
from headway.generate.stepper import run_coroutine
from headway.layout import Layout
from headway.nn.kernels import deterministic

CPU = torch.device("cpu")
SOURCES = random_rows([5, 2, 7, 3, 3, 6, 1, 4], 23, seed=5)


def translate(config: SearchConfig, sources=SOURCES, **options) -> list[list[Hypothesis]]:
    return translate_ids(translator(), sources, bos=BEGIN, eos=END, config=config, **options)


def naive_greedy(source: list[int], limit: int) -> tuple[list[int], bool]:
    """Everything computed anew for each symbol."""
    model, ids = translator(), [BEGIN]
    with torch.inference_mode():
        for _ in range(limit):
            layouts = Layout.full(1, len(source)), Layout.full(1, len(ids))
            x = model(torch.tensor([source]), layouts[0], torch.tensor([ids]), layouts[1]).x
            symbol = int(model.heads["vocabulary"](x[0, -1]).argmax())
            if symbol == END:
                return ids[1:], True
            ids.append(symbol)
    return ids[1:], False


def test_one_beam_is_greedy() -> None:
    found = translate(SearchConfig(beam=1))
    lengths = set()
    for source, (best,) in zip(SOURCES, found):
        ids, finished = naive_greedy(source, SearchConfig().limit(len(source)))
        assert (best.ids, best.finished) == (ids, finished)
        lengths.add(len(ids))
    assert len(lengths) > 2  # sentences leave the batch at different steps
    assert len({best.finished for (best,) in found}) == 2  # some end, some are cut


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_beam_that_holds_everything_finds_the_best(alpha: float, seed: int) -> None:
    symbols, most = 4, 4
    model = translator(symbols, seed=seed, gain=0.5)
    sources = [[2, 3], [3], [2, 2, 3]]
    config = SearchConfig(beam=symbols**most, length_penalty=alpha, n_best=3, most_ratio=0.0, most_extra=most)
    found = translate_ids(model, sources, bos=BEGIN, eos=END, config=config)
    others = [s for s in range(symbols) if s != END]
    every = [list(ids) for n in range(most) for ids in itertools.product(others, repeat=n)]
    for source, hypotheses in zip(sources, found):
        totals = [sum(row) for row in score_targets(model, [source] * len(every), every, bos=BEGIN, eos=END)]
        worths = [config.normalised_score(total, len(ids) + 1) for total, ids in zip(totals, every)]
        order = sorted(range(len(every)), key=lambda i: -worths[i])[:3]
        assert [h.ids for h in hypotheses] == [every[i] for i in order]
        assert [h.score for h in hypotheses] == pytest.approx([worths[i] for i in order], abs=1e-4)
        assert [h.log_probability for h in hypotheses] == pytest.approx([totals[i] for i in order], abs=1e-4)


@pytest.mark.parametrize("beam", [2, 5])
def test_scores_are_those_of_teacher_forcing(beam: int) -> None:
    """Hypotheses that move between rows take their caches along."""
    config = SearchConfig(beam=beam, n_best=beam, length_penalty=0.6)
    for source, hypotheses in zip(SOURCES, translate(config)):
        assert [(h.finished, h.score) for h in hypotheses] == sorted(
            ((h.finished, h.score) for h in hypotheses), reverse=True
        )
        assert len({tuple(h.ids) for h in hypotheses}) == len(hypotheses) == beam
        rows = score_targets(translator(), [source] * beam, [h.ids for h in hypotheses], bos=BEGIN, eos=END)
        for row, h in zip(rows, hypotheses):
            total, length = (sum(row), len(row)) if h.finished else (sum(row[:-1]), len(row) - 1)
            assert h.log_probability == pytest.approx(total, abs=1e-4)
            assert h.score == pytest.approx(config.normalised_score(total, length), abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_batches_change_nothing_in_deterministic_mode(beam: int) -> None:
    config = SearchConfig(beam=beam, n_best=beam)
    with deterministic():
        whole = translate(config)
        assert whole == translate(config, batch_tokens=1)
        assert whole == translate(config, SOURCES[::-1])[::-1]


def test_a_wider_beam_finds_no_worse_on_the_whole() -> None:
    worth = [sum(hypotheses[0].score for hypotheses in translate(SearchConfig(beam=b))) for b in (1, 4, 12)]
    assert worth[0] < worth[1] < worth[2]


def test_prefixes_are_kept_and_continued() -> None:
    prefixes = [[7], [], [8, 9, 10], [], [5], [6, 6], [], [4]]
    found = translate(SearchConfig(beam=3, n_best=2), prefixes=prefixes)
    for prefix, hypotheses in zip(prefixes, found):
        assert all(h.ids[: len(prefix)] == prefix for h in hypotheses)
    greedy = translate(SearchConfig(beam=1))
    forced = translate(SearchConfig(beam=1), prefixes=[best.ids[:2] for (best,) in greedy])
    assert [best.ids for (best,) in forced] == [best.ids for (best,) in greedy]


@pytest.mark.parametrize("beam", [1, 4])
def test_suppressed_symbols_are_never_written_and_change_no_probability(beam: int) -> None:
    config = SearchConfig(beam=beam, n_best=beam)
    free = [symbol for hypotheses in translate(config) for h in hypotheses for symbol in h.ids]
    common = sorted(set(free), key=lambda symbol: -free.count(symbol))[:3]
    for source, hypotheses in zip(SOURCES, translate(config, suppressed=common)):
        assert not {symbol for h in hypotheses for symbol in h.ids} & set(common)
        rows = score_targets(translator(), [source] * beam, [h.ids for h in hypotheses], bos=BEGIN, eos=END)
        totals = [sum(row if h.finished else row[:-1]) for row, h in zip(rows, hypotheses)]
        assert [h.log_probability for h in hypotheses] == pytest.approx(totals, abs=1e-4)
    assert not any(h.finished for hypotheses in translate(config, suppressed=[END]) for h in hypotheses)


def test_decoding_may_start_with_any_symbol() -> None:
    found = translate_ids(translator(), SOURCES, bos=5, eos=END, config=SearchConfig(beam=1))
    forced = translate(SearchConfig(beam=1), prefixes=[[5]] * len(SOURCES))
    assert [best.ids for (best,) in found] != [best.ids[1:] for (best,) in forced]  # no symbol stands before it
    totals = score_targets(translator(), SOURCES, [best.ids for (best,) in found], bos=5, eos=END)
    for row, (best,) in zip(totals, found):
        assert best.log_probability == pytest.approx(sum(row if best.finished else row[:-1]), abs=1e-4)


def test_limits_are_kept() -> None:
    config = SearchConfig(beam=4, most_ratio=1.0, most_extra=1)
    for source, (best,) in zip(SOURCES, translate(config)):
        assert len(best.ids) <= len(source) + 1
    near = translate_ids(translator(context=7), SOURCES, bos=BEGIN, eos=END, prefixes=[[2, 3]] * len(SOURCES))
    assert all(len(best.ids) <= 6 for (best,) in near)


def test_empty_sources_and_no_sources() -> None:
    found = translate(SearchConfig(beam=2), [[], SOURCES[0]])
    assert found[0] == [Hypothesis([], 0.0, 0.0, True)]
    assert found[1] == translate(SearchConfig(beam=2), [SOURCES[0]])[0]
    assert translate(SearchConfig(), []) == []


def test_language_models_search_too() -> None:
    model, prompts = language_model(), [[2, 3, 4], [5], [6, 7]]
    found = beam_search(model, make_prompt(prompts, None, CPU), [6, 6, 4], END, SearchConfig(beam=3))
    assert [len(h) for h in found] == [1, 1, 1]
    for prompt, (best,), limit in zip(prompts, found, [6, 6, 4]):
        ids = [*prompt, *best.ids, *([END] if best.finished else [])]
        total = sum(score_ids(model, [ids])[0][len(prompt) - 1 :])
        assert best.log_probability == pytest.approx(total, abs=1e-4)
        assert len(best.ids) <= limit


def test_the_model_keeps_its_mode() -> None:
    model = translator().train()
    translate_ids(model, SOURCES[:1], bos=BEGIN, eos=END)
    assert model.training


@pytest.mark.parametrize("columns", [10, 200, 1000, 1003])
@pytest.mark.parametrize("count", [1, 4])
def test_largest_is_topk(columns: int, count: int) -> None:
    x = torch.randn(6, columns, generator=torch.Generator().manual_seed(columns))
    values, places = largest(x, count)
    assert torch.equal(values, x.topk(count).values)
    assert torch.equal(x.gather(1, places), values)


def test_bad_input_is_refused_before_work() -> None:
    with pytest.raises(UserError, match="source of 41 tokens exceeds the context of 40"):
        translate(SearchConfig(), [[2] * 41])
    with pytest.raises(UserError, match="prompt of 41 tokens exceeds the context of 40"):
        translate(SearchConfig(), [[2]], prefixes=[[3] * 40])
    with pytest.raises(UserError, match="1 prefixes do not match 2 sources"):
        translate(SearchConfig(), [[2], [3]], prefixes=[[3]])
    with pytest.raises(UserError, match="suppressed token contains id 23"):
        translate(SearchConfig(), suppressed=[23])
    with pytest.raises(UserError, match="source contains id -1"):
        translate(SearchConfig(), [[2, -1]])
    with pytest.raises(ConfigError, match="beam is 0"):
        SearchConfig(beam=0)
    with pytest.raises(ConfigError, match="n_best is 5, but beam is 4"):
        SearchConfig(n_best=5)
    with pytest.raises(ConfigError, match="length_penalty is -1"):
        SearchConfig(length_penalty=-1.0)
    with pytest.raises(ConfigError, match=r"length_penalty is 1e\+25; use 0 \(no penalty\) to 20"):
        SearchConfig(length_penalty=1e25)
    with pytest.raises(ConfigError, match="most_extra=0"):
        SearchConfig(most_extra=0)
    prompt = make_prompt([[2], [3, 4]], None, CPU)
    with pytest.raises(UserError, match="do not match 2 prompts"):
        beam_search(language_model(), prompt, [3], END)
    with pytest.raises(UserError, match="add up to 33 tokens, but the context is 32"):
        beam_search(language_model(), prompt, [3, 31], END)


def test_damaged_weights_are_an_error() -> None:
    model = translator()
    with torch.no_grad():
        model.decoder.embed.table.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        translate_ids(model, SOURCES, bos=BEGIN, eos=END)


def test_a_rule_forbids_before_probabilities_are_made() -> None:
    """What is forbidden gets none, and the others share all there is."""
    forbidden = [4, 5, 6]

    def rule(logits: torch.Tensor, history: torch.Tensor) -> None:
        assert history.shape[1] == 0 or not set(history.flatten().tolist()) & set(forbidden)
        logits[:, forbidden] = -torch.inf

    model = translator()
    prompt = make_prompt([[BEGIN]], [SOURCES[0]], torch.device("cpu"))
    with torch.inference_mode():
        logits, decoding = model.start(prompt, 20)
        wanted = logits.clone()
        wanted[:, forbidden] = -torch.inf
        found = run_coroutine(model, search_steps(logits, decoding, [1], END, SearchConfig(beam=1), rule=rule))
    assert found[0][0].log_probability == pytest.approx(float(wanted.log_softmax(-1).max()), abs=1e-5)


def test_a_mean_of_each_symbol_is_a_worth_too() -> None:
    config = SearchConfig(length_penalty=1.0, length_offset=0.0)
    assert config.normalised_score(-12.0, 4) == -3.0
    assert SearchConfig(length_penalty=0.6).normalised_score(-12.0, 1) == -12.0
    with pytest.raises(ConfigError, match="length_offset is -1"):
        SearchConfig(length_offset=-1.0)


def test_texts_are_drawn_by_their_seed_and_under_a_rule() -> None:
    def rule(logits: torch.Tensor, history: torch.Tensor) -> None:
        logits[:, 7:] = -torch.inf

    model = translator()
    prompt = make_prompt([[BEGIN]], [SOURCES[0]], torch.device("cpu"))

    def drawn(seed: int) -> list[Hypothesis]:
        with torch.inference_mode():
            logits, decoding = model.start(prompt, 20)
            return run_coroutine(model, sample_steps(logits, decoding, 4, 6, (END,), Sampling(1.0, seed=seed), rule))

    found = drawn(1)
    assert found == drawn(1) != drawn(2)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(len(one.ids) <= 6 and max(one.ids, default=0) < 7 and END not in one.ids for one in found)
    assert len({tuple(one.ids) for one in found}) > 1
