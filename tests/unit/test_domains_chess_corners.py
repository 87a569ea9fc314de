"""Corners of chess that files and boards of other programs have: castling, passes, positions that are none, labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from headway.codecs.chess_boards import MOVE_INDEX
from headway.config import override
from headway.data import SplitConfig
from headway.data.input_files import File
from headway.domains import recipe as find_recipe
from headway.errors import UserError

chess = pytest.importorskip("chess")

from chess_data import MATE  # noqa: E402

from headway.domains.chess.boards import board_from_fen, parse_move  # noqa: E402
from headway.domains.chess.engines import LabelConfig, label  # noqa: E402
from headway.domains.chess.evaluator import Evaluation, PositionInput  # noqa: E402
from headway.domains.chess.limits import SearchLimits  # noqa: E402
from headway.domains.chess.player import (  # noqa: E402
    ChessPlayer,
    PuctConfig,
    Tree,
)
from headway.domains.chess.position_files import (  # noqa: E402
    games,
    openings,
    unlabelled_positions,
)
from headway.domains.chess.positions import open_positions  # noqa: E402
from headway.domains.chess.puzzles import puzzles, solve  # noqa: E402
from headway.domains.chess.uci import Uci  # noqa: E402

CASTLES = "r3k2r/8/8/8/8/8/8/R3K2R w KQkq - 0 1"


class Even:
    """Thinks all moves alike and every position drawn."""

    has_policy = has_value = True
    history = 0
    fails = False

    def evaluate(self, places: list[PositionInput]) -> list[Evaluation]:
        if self.fails:
            raise MemoryError("no room")
        counts = [len(place.moves) for place in places]
        return [Evaluation(np.full(n, 1 / n, np.float32), np.array([0.0, 1.0, 0.0])) for n in counts]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def session(text: str) -> list[str]:
    sink = io.StringIO()
    Uci(lambda: ChessPlayer(Even()), "tiny", source=io.StringIO(text), sink=sink).run()
    return sink.getvalue().splitlines()


@pytest.mark.parametrize(("text", "wanted"), [("e1h1", "e1g1"), ("e1a1", "e1c1"), ("O-O", "e1g1"), ("e1g1", "e1g1")])
def test_castling_is_one_move_however_it_is_written(text: str, wanted: str, tmp_path: Path) -> None:
    assert parse_move(board_from_fen(CASTLES), text).uci() == wanted
    labels = f"position,bestmove,scores,wdl\n{CASTLES},{text},{text}:20,0 1000 0\n"
    if not text.startswith("O"):
        found = open_positions([write(tmp_path, "a.csv", labels)], 0.5, False).targets(np.arange(1))
        assert found.moves[0, 0] == MOVE_INDEX[wanted]


@pytest.mark.parametrize("text", ["--", "0000", "Z0", "e1e1"])
def test_a_pass_is_no_move(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a chess move|not a legal move"):
        parse_move(board_from_fen(CASTLES), text)
    if text in ("--", "Z0"):
        game = write(tmp_path, "a.pgn", f'[Result "1-0"]\n\n1. e4 {text} 2. d4 d5 1-0\n')
        with pytest.raises(UserError, match="is a null move, which is not a chess move"):
            open_positions([game], 0.5, False)


@pytest.mark.parametrize(
    ("fen", "message"),
    [
        ("44/8/8/8/8/8/8/K6k w - - 0 1", "cannot be read"),
        ("k7/8/8/8/8/8/8/K7 w kqKQ - 0 1", "cannot be read|not a chess position"),
        ("8/8/8/8/8/8/8/KK5k w - - 0 1", "not a chess position"),
    ],
)
def test_positions_that_are_none_are_told_and_the_program_goes_on(fen: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        board_from_fen(fen)
    said = session(f"position fen {fen}\nposition startpos\ngo nodes 3\n")
    assert said[0].startswith("info string ")
    assert said[-1].startswith("bestmove ")


@pytest.mark.parametrize("go", ["searchmoves e2e5", "movetime soon", "wtime 1234.5 btime 1000", "mate soon"])
def test_every_go_has_its_answer(go: str) -> None:
    said = session(f"position startpos\ngo {go}\n")
    assert said[0].startswith("info string ")
    assert said[-1].startswith("bestmove ")
    assert said[-1] != "bestmove (none)"


def test_chess960_is_not_offered(tmp_path: Path) -> None:
    assert not any("Chess960" in line for line in session("uci\n"))
    fen = "nrkbbqrn/pppppppp/8/8/8/8/PPPPPPPP/NRKBBQRN w KQkq - 0 1"
    game = write(tmp_path, "a.pgn", f'[FEN "{fen}"]\n[SetUp "1"]\n[Result "1-0"]\n\n1. e4 e5 1-0\n')
    (found,) = games(File(game))
    assert found.variant == "Chess960"
    assert not found.moves


def test_a_game_from_a_position_that_is_none_is_damaged(tmp_path: Path) -> None:
    fen = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR b - - 0 1".replace("/8/8/8/8/", "/8/8/8/7K/")
    game = write(tmp_path, "a.pgn", f'[FEN "{fen}"]\n[SetUp "1"]\n[Result "1-0"]\n\n1... e5 2. e4 1-0\n')
    with pytest.raises(UserError, match="which is not a chess position"):
        open_positions([game], 0.5, False)
    assert not next(iter(games(File(game), skip_bad=True))).moves


def test_lists_with_counters_keep_their_best_moves(tmp_path: Path) -> None:
    start = chess.STARTING_FEN
    text = f"{start} bm e4; ce 35;\n{' '.join(start.split()[:4])} bm d4\n"
    found = open_positions([write(tmp_path, "a.epd", text)], 0.5, False).targets(np.arange(2))
    assert found.moves[:, 0].tolist() == [MOVE_INDEX["e2e4"], MOVE_INDEX["d2d4"]]
    assert found.values[0, 0] > found.values[0, 2]


def test_a_search_that_fails_leaves_nothing_half_counted() -> None:
    judge, board = Even(), chess.Board()
    tree = Tree(judge, PuctConfig())
    tree.search(board, SearchLimits(nodes=40))
    judge.fails = True
    with pytest.raises(MemoryError):
        tree.search(board, SearchLimits(nodes=40))
    judge.fails = False
    lines, nodes = tree.search(board, SearchLimits(nodes=40))
    assert nodes == 40 == sum(line.visits for line in lines)


def test_a_tree_that_is_kept_stays_within_its_nodes() -> None:
    tree = Tree(Even(), PuctConfig(max_nodes=100))
    looked = [tree.search(chess.Board(), SearchLimits(nodes=70))[1] for _ in range(3)]
    assert looked == [70, 30, 0]


def test_positions_of_one_game_stand_on_one_side(tmp_path: Path) -> None:
    text = '[Result "1-0"]\n\n1. e4 e5 2. Nf3 1-0\n\n[Result "0-1"]\n\n1. d4 d5 0-1\n'
    names = [name for _, name in unlabelled_positions(File(write(tmp_path, "a.pgn", text)))]
    assert names[0] == names[2] != names[3] == names[4]
    rows = "position,bestmove,scores,wdl,game\n"
    rows += "".join(f"{chess.STARTING_FEN},e2e4,e2e4:{n},0 1000 0,{n % 2}\n" for n in range(6))
    keys = open_positions([write(tmp_path, "b.csv", rows)], 0.5, False).keys.tolist()
    assert len(set(keys)) == 2
    assert keys[0] == keys[2] == keys[4]
    own = "FEN,Moves\nr6k/pp2r2p/4Rp1Q/3p4/8/1N1P2R1/PqP2bPP/7K b - - 0 24,f2g3 e6e7 b2b1 b3c1\n"
    assert len(set(open_positions([write(tmp_path, "c.csv", own)], 0.5, False).keys.tolist())) == 1


def test_games_that_are_held_out_are_not_trained_on(tmp_path: Path) -> None:
    """Where files are named, as where none is."""
    both, one, other = (f'[Result "1-0"]\n\n1. {moves} 1-0\n\n' for moves in ("e4 e5", "d4 d5 2. c4", "c4 c5"))
    write(tmp_path, "train.pgn", both + one)
    write(tmp_path, "test.pgn", both + other)
    source = open_positions([tmp_path], 0.5, False)
    sides = source.split(SplitConfig(0.0, 0.0))
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [3, 0, 4]
    assert not set(source.keys[sides["train"]]) & set(source.keys[sides["test"]])


def test_tables_of_positions_alone_are_labelled(tmp_path: Path) -> None:
    table = write(tmp_path, "a.csv", f"id,FEN\n1,{CASTLES}\n2,{MATE}\n")
    assert [board.fen() for board, _ in unlabelled_positions(File(table))] == [CASTLES, MATE]
    with pytest.raises(UserError, match="no column 'bestmove' or 'moves'"):
        open_positions([table], 0.5, False)
    with pytest.raises(UserError, match="no column 'position' or 'fen'"):
        list(unlabelled_positions(File(write(tmp_path, "b.csv", "id,board\n"))))


def test_all_moves_with_values_are_learnt_from_in_the_first_epoch(tmp_path: Path) -> None:
    rows = "position,bestmove,scores,wdl\n"
    rows += "".join(f"{chess.STARTING_FEN[:-1]}{n},e2e4,e2e4:300 d2d4:0 a2a3:-300,0 1000 0\n" for n in range(1, 61))
    path = write(tmp_path, "a.csv", rows)
    chosen = override(
        find_recipe("chess-searchless"), {"train.batch_size": 48, "task.split.validation": 0.1, "task.split.test": 0.0}
    )
    source = open_positions([path], 0.5, False)
    source.keys = np.arange(60, dtype=np.uint64)  # equal positions are on one side otherwise
    from headway.domains.chess.task import Fens

    labels = next(
        Fens(chosen, source, chosen.task.split, chosen.task.target, chosen.task.bins).batches("train")
    ).targets
    assert len(labels.unique()) == 3


def test_a_missing_engine_leaves_no_file(tmp_path: Path) -> None:
    positions = write(tmp_path, "a.epd", " ".join(MATE.split()[:4]) + "\n")
    with pytest.raises(UserError):
        label([positions], tmp_path / "labels.csv", LabelConfig("no-such-engine", nodes=10))
    assert not (tmp_path / "labels.csv").exists()


def test_openings_are_different_and_not_over(tmp_path: Path) -> None:
    lost = "7k/5Q2/6K1/8/8/8/8/8 b - -"
    book = write(tmp_path, "a.epd", f"{lost}\n" + f"{' '.join(CASTLES.split()[:4])}\n" * 3)
    assert len(openings([book], 1, 0)) == 1
    with pytest.raises(UserError, match="1 openings are too few"):
        openings([book], 2, 0)


def test_a_puzzle_needs_an_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is one move; write the opponent's move and the answer"):
        list(puzzles(write(tmp_path, "a.csv", f"FEN,Moves\n{MATE},a1a8\n")))


def test_what_was_solved_before_a_puzzle_that_is_none_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f"position,bestmove\n{MATE},a1a8\n{MATE},a1b8\n")
    with pytest.raises(UserError, match=r"line 3: 'a1b8' is not a legal .*; of the 1 puzzles before it, 1 were solved"):
        solve(ChessPlayer(Even(), "value"), path, SearchLimits(nodes=30))
