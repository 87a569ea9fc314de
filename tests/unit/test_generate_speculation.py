"""Guesses change how long generation takes, and nothing else."""

from __future__ import annotations

import pytest
import torch
from generate_models import language_model

from headway.engine import Engine, quantise
from headway.generate import GREEDY, Limits, Sampling, Session
from headway.generate.speculation import Lookup
from headway.models import Cache, Transformer


class Plain:
    """An engine that is asked one step at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.extends = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


def model(form: str, cache: Cache = "fp32") -> Engine:
    made = language_model(context=200)
    assert isinstance(made, Transformer)
    return Engine(quantise(made, form), threads=2, cache=cache)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "cache"), [("fp32", "fp32"), ("int8", "fp32"), ("int8", "int8")])
@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(0.5, seed=3), Sampling(1.0, top_k=3, seed=1), Sampling(0, repetition_penalty=1.3)]
)
def test_tokens_and_probabilities_are_those_of_single_steps(form: str, cache: Cache, sampling: Sampling) -> None:
    engine = model(form, cache)
    counts: list[int] = []
    extend = engine.extend

    def counted(ids: torch.Tensor, decoding: object) -> object:
        counts.append(ids.shape[1])
        return extend(ids, decoding)  # type: ignore[arg-type]

    engine.extend = counted  # type: ignore[assignment,method-assign]
    prompt = [2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 2, 3]
    limits = Limits(150, ignore_end=True)
    [found] = Session(engine).generate([prompt], sampling, limits)
    assert max(counts) > 1, "nothing was guessed"
    [wanted] = Session(Plain(engine)).generate([prompt], sampling, limits)  # type: ignore[arg-type]
    assert found.ids == wanted.ids
    assert found.logprobs == wanted.logprobs
    assert len(found.ids) == 150


def test_guesses_are_what_followed_before() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 1, 2])
    assert lookup.guess() == [3, 4, 5, 1]
    lookup.add(9)
    assert lookup.guess() == []
    for symbol in (2, 3, 4):
        lookup.add(symbol)
    assert lookup.guess() == [5, 1, 2, 9]
    assert Lookup([7, 1, 2, 1, 2]).guess() == [1, 2, 1, 2]


def test_guesses_grow_while_right_and_rest_when_they_do_not_pay() -> None:
    lookup = Lookup([1, 2, 3] * 20)
    for _ in range(3):
        lookup.judge(0, 0, 1.0)
    lookup.judge(4, 4, 1.5)
    assert len(lookup.guess()) == 8
    lookup.judge(8, 8, 1.5)
    assert len(lookup.guess()) == 15
    for _ in range(20):
        lookup.judge(15, 0, 2.0)
    assert lookup.guess() == []
    for _ in range(20):
        lookup.guess()
    assert lookup.guess() != []
