"""Labels by an engine: the real Stockfish, and programs that are missing, hang or die."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chess_data import MATE, game

from headway.app.cli import main as cli
from headway.errors import UserError
from processes import Program

chess = pytest.importorskip("chess")

from headway.domains.chess.engines import LabelConfig, UciEngine, find_engine, label  # noqa: E402  # noqa: E402
from headway.domains.chess.match import EngineOpponent  # noqa: E402
from headway.domains.chess.positions import open_positions  # noqa: E402

FAKE = """#!{python}
import sys, time
for line in sys.stdin:
    words = line.split()
    if words == ["uci"]:
        print("option name MultiPV type spin default 1 min 1 max 500")
        print("option name UCI_Elo type spin default 1320 min 1320 max 3190")
        print("option name UCI_LimitStrength type check default false")
        print("uciok", flush=True)
    elif words == ["isready"]:
        print("readyok", flush=True)
    elif words[:1] == ["go"]:
        {go}
    elif words == ["quit"]:
        break
"""
ANSWER = 'print("info depth 1 multipv 1 score cp 12 pv a2a3\\nbestmove a2a3", flush=True)'


@pytest.fixture
def stockfish() -> str:
    try:
        return find_engine("stockfish")[0]
    except UserError:
        pytest.skip("stockfish is not installed: apt install stockfish")


def fake(folder: Path, go: str = ANSWER) -> str:
    path = folder / "engine"
    path.write_text(FAKE.format(python=sys.executable, go=go))
    path.chmod(0o755)
    return str(path)


def positions(folder: Path, *fens: str) -> Path:
    path = folder / "positions.epd"
    path.write_text("\n".join(" ".join(fen.split()[:4]) for fen in fens or (chess.STARTING_FEN, MATE)) + "\n")
    return path


def test_the_real_stockfish_labels_positions_and_games(stockfish: str, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    found = label([positions(tmp_path)], out, LabelConfig(stockfish, nodes=200, lines=3, workers=2))
    assert (found.positions, found.new) == (2, 2)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [len(row["scores"].split()) for row in rows] == [3, 3]
    assert rows[1]["bestmove"] == "a1a8"
    assert rows[1]["scores"].startswith("a1a8:#1 ")
    assert sum(map(int, rows[0]["wdl"].split())) == 1000
    source = open_positions([out], 0.5, False)
    assert len(source) == 2
    targets = source.targets(np.arange(2))
    assert targets.worths[1, 0] == pytest.approx(1.1, abs=1e-3)
    assert (targets.moves >= 0).all()
    played = tmp_path / "a.pgn"
    played.write_text(game())
    varied = LabelConfig(stockfish, nodes=50, lines=2, vary=1.0, seed=3)
    assert label([played], tmp_path / "one.csv", varied).positions == 7
    label([played], tmp_path / "two.csv", varied)
    first, second = (
        [row["position"] for row in csv.DictReader((tmp_path / name).read_text().splitlines())]
        for name in ("one.csv", "two.csv")
    )
    assert first == second  # what is drawn at random depends on the place and the seed alone
    assert first[0] != chess.STARTING_FEN


def test_the_command_and_going_on(stockfish: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = positions(tmp_path, *[chess.STARTING_FEN, MATE] * 3), tmp_path / "labels.csv"
    words = [
        "data",
        "label",
        str(source),
        "--out",
        str(out),
        "--nodes",
        "20",
        "--lines",
        "2",
        "--workers",
        "1",
        "--json",
    ]
    assert cli.main([*words, "--limit", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["positions"] == 4
    assert cli.main(words) == 2
    assert "add --resume to continue it" in capsys.readouterr().err
    whole = out.read_text()
    out.write_text(whole[:-9])  # as a process leaves it that was killed
    assert cli.main([*words, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) | {"seconds": 0, "positions_per_second": 0} == {
        "file": str(out), "positions": 6, "new": 3, "seconds": 0, "positions_per_second": 0,
    }  # fmt: skip
    assert out.read_text().startswith(whole[: whole.rindex("\n", 0, -1) + 1])
    out.write_text("a,b\n1,2\n")
    assert cli.main([*words, "--resume"]) == 2
    assert "does not contain labels written by headway" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("go", "patience", "message"),
    [
        ("time.sleep(60)", 0.5, "did not respond for 0.5 s and was stopped; check that it speaks UCI"),
        ('print("info depth 1", flush=True); time.sleep(60)', 0.5, "did not respond for 0.5 s and was stopped"),
        ("sys.exit(3)", 50, "exited unexpectedly with code 3"),
    ],
)
def test_a_program_that_hangs_or_dies_is_ended_and_told(tmp_path: Path, go: str, patience: float, message: str) -> None:
    with UciEngine(fake(tmp_path, go), patience=20) as engine:
        engine.patience = patience
        with pytest.raises(UserError, match=message):
            engine.analyse(chess.STARTING_FEN, (), "nodes 1", 0.0)
        assert engine._process.wait(5) is not None


def test_a_program_that_tells_of_its_thinking_is_waited_for(tmp_path: Path) -> None:
    thinks = f'[(print("info depth 1", flush=True), time.sleep(0.1)) for _ in range(25)]; {ANSWER}'
    with UciEngine(fake(tmp_path, thinks), patience=20) as engine:
        engine.patience = 2.0  # less than it thinks
        assert engine.analyse(chess.STARTING_FEN, (), "nodes 1", 0.0).best == "a2a3"


def test_what_a_script_has_started_is_ended_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n{fake(tmp_path, 'time.sleep(30)')}\nexit 0\n")
    script.chmod(0o755)
    with UciEngine(str(script), patience=20) as engine:
        engine.patience = 0.5
        with pytest.raises(UserError, match=r"did not respond for 0\.5 s and was stopped"):
            engine.analyse(chess.STARTING_FEN, (), "nodes 1", 0.0)
        asked = time.monotonic()
    idle = UciEngine(str(script), patience=20)
    idle._send("go")
    idle.close()
    assert time.monotonic() - asked < 20
    assert not engine._reader.is_alive()  # no one is left who could speak
    assert not idle._reader.is_alive()


def test_a_program_that_is_none_is_told(tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="there is no program 'nowhere'"):
        label([positions(tmp_path)], out, LabelConfig("nowhere"))
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="exited unexpectedly"):
        UciEngine(str(silent))
    with pytest.raises(UserError, match="has no option 'Contempt'"):
        UciEngine(fake(tmp_path), {"Contempt": 1})


def test_what_was_labelled_before_a_program_died_is_kept(tmp_path: Path) -> None:
    once = f'{ANSWER} if not hasattr(sys, "asked") else sys.exit(1); sys.asked = True'
    out = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="exited unexpectedly"):
        label([positions(tmp_path, *[chess.STARTING_FEN] * 3)], out, LabelConfig(fake(tmp_path, once), lines=1))
    assert len(out.read_text().splitlines()) == 2  # the header and the one that was answered
    whole = label([positions(tmp_path, *[chess.STARTING_FEN] * 3)], out, LabelConfig(fake(tmp_path), lines=1), True)
    assert (whole.positions, whole.new) == (3, 2)


def test_labels_go_on_with_the_positions_that_they_were_begun_with(tmp_path: Path) -> None:
    two, out = positions(tmp_path, *[chess.STARTING_FEN] * 2), tmp_path / "labels.csv"
    config = LabelConfig(fake(tmp_path), lines=1)
    label([two], out, config)
    assert label([two], out, config, resume=True).new == 0
    other = positions(tmp_path, *[MATE] * 4)
    with pytest.raises(UserError, match="has labels for other positions"):
        label([other], out, config, resume=True)
    assert len(list(csv.DictReader(out.read_text().splitlines()))) == 2


def test_a_match_against_a_program(tmp_path: Path, stockfish: str) -> None:
    with pytest.raises(UserError, match="supports Elo 1320 to 3190, not 5"):
        EngineOpponent(fake(tmp_path), None, 5, 0.1)
    side = EngineOpponent(fake(tmp_path), 10, None, 0.1)
    board = chess.Board()
    assert side.move(board).uci() == "a2a3"
    board.push_uci("a2a3")
    with pytest.raises(UserError, match="engine at nodes 10: 'a2a3' is not a legal move"):
        side.move(board)
    side.close()
    real = EngineOpponent(stockfish, None, 1320, 0.02)
    assert real.name == "stockfish at Elo 1320, 0.02 s per move"
    assert board.is_legal(real.move(board))
    real.close()


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['chess'] = None; from headway.app.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["data", "label", "games.pgn", "--out", str(tmp_path / "labels.csv")]
    program = Program(tmp_path, code, *words)
    _, err = program.wait()
    assert program.returncode == 2
    assert err == ("headway: chess needs the package chess (GPL-3.0+); run pip install 'headway[chess]'\n")
