"""Guesses change how long generation takes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from generate_models import language_model, translator

from headway.engine import Engine, RowChunk, quantise
from headway.errors import UserError
from headway.generate import GREEDY, Limits, Sampling, Session
from headway.generate.speculation import Lookup, TimedGuessLength
from headway.nn.mixers import GRUConfig
from headway.nn.models import BlockConfig, CacheDtype, Generative, StackConfig, Transformer, TransformerConfig, build

PROMPT = [2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 2, 3]
SAMPLINGS = [
    GREEDY,
    Sampling(0.5, seed=3),
    Sampling(1.0, top_k=3, seed=1),
    Sampling(0.9, top_p=0.8, repetition_penalty=1.2, seed=5),
    Sampling(0, repetition_penalty=1.3),
]


class Plain:
    """An engine that is asked one step at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.extends = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


def model(form: str, context: int | None = 200, threads: int = 1, cache: CacheDtype = "fp32") -> Engine:
    return Engine(quantise(language_model(context=context), form), threads, cache)  # type: ignore[arg-type]


def noisy(form: str, amount: float, context: int | None = 200) -> Transformer:
    """The model with noise on its weights: the more, the worse its guesses."""
    made = language_model(context=context)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return quantise(made, form)  # type: ignore[arg-type,return-value]


def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many tokens were guessed each time, and how many of them were right. All guessing seems to pay."""
    seen: list[tuple[int, int]] = []
    judge = TimedGuessLength.update

    def noted(self: TimedGuessLength, guessed: int, right: int, seconds: float) -> None:
        if guessed:
            seen.append((guessed, right))
        judge(self, guessed, right, 1e-9 if guessed else 1.0)

    monkeypatch.setattr(TimedGuessLength, "update", noted)
    return seen


def same(
    engine: Engine, draft: Generative | None, sampling: Sampling, prompt: list[int] = PROMPT, new: int = 100
) -> None:
    limits = Limits(new, ignore_end=True)
    [found] = Session(engine, draft=draft).generate([prompt], sampling, limits)
    [wanted] = Session(Plain(engine)).generate([prompt], sampling, limits)  # type: ignore[arg-type]
    assert found.ids == wanted.ids
    assert found.logprobs == wanted.logprobs
    assert len(found.ids) == new


@pytest.mark.parametrize(("form", "cache"), [("fp32", "fp32"), ("int8", "fp32"), ("int8", "int8")])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tokens_and_probabilities_are_those_of_single_steps(form: str, cache: CacheDtype, sampling: Sampling) -> None:
    engine = model(form, threads=2, cache=cache)
    counts: list[int] = []
    compute = engine.compute

    def counted(chunks: Sequence[RowChunk], *more: Any) -> torch.Tensor:
        counts.extend(len(chunk.ids) for chunk in chunks if chunk.start)
        return compute(chunks, *more)

    engine.compute = counted  # type: ignore[method-assign]
    same(engine, None, sampling)
    assert max(counts) > 1, "nothing was guessed"


@pytest.mark.parametrize("form", ["fp32", "int8"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_that_is_the_model_is_always_right(
    form: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy or sampled: it draws with the numbers of the sequence."""
    seen = judged(monkeypatch)
    same(model(form), model(form), sampling)
    assert all(guessed == right for guessed, right in seen[:-1])
    assert max(guessed for guessed, _ in seen) == 15


@pytest.mark.parametrize("form", ["fp32", "int4"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_changes_nothing(form: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = judged(monkeypatch)
    rates = []
    for amount in (0.01, 5.0):
        seen.clear()
        same(model(form), Engine(noisy(form, amount), threads=1), sampling)
        rates.append(sum(right for _, right in seen) / sum(guessed for guessed, _ in seen))
    assert rates[0] > rates[1], "the good draft guesses no better than the useless one"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, top_p=0.8, repetition_penalty=1.2, seed=5)])
def test_a_draft_may_run_on_torch_or_be_recurrent(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = judged(monkeypatch)
    same(model("fp32"), noisy("fp32", 0.0), sampling)
    assert sum(right for _, right in seen) > 0.9 * sum(guessed for guessed, _ in seen)
    config = TransformerConfig(16, 23, None, StackConfig((BlockConfig(GRUConfig()),)))
    recurrent = build(config).eval()
    assert isinstance(recurrent, Transformer)
    for draft in (recurrent, Engine(recurrent, threads=1)):
        same(model("fp32"), draft, sampling)


def test_a_draft_of_fewer_or_more_symbols_or_a_shorter_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published tables are longer than their tokenizer, some more than others."""
    seen = judged(monkeypatch)
    engine = model("fp32", context=None)
    for symbols in (20, 30):
        same(engine, Engine(language_model(symbols, None), threads=1), Sampling(1.0, repetition_penalty=1.1, seed=2))
        same(engine, Engine(language_model(symbols, None), threads=1), GREEDY, [22, *PROMPT])
    for context in (1, 2, 3, 20, 40):
        seen.clear()
        same(engine, Engine(noisy("fp32", 0.0, context), threads=1), GREEDY, new=60)
        assert all(guessed <= context // 2 for guessed, _ in seen)
        assert bool(seen) == (context > 1)


def test_a_draft_helps_the_engine_only() -> None:
    for other in (language_model(), translator()):
        with pytest.raises(UserError, match="remove the draft"):
            Session(other, draft=language_model())
    engine = model("fp32")
    limits = Limits(20, ignore_end=True)
    both = Session(engine, draft=language_model()).generate([PROMPT, PROMPT[:5]], GREEDY, limits)
    assert [c.ids for c in both] == [
        Session(engine).generate([prompt], GREEDY, limits)[0].ids for prompt in (PROMPT, PROMPT[:5])
    ]


def test_guesses_are_what_followed_before() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 1, 2])
    assert lookup.guess(4) == [3, 4, 5, 1]
    lookup.ids.append(9)
    assert lookup.guess(4) == []
    lookup.ids += [2, 3, 4]
    assert lookup.guess(4) == [5, 1, 2, 9]
    assert Lookup([7, 1, 2, 1, 2]).guess(4) == [1, 2, 1, 2]


def rested(pace: TimedGuessLength) -> int:
    """How many steps it waits."""
    count = 0
    while not pace.next_length():
        count += 1
    return count


def test_guesses_grow_while_right_and_rest_when_they_do_not_pay() -> None:
    pace = TimedGuessLength()
    assert rested(pace) == 2
    for seconds in (9.0, 1.0, 1.0):  # the first has the compiling in it
        pace.update(0, 0, seconds)
    pace.update(4, 4, 1.5)
    assert pace.next_length() == 8
    pace.update(8, 8, 1.5)
    assert pace.next_length() == 15
    pace.update(15, 3, 1.5)
    assert pace.next_length() == 4
    pauses = []
    for _ in range(6):  # one bad time after another; the first of each is not counted
        while True:
            pace.update(15, 0, 2.5)
            if not pace.next_length():
                break
        pauses.append(1 + rested(pace))
    assert pauses == [16, 32, 64, 128, 256, 256]
    for _ in range(3):
        pace.update(4, 4, 1.0)
    while pace.next_length():
        pace.update(15, 0, 9.0)
    assert 1 + rested(pace) == 16, "what paid again is tried as soon as at first"
