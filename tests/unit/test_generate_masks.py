"""Masks that take too long end their own sequence, and no other one waits for them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from serve_models import stories

import headway as hw
from headway.codecs import TokenizerCodec
from headway.engine import Engine
from headway.errors import UserError
from headway.generate import Event, Limits, Sampling, masks
from headway.generate.masks import MaskBudget, fill_masks
from headway.generate.scheduler import Request, Scheduler
from headway.serve.structured_outputs import rule_for


def test_a_mask_that_is_late_fails_alone() -> None:
    release, filled = threading.Event(), []

    def late() -> None:
        while not release.is_set():
            pass
        filled.append("late")

    def refused() -> None:
        raise UserError("it is too complex; use a simpler one")

    quick = MaskBudget(lambda: filled.append("quick"))
    try:
        failed = fill_masks([quick, MaskBudget(late), None, MaskBudget(refused), quick])
        assert filled == ["quick", "quick"]
        assert {index: str(error).partition(";")[0] for index, error in failed.items()} == {
            1: "a token mask for this response format takes more than 0.1 s of CPU time",
            3: "it is too complex",
        }
        assert not fill_masks([quick])
    finally:
        release.set()
    while masks._late:
        time.sleep(0.001)
    assert filled == ["quick", "quick", "quick", "late"]


def test_forms_wait_while_too_many_late_ones_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_LATE_THREADS", 0)
    failed = fill_masks([MaskBudget(lambda: None)])
    assert "retry soon" in str(failed[0])


def test_many_masks_that_are_each_in_time_have_a_limit_together() -> None:
    budget = MaskBudget(lambda: None)
    for _ in range(10):
        budget.spend(0.099)
    with pytest.raises(UserError, match=r"took 1\.09 s for 11 tokens, over the limit of 1\.0\d s"):
        budget.spend(0.099)


def test_a_fault_in_a_mask_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        fill_masks([MaskBudget(lambda: print(1 // 0))])
    assert not fill_masks([MaskBudget(lambda: None)])


def test_one_expression_does_not_hold_up_others(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MASK_SECONDS", 0.005)  # which a mask of this expression takes on any machine
    model = hw.load(stories(data_dir), "cpu")
    session = model.open_session()
    assert isinstance(session.model, Engine)
    assert isinstance(model.codec, TokenizerCodec)
    scheduler = Scheduler(session.model, session.codec, 4, 8, 1 << 24)
    prompt = list(model.codec.encode("Once upon a time"))
    plain = Request(prompt, Sampling(temperature=0.0), Limits(20))

    def texts(*requests: Request) -> list[list[Event]]:
        tickets = [scheduler.submit(request) for request in requests]
        said: dict[int, list[Event]] = {ticket: [] for ticket in tickets}
        while steps := scheduler.step():
            for each in steps:
                said[each.ticket].append(each)
        return list(said.values())

    [alone] = texts(plain)
    rule = rule_for(model.codec, {"type": "regex", "regex": "[bc](a{150}){1000}"})
    held, other = texts(Request(prompt, Sampling(seed=1), Limits(20), rule=rule), plain)
    assert len(held) == 2
    assert "takes more than 0.005 s of CPU time" in str(held[-1].error)
    assert [(each.id, each.logprob) for each in other] == [(each.id, each.logprob) for each in alone]


def test_the_first_token_of_a_form_is_found_in_time(data_dir: Path) -> None:
    model = hw.load(stories(data_dir), "cpu")
    with pytest.raises(UserError, match="to find its first token"):
        rule_for(model.codec, {"type": "regex", "regex": "(a{800}){1000}"})


def test_a_long_text_without_a_choice_is_tokenized_in_part_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headway.serve import token_bytes

    model = hw.load(stories(data_dir), "cpu")
    assert isinstance(model.codec, TokenizerCodec)
    text = "once upon a time été ☃ dog " * 30
    ends = (model.codec.eos_id or 2,)
    wrapped = token_bytes._TokenizerAdapter(model.codec.tokenizer, token_bytes._bytes_per_token(model.codec), ends[0])
    first = wrapped(text)
    monkeypatch.setattr(token_bytes, "_MAX_FORCED", len(text))
    whole = wrapped(text)
    assert 50 < len(first) < len(whole)
    assert whole[: len(first)] == first
