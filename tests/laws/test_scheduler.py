"""Laws of the scheduler: whatever else is under way, a request gets what a session alone gives it, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from cases import FEED_FORWARDS, HEADS, MIXERS, WIDTH
from test_engine_rows import ready

from headway.engine import Engine, quantise
from headway.engine.operations import BLOCK
from headway.errors import UserError
from headway.formats.llama2c import load_llama2c
from headway.generate import Limits, Sampling, Session
from headway.generate.scheduler import FullError, Request, Said, Scheduler
from headway.generate.speculation import Prudence
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, Cache, StackConfig, Transformer, TransformerConfig
from headway.visibility import Causal

SYMBOLS = 23
SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.7, seed=3),
    Sampling(1.0, top_k=3, seed=1),
    Sampling(0.9, top_p=0.8, repetition_penalty=1.2, seed=5),
    Sampling(0.8, min_p=0.1, presence_penalty=1.5, frequency_penalty=-0.5, seed=2),
    Sampling(0.0, frequency_penalty=0.7, logit_bias={4: 3.0, 7: -100}),
]


def attending(*windows: int | None) -> Transformer:
    blocks = [BlockConfig(AttentionConfig(HEADS, pattern=Causal(window=window))) for window in windows]
    model = ready(TransformerConfig(WIDTH, SYMBOLS, 160, StackConfig(tuple(blocks))))
    assert isinstance(model, Transformer)
    return model


def recurrent(*names: str) -> Transformer:
    blocks = [BlockConfig(MIXERS[name], None, FEED_FORWARDS["gelu"]) for name in names]  # type: ignore[arg-type]
    model = ready(TransformerConfig(WIDTH, SYMBOLS, 160, StackConfig(tuple(blocks))))
    assert isinstance(model, Transformer)
    return model


Told = dict[tuple[int, int], list[Said]]


def alone(engine: Engine, request: Request) -> list[tuple[list[int], list[float], str]]:
    """What each copy of a request is by a session."""
    found = Session(engine).generate([request.prompt] * request.copies, request.sampling, request.limits)
    return [(one.ids, one.logprobs, one.finish_reason) for one in found]


def finished(scheduler: Scheduler) -> Told:
    """All that is said until nothing is under way."""
    told: Told = {}
    while scheduler.state().waiting or scheduler.state().running:
        for said in scheduler.step():
            told.setdefault((said.ticket, said.copy), []).append(said)
    return told


def said_of(parts: Iterable[Said]) -> tuple[list[int], list[float], str | None]:
    new = [said for said in parts if said.id is not None]
    return [said.id for said in new if said.id is not None], [said.logprob for said in new], list(parts)[-1].reason


def requests_of(chance: random.Random, count: int) -> list[Request]:
    """Prompts that begin alike, repeat themselves, and end anywhere; of two owners."""
    stems = [[chance.randrange(SYMBOLS) for _ in range(90)] for _ in range(2)]
    made = []
    for _ in range(count):
        stem = chance.choice(stems)[: chance.choice([0, 31, 32, 33, 64, 80])]
        tail = [chance.randrange(SYMBOLS) for _ in range(chance.randint(1, 5))]
        prompt = (stem + tail * chance.randint(1, 5))[:130]
        limits = Limits(chance.randint(1, 30), stop_ids=(5,) if chance.random() < 0.3 else ())
        copies = chance.choice([1, 1, 1, 3])
        made.append(Request(prompt, chance.choice(SAMPLINGS), limits, copies, owner=chance.choice("ab")))
    return made


def drive(
    scheduler: Scheduler, requests: list[Request], chance: random.Random, cancels: float
) -> tuple[dict[int, Request], Told]:
    """Requests come and go between steps; those that are cancelled are left out of what is given back."""
    asked: dict[int, Request] = {}
    told: Told = {}
    left = list(requests)
    while left or scheduler.state().waiting or scheduler.state().running:
        while left and chance.random() < 0.4:
            request = left.pop()
            asked[scheduler.submit(request)] = request
        if asked and chance.random() < cancels:
            gone = chance.choice(list(asked))
            scheduler.cancel(gone)
            del asked[gone]
        for said in scheduler.step():
            told.setdefault((said.ticket, said.copy), []).append(said)
    return asked, told


def free_of_leaks(scheduler: Scheduler, engine: Engine) -> None:
    if scheduler._prefixes is not None:
        assert scheduler._prefixes.loose() == engine._own.held
        scheduler._prefixes.drop(float("inf"))
        assert not scheduler._prefixes._trees
    assert engine._own.held == 0
    assert not scheduler._turns._served


CASES = [  # form, cache, threads, blocks of the cache, tokens of prompts in a step
    ("fp32", "fp32", 1, 9, 7),
    ("fp32", "int8", 2, 200, 64),
    ("int8", "fp32", 2, 7, 64),
    ("int8", "int8", 1, 6, 1),
]


@pytest.mark.parametrize(("form", "cache", "threads", "blocks", "step_tokens"), CASES)
def test_a_request_gets_what_it_would_get_alone(
    form: str, cache: Cache, threads: int, blocks: int, step_tokens: int
) -> None:
    chance = random.Random(f"{form} {cache}")
    model = quantise(attending(None, None), form)  # type: ignore[arg-type]
    engine, plain = (Engine(model, threads, cache) for _ in range(2))  # type: ignore[arg-type]
    memory = blocks * engine._own.size
    scheduler = Scheduler(engine, slots=5, cache_memory=memory, step_tokens=step_tokens)
    asked, told = drive(scheduler, requests_of(chance, 24), chance, cancels=0.03)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
    state = scheduler.state()
    assert state.prefix_tokens > 0
    assert state.accepted > 0
    assert (state.preemptions > 0) == (blocks < 100)
    assert len(asked) < 24
    free_of_leaks(scheduler, engine)


@pytest.mark.parametrize("names", [("gru", "attention-window"), ("lstm",)])
def test_states_are_those_of_a_sequence_alone(names: tuple[str, ...]) -> None:
    """Of rows that are cut, forked, given up and read again."""
    chance = random.Random(4)
    engine, plain = (Engine(recurrent(*names), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, slots=4, cache_memory=max(1, 6 * engine._own.size), step_tokens=9)
    asked, told = drive(scheduler, requests_of(chance, 8), chance, cancels=0.02)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
    assert scheduler.state().accepted == 0
    free_of_leaks(scheduler, engine)


def test_windows_give_back_what_is_not_seen() -> None:
    chance = random.Random(5)
    engine, plain = (Engine(attending(3, 20), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, slots=4, cache_memory=5 * engine._own.size, step_tokens=16)
    asked, told = drive(scheduler, requests_of(chance, 12), chance, cancels=0.0)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
    free_of_leaks(scheduler, engine)
