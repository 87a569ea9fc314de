"""Turns of a conversation: with a model that has a chat template, and with a plain language model."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_models import TEMPLATE, echo_model

import headway as hw
from headway.app.cli.chat import dialogue, fit_context, print_reply
from headway.app.cli.main import main
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

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
    assert fit_context(Words(context), "", TURNS, max_new_tokens=5) == (dialogue("", TURNS[dropped:]), dropped)


def test_an_answer_can_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[str]:
        yield "  It "
        yield "was"
        raise KeyboardInterrupt

    assert print_reply(pieces(), Terminal()) == "It was"
    out, err = capsys.readouterr()
    assert out == "It was\n"
    assert "(stopped)" in err


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    return echo_model(tmp_path / "echo")


def talk(
    folder: Path, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *given: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    code = main(["chat", str(folder), "--temperature", "0", "--device", "cpu", *given])
    return code, *capsys.readouterr()


def test_a_conversation_by_the_models_template(
    echo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = talk(echo, "Hi\n\nHo\n", capsys, monkeypatch)
    assert (code, out) == (0, "abc\nabc\n")
    assert err.startswith("Ctrl-C stops an answer")
    _, out, _ = talk(echo, "Hi\n/reset\nHo\n", capsys, monkeypatch, "--json")
    assert json.loads(out) == {"turns": [{"user": "Ho", "assistant": "abc"}]}
    _, out, _ = talk(echo, "Hi\n", capsys, monkeypatch, "--stop", "c")
    assert out == "ab\n"


def test_the_context_of_a_conversation(
    echo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old turns go, and so does a question that no context holds; the conversation goes on."""
    given = ("--max-new-tokens", "10")
    long = "x" * 60
    code, out, err = talk(echo, f"Hello you\nHello you\nHello you\n{long}\nHi\n", capsys, monkeypatch, *given, "--json")
    assert code == 0
    turns = json.loads(out)["turns"]
    assert [turn["assistant"] for turn in turns] == ["abc"] * 4
    assert "(the first turn does not fit into the context of 48 tokens)" in err
    assert "(a prompt of 63 tokens exceeds the context of 48; shorten it)" in err
    assert "Traceback" not in err


def test_a_template_that_refuses_the_system(
    echo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = talk(echo, "Hi\n", capsys, monkeypatch, "--system", "Be brief.")
    assert (code, out) == (2, "")
    assert "rejects these messages: there is no system here" in err
    assert err.count("\n") == 1


def test_chat_in_python(echo: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = hw.load(echo, device="cpu")
    asked = {"role": "user", "content": "Hello you"}
    told = [asked, {"role": "assistant", "content": "abc"}]
    assert model.chat([asked], temperature=0) == "abc" == model.chat("Hello you", temperature=0)
    assert list(model.chat_stream([asked], temperature=0)) == ["a", "b", "c"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert model.chat([*told, *told, asked], max_new_tokens=10, temperature=0) == "abc"
    assert "the first turn does not fit into the context of 48 tokens" in caplog.text
    with pytest.raises(UserError, match="has no messages"):
        model.chat([])
    with pytest.raises(UserError, match="message 0 has the role None"):
        model.chat([{"content": "x"}])


def test_a_model_without_a_template_has_no_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = echo_model(tmp_path / "plain", template=None)
    with pytest.raises(UserError, match="has no chat template, so it cannot chat; use generate"):
        hw.load(folder, device="cpu").chat([{"role": "user", "content": "x"}])
    code, _, err = talk(folder, "Hi\n", capsys, monkeypatch, "--max-new-tokens", "3")
    assert code == 0
    assert "has no chat template" in err


def test_a_template_goes_where_its_model_goes(echo: Path, tmp_path: Path) -> None:
    assert main(["import", str(echo), str(tmp_path / "own")]) == 0
    assert hw.load(tmp_path / "own", device="cpu").usage.template == TEMPLATE


@pytest.mark.parametrize("said", ["", "\n  \n"])
def test_nothing_to_answer(
    echo: Path, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = talk(echo, said, capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert "no questions on standard input; pass one per line" in err
