"""Test suites of chess: EPD with best moves and moves to avoid, old notations, bad lines, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.app.cli import main as cli
from headway.errors import UserError

chess = pytest.importorskip("chess")

from headway.app.cli import chess_suite  # noqa: E402
from headway.domains.chess.boards import (  # noqa: E402
    board_from_fen,
    parse_moves,
    parse_operations,
)
from headway.domains.chess.evaluator import Evaluation, PositionInput  # noqa: E402
from headway.domains.chess.limits import SearchLimits  # noqa: E402
from headway.domains.chess.player import ChessPlayer  # noqa: E402
from headway.domains.chess.positions import open_positions  # noqa: E402
from headway.domains.chess.puzzles import read_suite, solve_suite  # noqa: E402

SUITE = """\
6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - bm Ra8#; id "back rank";
7k/6pp/5N1K/6Q1/8/8/8/8 w - - bm Qxg7mate; id "supported";
6rk/6pp/8/6N1/8/8/8/6K1 w - - bm Ng5-f7+; id "smothered";

r5k1/5ppp/8/8/8/8/5PPP/6K1 b - - bm Ra1++; id "black; to move"; c0 "not bm Kf8;";
7k/5Q2/5K2/8/8/8/8/8 w - - bm Qg7# Qh7; am Qf8; id "several";
k7/8/1K6/8/8/8/8/7R w - - 0 1 am Kc7 Ka6; id "avoid";
k7/2K5/8/8/8/8/8/7R w - - bm 0-0;
k7/2K5/8/8/8/8/8/7R w - - id "nothing asked";
this is no line with bm e4;
"""
NAMES = ["back rank", "supported", "smothered", "black; to move", "several", "avoid"]


class Knows:
    """Thinks all moves alike and every position drawn: the search sees mates by the rules."""

    has_policy = has_value = True
    history = 0

    def evaluate(self, places: list[PositionInput]) -> list[Evaluation]:
        counts = [len(place.moves) for place in places]
        return [Evaluation(np.full(n, 1 / n, np.float32), np.array([0.0, 1.0, 0.0])) for n in counts]


def suite(folder: Path, text: str = SUITE) -> Path:
    path = folder / "suite.epd"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("fen", "words", "wanted"),
    [
        (
            "r3k2r/8/8/8/8/8/8/R3K2R w KQkq - 0 1",
            "0-0 o-o O-O+ e1-g1 0-0-0 Ra1-d1 Ra8+ R:a8ch",
            "e1g1 e1g1 e1g1 e1g1 e1c1 a1d1 a1a8 a1a8",
        ),
        (
            "1n5k/P7/8/8/8/8/8/K7 w - - 0 1",
            "a8Q a8(Q)+ a8/Q a8=Q! a7-a8Q axb8=N",
            "a7a8q a7a8q a7a8q a7a8q a7a8q a7b8n",
        ),
        ("8/8/8/3pP3/8/8/8/k6K w - d6 0 1", "exd6 exd6e.p. e5:d6 exd6 ep e5xd6", "e5d6 e5d6 e5d6 e5d6 e5d6"),
        (chess.STARTING_FEN, "Ng1-f3, Nf3!? g1f3 Ng1f3 e2-e4 e4", "g1f3 g1f3 g1f3 g1f3 e2e4 e2e4"),
    ],
)
def test_old_notations_are_read(fen: str, words: str, wanted: str) -> None:
    assert [move.uci() for move in parse_moves(board_from_fen(fen), words, "here")] == wanted.split()


def test_operations_are_told_apart() -> None:
    text = 'bm Qh7+ ; id "a; b"; c0 "am e4;" ;D1 20 ;D2 400; am f3 g4'
    assert parse_operations(text, "here") == {
        "bm": "Qh7+", "id": "a; b", "c0": "am e4;", "D1": "20", "D2": "400", "am": "f3 g4"
    }  # fmt: skip
    assert parse_operations('id "never closed', "here") == {"id": "never closed"}
    assert parse_operations(" ", "here") == {}
    with pytest.raises(UserError, match="here: '-x' is not an operation"):
        parse_operations("bm e4; -x", "here")


def test_a_suite_is_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    found = read_suite(suite(tmp_path))
    assert [exercise.name for exercise in found.exercises] == NAMES
    assert [exercise.line for exercise in found.exercises] == [1, 2, 3, 5, 6, 7]
    assert len(found.faults) == 3
    for fault, line in zip(found.faults, ("line 8: '0-0' is no", "line 9 has neither bm nor am", "line 10: FEN")):
        assert line in fault
    for exercise in found.exercises[:4]:  # what is asked for mates, as the rules say
        after = exercise.board.copy()
        after.push(exercise.best[0])
        assert after.is_checkmate()
    assert [len(exercise.best) for exercise in found.exercises] == [1, 1, 1, 1, 2, 0]
    assert len(read_suite(suite(tmp_path), 2).exercises) == 2


def test_what_solves_an_exercise(tmp_path: Path) -> None:
    found = {exercise.name: exercise for exercise in read_suite(suite(tmp_path)).exercises}

    def solves(name: str, move: str) -> bool:
        return found[name].solved_by(chess.Move.from_uci(move))

    assert solves("several", "f7g7")
    assert solves("several", "f7h7")
    assert solves("several", "f7f8") is False  # it mates as well, and is to be avoided
    assert solves("several", "f7e7") is False
    assert solves("avoid", "h1h8")
    assert not solves("avoid", "b6c7")


def test_a_suite_is_solved_by_search(tmp_path: Path) -> None:
    read = read_suite(suite(tmp_path, SUITE + "7k/8/8/8/8/8/8/R6K w - - bm Ra2; id none;\n"))
    scores = solve_suite(ChessPlayer(Knows(), "puct"), read, SearchLimits(nodes=60))
    assert [row["name"] for row in scores["missed"]][-1:] == ["none"]
    assert not {row["name"] for row in scores["missed"]} & set(NAMES[:5])
    assert scores["solved"] == scores["samples"] - len(scores["missed"])
    low, high = scores["suite_accuracy_interval"]
    assert 0 <= low < scores["suite_accuracy"] < high <= 1
    assert scores["skipped"] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.epd", b"", "is empty"),
        ("a.epd", b"\n\n", "contains no position with bm or am; pass a test suite"),
        ("a.epd", b"k7/2K5/8/8/8/8/8/7R w - - id 1;\n" * 3, "line 1 has neither bm nor am"),
        ("a.epd", b"k7/2K5/8/8/8/8/8/7R w - - bm " + b"Rh8+ " * 100_000, "line 1 has 500,0"),
        ("a.epd", b"k7/2K5/8/8/8/8/8/7R w - - bm " + b"+" * 3000 + b"x;", "is not a chess move"),
        ("a.epd", bytes(range(256)) * 9, "UTF-8"),
        ("a.epd.gz", b"no gzip", "is damaged"),
        ("a.epd", b"k7/2K5/8/8/8/8/8/7R w - -\n" * 50_000, "line 1 has neither bm nor am"),
        ("a.epd", b"k7/2K5/8/8/8/8/8/7R w - - bm ;\n", "line 1 names no move in bm or am"),
        ("a.csv", b"position,bestmove\n", "unknown extension"),
        ("missing.epd", None, "there is no file"),
    ],
)
def test_files_of_no_exercise_are_told_in_a_line(
    name: str, content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert cli.main(["chess", "suite", "no-model-yet", str(tmp_path / name)]) == cli.USER_ERROR
    told = capsys.readouterr()
    assert not told.out
    assert message in told.err
    assert told.err.count("\n") == 1
    assert len(told.err) < 600


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    class Loaded:
        def player(self, search: str | None) -> Any:
            return ChessPlayer(Knows(), search)

    monkeypatch.setattr(chess_suite, "load", lambda args: Loaded())
    words = ["chess", "suite", "tiny", str(suite(tmp_path)), "--search", "value"]
    assert cli.main([*words, "--json"]) == 0
    told = capsys.readouterr()
    scores = json.loads(told.out)
    assert (scores["samples"], scores["skipped"], scores["search"]) == (6, 3, "value")
    assert told.err.count("skipped: ") == 3
    for row in scores["missed"]:
        board_from_fen(row["position"]).parse_san(row["played"])
    assert cli.main([*words[:-1], "policy"]) == 0
    table = capsys.readouterr().out
    assert "samples: 6" in table
    assert "smothered" in table  # the first move of all is none that mates


def test_training_reads_the_same_notation(tmp_path: Path) -> None:
    found = open_positions([suite(tmp_path, SUITE.split("\n\n", maxsplit=1)[0] + "\n")], 0.5, False)
    assert len(found) == 3
    assert found.counts.tolist() == [1, 1, 1]
