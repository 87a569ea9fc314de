"""What strangers wrote, and a terminal would obey, is only shown: in errors, in warnings, and on the terminal."""

from __future__ import annotations

import json
import logging
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from headway.app.cli import main as cli
from headway.app.cli.terminal import Terminal
from headway.codecs.chat_template import ChatTemplate
from headway.data.input_files import archive_members, read_blocks
from headway.data.labelled_files import read_labelled_files
from headway.data.table_files import read_conll
from headway.errors import PartialFailureError, UserError, printable
from headway.formats.published import open_shards
from headway.formats.tensorfile import write_tensors
from headway.learn.objectives.classes import unknown_label

SCREEN = "\x1b[2J\x1b]0;mine\x07"  # empties the screen, names the window
TURNED = "\u202e\x9b2J\r\n\x85"  # text from right to left, the control of one byte, ends of lines


def said(error: UserError) -> str:
    """The error as Python prints it."""
    return str(error)


def harmless(line: str) -> bool:
    return line.isprintable() and "2J" in line


def test_a_template_that_refuses() -> None:
    template = ChatTemplate(f"{{{{ raise_exception({SCREEN + TURNED!r}) }}}}", source="model/x")
    with pytest.raises(UserError) as caught:
        template.render([{"role": "user", "content": "Who?"}])
    assert harmless(said(caught.value))
    assert "\\x1b[2J\\x1b]0;mine\\x07\\u202e\\x9b2J" in said(caught.value)


def test_a_template_that_fails_over_a_name_of_its_own() -> None:
    with pytest.raises(UserError) as caught:
        ChatTemplate(f"{{{{ messages | attr({SCREEN!r}) | upper | round({SCREEN!r}) }}}}").render([])
    assert said(caught.value).isprintable()


def test_the_name_of_a_member_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{SCREEN}.txt", "what is damaged next")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"damaged", b"DAMAGED"))
    (member,) = archive_members(tmp_path / "a.zip")
    with pytest.raises(UserError, match="is damaged") as caught:
        list(read_blocks(member))
    assert harmless(said(caught.value))


def test_the_name_of_a_tensor(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {SCREEN: torch.zeros(2)}, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"{SCREEN}!": "a.safetensors"}}))
    with pytest.raises(UserError) as caught:
        open_shards(tmp_path)
    assert harmless(said(caught.value))


def test_a_label_and_a_path(tmp_path: Path) -> None:
    assert harmless(said(unknown_label(SCREEN, f"{SCREEN}.csv, row 1", [f"{SCREEN}!"])))
    (tmp_path / f"{SCREEN}.conll").write_text("one word too many\n")
    with pytest.raises(UserError) as caught:
        read_conll([tmp_path / f"{SCREEN}.conll", tmp_path / f"{SCREEN}.none"])
    assert harmless(said(caught.value))


def test_an_error_that_has_results_too() -> None:
    assert harmless(said(PartialFailureError(SCREEN, [None], {0: UserError(SCREEN)})))


def test_a_warning_and_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / SCREEN
    folder.mkdir()
    for name in ("a.png", f"b{SCREEN}"):
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        read_labelled_files([tmp_path], {".png"}, "image")
    (record,) = caplog.records
    assert "skipped 1 files that are not images" in record.getMessage()
    assert harmless(record.getMessage())


def test_every_module_logs_through_it() -> None:
    root = Path(str(sys.modules["headway"].__file__)).parent
    found = [str(path.relative_to(root)) for path in root.rglob("*.py") if "getLogger(" in path.read_text()]
    assert sorted(found) == ["errors.py", "io/images.py", "serve/server.py"]  # all but one silence a library


def test_other_errors_and_their_tracebacks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> None:
        raise ValueError(SCREEN)

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["show", "--debug"]) == cli.FAILED
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback")
    assert all(line.isprintable() for line in told)


@pytest.mark.parametrize("watched", [True, False])
def test_results_are_shown_on_a_terminal_and_whole_in_a_file(
    watched: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    Terminal().print(f"a\t\u200d{SCREEN}\n")
    Terminal(json=True).print_result({"label": f"{SCREEN}\x9b"})
    text, told = capsys.readouterr().out.split("\n\n")
    assert text == ("a\t\u200d\\u001b[2J\\u001b]0;mine\\u0007" if watched else f"a\t\u200d{SCREEN}")
    assert json.loads(told) == {"label": f"{SCREEN}\x9b"}
    assert ("\x9b" in told) is not watched
    Terminal().print_table([{"label": SCREEN}])
    assert printable(SCREEN) in capsys.readouterr().out
    Terminal().note(f"one\n{SCREEN}")
    assert capsys.readouterr().err == f"one\n{printable(SCREEN)}\n"


BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize("watched", [True, False])
def test_marks_of_direction_are_escapes_on_a_terminal(
    watched: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    escaped = "".join(f"\\u{ord(mark):04x}" for mark in BIDIRECTIONAL)
    Terminal().print(f"invoice{BIDIRECTIONAL}.txt, \u05e9\u05dc\u05d5\u05dd")
    assert capsys.readouterr().out == f"invoice{escaped if watched else BIDIRECTIONAL}.txt, \u05e9\u05dc\u05d5\u05dd\n"
    Terminal(json=True).print_result({"label": BIDIRECTIONAL})
    told = capsys.readouterr().out
    assert json.loads(told) == {"label": BIDIRECTIONAL}
    assert (BIDIRECTIONAL in told) is not watched
    Terminal().print_table([{"label": BIDIRECTIONAL}])
    assert escaped in capsys.readouterr().out
    Terminal().note(BIDIRECTIONAL)
    assert capsys.readouterr().err == f"{escaped}\n"
    assert str(UserError(BIDIRECTIONAL)) == escaped
