"""Turns of a conversation with a plain language model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headway.cli.chat import answer, dialogue, fit
from headway.cli.terminal import Terminal

TURNS = [{"user": "Hello", "assistant": "Good day."}, {"user": "Who?", "assistant": ""}]


class Words:
    """A model that counts words as tokens."""

    def __init__(self, context: int | None) -> None:
        self.context = context

    def prompt_ids(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def test_a_dialogue_is_text_that_ends_where_the_answer_begins() -> None:
    assert dialogue("A play.", TURNS) == "A play.\nUser: Hello\nAssistant: Good day.\nUser: Who?\nAssistant:"
    assert dialogue("", TURNS[1:]) == "User: Who?\nAssistant:"


@pytest.mark.parametrize(("context", "dropped"), [(None, 0), (13, 0), (12, 1), (2, 1)])
def test_the_first_turns_go_where_the_context_is_full(context: int | None, dropped: int) -> None:
    assert fit(Words(context), "", TURNS, room=5) == (dialogue("", TURNS[dropped:]), dropped)


def test_an_answer_can_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[str]:
        yield "  It "
        yield "was"
        raise KeyboardInterrupt

    assert answer(pieces(), Terminal()) == "It was"
    out, err = capsys.readouterr()
    assert out == "It was\n"
    assert "(stopped)" in err
