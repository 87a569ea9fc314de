"""What was played before a match of chess was broken off is told, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway.app.cli import main as cli
from headway.errors import UserError

chess = pytest.importorskip("chess")

from headway.app.cli import chess_match  # noqa: E402
from headway.domains.chess import match  # noqa: E402

MATED = "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - -"


class Mates:
    """Plays the first move that mates, or any."""

    search = "policy"

    def player(self, search: str | None) -> Mates:
        return self

    def new_game(self) -> None: ...

    def think(self, board: Any, limits: Any) -> Any:
        move = next(
            (each for each in board.legal_moves if board.san(each).endswith("#")), next(iter(board.legal_moves))
        )
        return type("Thought", (), {"nodes": 1, "move": move})


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), cli.INTERRUPTED), (UserError("died"), cli.USER_ERROR)]
)
def test_games_of_a_match_that_is_broken_off_are_counted(
    stop: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.epd").write_text(f"{MATED}\n{MATED.replace('a', 'b')}\n".replace("5ppp", "6pp", 1))
    real, games = match._play, iter(range(9))

    def play(*given: Any) -> Any:
        if next(games) == 3:
            raise stop
        return real(*given)

    monkeypatch.setattr(match, "_play", play)
    monkeypatch.setattr(chess_match, "load", lambda args: Mates())
    words = ["chess", "match", "tiny", "--opponent", "random", "--games", "4", "--openings", str(tmp_path / "a.epd")]
    assert cli.main([*words, "--json"]) == code
    (found,) = json.loads(capsys.readouterr().out)["matches"]
    assert (found["games"], found["opponent"]) == (3, "random moves")
    assert found["wins"] + found["draws"] + found["losses"] == 3
    games = iter([3])
    assert cli.main(words) == code
    assert not capsys.readouterr().out  # nothing was played
