"""Laws of the scheduler: whatever else is under way, a request gets what a session alone gives it, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import FEED_FORWARDS, HEADS, MIXERS, WIDTH
from test_engine_rows import ready

from headway.engine import Engine, RowChunk, quantise
from headway.engine.operations import BLOCK
from headway.errors import UserError
from headway.formats.llama2c import load_llama2c, load_tokenizer
from headway.generate import Event, Limits, Sampling, Session
from headway.generate.compiled_sampling import score_tokens
from headway.generate.scheduler import FullError, Request, Scheduler
from headway.generate.score import score_ids, score_prompt
from headway.generate.speculation import CountedGuessLength
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, CacheDtype, StackConfig, Transformer, TransformerConfig
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


Told = dict[tuple[int, int], list[Event]]


def alone(engine: Engine, request: Request) -> list[tuple[list[int], list[float], str]]:
    """What each copy of a request is by a session."""
    found = Session(engine).generate([request.prompt] * request.n, request.sampling, request.limits)
    return [(one.ids, one.logprobs, one.finish_reason) for one in found]


def finished(scheduler: Scheduler) -> Told:
    """All that is said until nothing is under way."""
    told: Told = {}
    while scheduler.state().waiting or scheduler.state().running:
        for said in scheduler.step():
            told.setdefault((said.ticket, said.sequence), []).append(said)
    return told


def said_of(parts: Iterable[Event]) -> tuple[list[int], list[float], str | None]:
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
            told.setdefault((said.ticket, said.sequence), []).append(said)
    return asked, told


def free_of_leaks(scheduler: Scheduler, engine: Engine) -> None:
    if scheduler._prefixes is not None:
        assert scheduler._prefixes.evictable() == engine._kv_blocks.used
        scheduler._prefixes.evict(float("inf"))
        assert not scheduler._prefixes._trees
    assert engine._kv_blocks.used == 0
    assert not scheduler._queue.served


CASES = [  # form, cache, threads, blocks of the cache, tokens of prompts in a step
    ("fp32", "fp32", 1, 9, 7),
    ("fp32", "int8", 2, 200, 64),
    ("int8", "fp16", 2, 7, 64),
    ("int8", "int8", 1, 6, 1),
]


@pytest.mark.parametrize(("form", "cache", "threads", "blocks", "step_tokens"), CASES)
def test_a_request_gets_what_it_would_get_alone(
    form: str, cache: CacheDtype, threads: int, blocks: int, step_tokens: int
) -> None:
    chance, count = random.Random(f"{form} {cache}"), 24 // threads
    model = quantise(attending(None, None), form)  # type: ignore[arg-type]
    engine, plain = (Engine(model, threads, cache) for _ in range(2))  # type: ignore[arg-type]
    memory = blocks * engine._kv_blocks.size
    scheduler = Scheduler(engine, slots=5, cache_memory=memory, step_tokens=step_tokens)
    asked, told = drive(scheduler, requests_of(chance, count), chance, cancels=0.06)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
            known = [said.cached_tokens for said in told[ticket, copy]]
            assert known == sorted(known, reverse=True), "what was read once is not known from others any more"
            assert all(count % BLOCK == 0 and count < len(request.prompt) for count in known)
    state = scheduler.state()
    assert state.prefix_tokens > 0
    assert state.accepted > 0
    assert (state.preemptions > 0) == (blocks < 100)
    assert len(asked) < count
    free_of_leaks(scheduler, engine)


@pytest.mark.parametrize(("form", "cache", "threads", "blocks", "step_tokens"), CASES)
def test_scores_of_a_prompt_depend_on_nothing_else(
    form: str, cache: CacheDtype, threads: int, blocks: int, step_tokens: int
) -> None:
    chance = random.Random(f"scores {form} {cache}")
    model = quantise(attending(None, None), form)  # type: ignore[arg-type]
    engine, plain = (Engine(model, threads, cache) for _ in range(2))  # type: ignore[arg-type]
    scheduler = Scheduler(engine, slots=5, cache_memory=blocks * engine._kv_blocks.size, step_tokens=step_tokens)
    requests = [
        replace(request, prompt_top=chance.choice([None, 0, 3]), generates=chance.random() < 0.6)
        for request in requests_of(chance, 24 // threads)
    ]
    asked, told = drive(scheduler, requests, chance, cancels=0.06)
    for ticket, request in asked.items():
        prompt, top = list(request.prompt), request.prompt_top or 0
        [row] = plain.open(count=1).rows
        logits = plain.compute([RowChunk(row, 0, prompt, len(prompt))])
        wanted = score_tokens(logits, range(len(prompt) - 1), prompt[1:], top, plain.pool) if len(prompt) > 1 else []
        row.close()
        for copy, texts in enumerate(alone(plain, request)):
            said = told[ticket, copy]
            assert said[0].scores == ([] if request.prompt_top is None else wanted)
            assert not any(each.scores for each in said[1:])
            assert said_of(said) == (texts if request.generates else ([], [], "length"))
    assert scheduler.state().preemptions > 0 or step_tokens != 7
    free_of_leaks(scheduler, engine)


def test_a_prompt_is_scored_as_it_would_be_generated() -> None:
    """Bit for bit; and as torch scores it, up to the rounding of sums."""
    model = attending(None)
    scheduler = Scheduler(Engine(model, threads=1), slots=2)
    scheduler.submit(Request([1, 2], Sampling(0), Limits(40, ignore_end=True), top=3))
    said = [each for parts in finished(scheduler).values() for each in parts]
    text = [1, 2, *(each.id for each in said if each.id is not None)]
    scheduler.submit(Request(text, prompt_top=3, generates=False))
    [[scored]] = finished(scheduler).values()
    assert [(each.id, each.logprob, each.top) for each in scored.scores[1:]] == [
        (each.id, each.logprob, each.top) for each in said
    ]
    assert all(each.rank == 1 for each in scored.scores[1:]), "greedy"
    by_torch = score_prompt(model, text, 3)
    assert [each.logprob for each in by_torch] == score_ids(model, [text])[0]
    assert [each.logprob for each in scored.scores] == pytest.approx([each.logprob for each in by_torch], abs=1e-5)
    assert [[id for id, _ in each.top] for each in scored.scores] == [[id for id, _ in each.top] for each in by_torch]


def test_a_prompt_that_fills_the_context_can_be_scored() -> None:
    scheduler = Scheduler(Engine(attending(None), threads=1))
    scheduler.submit(Request([2] * 160, n=2, prompt_top=0, generates=False))
    told = finished(scheduler)
    assert [len(said.scores) for [said] in told.values()] == [159, 159]


def test_more_copies_than_sequences_wait() -> None:
    engine = Engine(attending(None), threads=1)
    scheduler = Scheduler(engine, slots=2)
    request = Request([1, 2, 3], Sampling(0.9, seed=4), Limits(6), n=7)
    scheduler.submit(request)
    told = finished(scheduler)
    assert [said_of(told[1, copy]) for copy in range(7)] == alone(engine, request)


@pytest.mark.parametrize("names", [("gru", "attention-window"), ("lstm",)])
def test_states_are_those_of_a_sequence_alone(names: tuple[str, ...]) -> None:
    """Of rows that are cut, forked, given up and read again."""
    chance = random.Random(4)
    engine, plain = (Engine(recurrent(*names), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, slots=4, cache_memory=max(1, 6 * engine._kv_blocks.size), step_tokens=9)
    asked, told = drive(scheduler, requests_of(chance, 8), chance, cancels=0.02)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
    assert scheduler.state().accepted == 0
    free_of_leaks(scheduler, engine)


def test_windows_give_back_what_is_not_seen() -> None:
    chance = random.Random(5)
    engine, plain = (Engine(attending(3, 20), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, slots=4, cache_memory=5 * engine._kv_blocks.size, step_tokens=16)
    asked, told = drive(scheduler, requests_of(chance, 12), chance, cancels=0.0)
    for ticket, request in asked.items():
        for copy, wanted in enumerate(alone(plain, request)):
            assert said_of(told[ticket, copy]) == wanted
    free_of_leaks(scheduler, engine)


def test_copies_share_what_is_read_and_differ_in_what_they_write() -> None:
    engine, plain = (Engine(attending(None), threads=1) for _ in range(2))
    request = Request([3] * 70 + [4, 5], Sampling(1.0, seed=1), Limits(12), n=4)
    scheduler = Scheduler(engine, slots=4, cache_memory=20 * engine._kv_blocks.size)
    ticket = scheduler.submit(request)
    told = finished(scheduler)
    found = [said_of(told[ticket, copy]) for copy in range(4)]
    assert found == alone(plain, request)
    assert len({tuple(ids) for ids, *_ in found}) == 4
    assert scheduler.state().prompt_tokens == 72
    again = scheduler.submit(request)
    told = finished(scheduler)
    assert [said_of(told[again, copy]) for copy in range(4)] == found
    assert [told[again, copy][-1].cached_tokens for copy in range(4)] == [2 * BLOCK] * 4
    assert scheduler.state().prompt_tokens == 72 + 72 - 2 * BLOCK
    other = scheduler.submit(Request(request.prompt, request.sampling, request.limits, owner="other"))
    told = finished(scheduler)
    assert said_of(told[other, 0]) == found[0]
    assert told[other, 0][-1].cached_tokens == 0
    assert scheduler.state().prompt_tokens == 2 * 72 - 2 * BLOCK + 72, "prefixes are known to their owner alone"


def test_copies_that_wait_for_a_prompt_give_way_with_who_reads_it() -> None:
    engine, plain = (Engine(attending(None), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, slots=4, cache_memory=5 * engine._kv_blocks.size, step_tokens=1)
    first = Request([1], Sampling(9.0, seed=1), Limits(120))
    second = Request([3] * 62, Sampling(1.0, seed=1), Limits(9), n=3)
    requests = {scheduler.submit(first): first}
    for _ in range(60):  # until three blocks are just enough for both
        scheduler.step()
    requests[scheduler.submit(second)] = second
    told: Told = {}
    following = 0
    while scheduler.state().waiting or scheduler.state().running:
        for said in scheduler.step():
            told.setdefault((said.ticket, said.sequence), []).append(said)
        before = following
        following = sum(len(copy.followers) for copy in scheduler._running)
        assert len(set(scheduler._running)) == len(scheduler._running) <= 4
        if before and not following and scheduler.state().preemptions:
            break
    else:
        pytest.fail("nobody gave way while others followed")
    for key, more in finished(scheduler).items():
        told.setdefault(key, []).extend(more)
    found = [said_of(told[2, copy]) for copy in range(3)]
    assert found == alone(plain, second)
    assert [told[2, copy][-1].cached_tokens for copy in range(3)] == [0] * 3, (
        "what it had read itself is not known from others"
    )
    free_of_leaks(scheduler, engine)


def test_what_is_read_again_counts_as_read() -> None:
    """A beginning that was known, and is dropped while the one who began with it gives way."""
    engine = Engine(attending(None), threads=1)
    scheduler = Scheduler(engine, slots=4, cache_memory=5 * engine._kv_blocks.size)
    prompt = [3, 4] * 20
    scheduler.submit(Request(prompt, Sampling(0.0), Limits(1)))
    finished(scheduler)
    scheduler.submit(Request([1], Sampling(9.0, seed=1), Limits(150)))
    for _ in range(30):
        scheduler.step()
    ticket = scheduler.submit(Request(prompt, Sampling(9.0, seed=2), Limits(100)))
    told = finished(scheduler)[ticket, 0]
    assert scheduler.state().preemptions > 0
    assert {said.cached_tokens for said in told} == {BLOCK, 0}
    assert [said.cached_tokens for said in told] == sorted((said.cached_tokens for said in told), reverse=True)
    free_of_leaks(scheduler, engine)


def test_the_likeliest_symbols_are_told() -> None:
    engine = Engine(attending(None), threads=1)
    scheduler = Scheduler(engine, cache_memory=20 * engine._kv_blocks.size)
    scheduler.submit(Request([3, 4], Sampling(0.0), Limits(8), top=5))
    [told] = finished(scheduler).values()
    for said in told:
        assert said.top[0] == (said.id, said.logprob)
        assert [value for _, value in said.top] == sorted((value for _, value in said.top), reverse=True)
        assert len({symbol for symbol, _ in said.top}) == 5


class Even:
    """Even symbols below `most`, no more than so many of them, and then nothing."""

    def __init__(self, count: int, most: int = SYMBOLS) -> None:
        self.taken: list[int] = []
        self.count, self.most = count, most

    def fill(self, mask: np.ndarray) -> None:
        assert mask.dtype == np.int32
        assert mask.shape == (1,)
        if len(self.taken) < self.count:
            mask[0] = (
                sum(1 << symbol for symbol in range(0, self.most, 2)) | 1 << SYMBOLS
            )  # what is beyond is no symbol
        else:
            mask[0] = 1 << SYMBOLS

    def take(self, token: int) -> None:
        self.taken.append(token)
        if token == 20:
            raise UserError("20 is too much")


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.5, seed=2), Sampling(1.0, top_k=2, seed=2)])
def test_rules_leave_only_what_they_allow(sampling: Sampling) -> None:
    """Also where guesses are checked; and log probabilities are those of the model without a rule."""
    engine, plain = (Engine(attending(None), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, cache_memory=20 * engine._kv_blocks.size)
    prompt, rules = [2, 4, 6, 8] * 5, [Even(30, 20), Even(30, 20)]
    left = list(rules)
    free = Request(prompt, sampling, Limits(40))
    bound = Request(prompt, sampling, Limits(40), n=2, rule=lambda: left.pop(0))
    tickets = [scheduler.submit(free), scheduler.submit(bound)]
    told = finished(scheduler)
    assert [said_of(told[tickets[0], 0])] == alone(plain, free)
    for copy, rule in enumerate(rules):
        ids, logprobs, reason = said_of(told[tickets[1], copy])
        assert ids == rule.taken
        assert all(symbol % 2 == 0 and symbol < 20 for symbol in ids)
        assert (len(ids), reason) == (30, "stop")
        forced = Sampling(0.0, logit_bias=dict.fromkeys(ids[:1], 100.0))
        [first] = Session(plain).generate([prompt], forced, Limits(1))
        assert (first.ids, first.logprobs) == (ids[:1], logprobs[:1])


def test_a_rule_that_fails_ends_its_own_copy_alone() -> None:
    engine, plain = (Engine(attending(None), threads=1) for _ in range(2))
    scheduler = Scheduler(engine, cache_memory=20 * engine._kv_blocks.size)
    sampling = Sampling(0.0, logit_bias={20: 100.0})
    failing = scheduler.submit(Request([3, 4], sampling, Limits(9), rule=lambda: Even(9)))
    other = Request([3, 4], Sampling(0.0), Limits(9))
    ticket = scheduler.submit(other)
    told = finished(scheduler)
    [last] = told[failing, 0]
    assert (last.id, str(last.error)) == (None, "20 is too much")
    assert [said_of(told[ticket, 0])] == alone(plain, other)
    assert free_of_leaks(scheduler, engine) is None


def test_nobody_waits_for_a_long_prompt_nor_for_a_busy_owner() -> None:
    """Who writes gets a symbol in every step, and an owner with one request begins while another has many."""
    engine = Engine(attending(None), threads=1)
    scheduler = Scheduler(engine, slots=4, cache_memory=60 * engine._kv_blocks.size, step_tokens=8)
    writing = scheduler.submit(Request([1], Sampling(9.0, seed=1), Limits(140), owner="first"))
    scheduler.step()
    chance = random.Random(1)
    for _ in range(20):
        prompt = [chance.randrange(SYMBOLS) for _ in range(120)]
        scheduler.submit(Request(prompt, Sampling(0.0), Limits(5), owner="busy"))
    single = scheduler.submit(Request([7] * 60, Sampling(0.0), Limits(3), owner="single"))
    said: Counter[int] = Counter()
    for _ in range(40):
        told = [one.ticket for one in scheduler.step()]
        assert writing in told
        said.update(told)
    assert said[single] == 3
    assert sum(said.values()) - said[single] - said[writing] < 20 * 5, "the busy owner still has work"
    for ticket in range(writing, single + 1):
        scheduler.cancel(ticket)
    assert scheduler.step() == []
    assert scheduler.state()[:2] == (0, 0)
    free_of_leaks(scheduler, engine)


def test_requests_that_cannot_be_are_refused_at_once() -> None:
    engine = Engine(attending(None), threads=1)
    scheduler = Scheduler(engine, slots=2, waiting=2, cache_memory=3 * engine._kv_blocks.size)
    for request, message in [
        (Request([]), "cannot continue an empty prompt"),
        (Request([2] * 160), "fills the context of 160"),
        (Request([SYMBOLS]), "contains id 23,"),
        (Request([1], Sampling(logit_bias={SYMBOLS: 1.0})), "logit_bias contains id 23"),
        (Request([1], top=24), "top is 24"),
        (Request([1], prompt_top=24), "top is 24"),
        (Request([2] * 161, generates=False), "exceeds|fills"),
        (Request([2] * 90, limits=Limits(8)), "90 prompt tokens and 8 new ones need .* bytes"),
        (Request([2], limits=Limits(stop=("x",))), "stop string 'x' needs text"),
    ]:
        with pytest.raises(UserError, match=message):
            scheduler.submit(request)
    with pytest.raises(UserError, match="n is 0"):
        Request([1], n=0)
    with pytest.raises(UserError, match="step_tokens is 0"):
        Scheduler(engine, step_tokens=0)
    assert scheduler.step() == []
    for _ in range(2):
        scheduler.submit(Request([2] * 90, limits=Limits(7)))
    with pytest.raises(FullError, match="the queue is full \(2 requests\)"):
        scheduler.submit(Request([1], limits=Limits(3)))
    finished(scheduler)
    scheduler.submit(Request([1], limits=Limits(3)))


def test_a_model_that_gives_no_numbers_ends_its_requests() -> None:
    model = attending(None)
    engine = Engine(model, threads=1)
    model.embed.table[3] = float("nan")
    scheduler = Scheduler(engine, cache_memory=20 * engine._kv_blocks.size)
    broken, sound = scheduler.submit(Request([3])), scheduler.submit(Request([4], limits=Limits(2, stop_ids=(3,))))
    told = finished(scheduler)
    assert "NaN" in str(told[broken, 0][0].error)
    assert all(said.error is not None for said in told[sound, 0]), "the head is the same table"


def test_real_stories_with_texts_and_stop_strings(data_dir: Path) -> None:
    """stories260K: eight at once with little memory are what each is alone, to the letter."""
    path = data_dir / "weights" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model, usage = load_llama2c(path)
    codec = load_tokenizer(path.parent / "tok512.bin")
    assert isinstance(model, Transformer)
    assert usage.begin is not None
    quantise(model, "int8")
    engine, plain = (Engine(model, 1, "int8") for _ in range(2))
    scheduler = Scheduler(engine, codec, slots=3, cache_memory=14 * engine._kv_blocks.size, step_tokens=32)
    opening = [usage.begin, *codec.encode(" ".join(3 * ["Once upon a time, there was a girl named Lily."]))]
    asked = {}
    for n, end in enumerate(["One day", "Her mom said", "Tim and Lily", ""]):
        limits = Limits(60, stop=(".", "mom"))
        request = Request([*opening, *codec.encode(end)], Sampling(0.8, seed=n), limits, n=2)
        asked[scheduler.submit(request)] = request
    told = finished(scheduler)
    for ticket, request in asked.items():
        wanted = Session(plain, codec).generate([request.prompt] * 2, request.sampling, request.limits)
        for copy, completion in enumerate(wanted):
            parts = told[ticket, copy]
            assert said_of(parts) == (completion.ids, completion.logprobs, completion.finish_reason)
            assert "".join(said.text for said in parts) == completion.text
    assert scheduler.state().prefix_tokens > 0
    free_of_leaks(scheduler, engine)


def test_guesses_rest_when_they_do_not_come_true() -> None:
    pace = CountedGuessLength()
    assert pace.next_length() == 4
    pace.update(4, 4)
    assert pace.next_length() == 8
    pauses = []
    for _ in range(6):
        while pace.next_length():
            pace.update(pace.next_length(), 0)
        steps = 0
        while not pace.next_length():
            pace.update(0, 0)
            steps += 1
        pauses.append(steps)
    assert pauses == [16, 32, 64, 128, 256, 256]
