"""A model that plays chess: searches, the rules, UCI, puzzles and matches."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from chess_data import MATE, games_file, train

import headway as hw
from headway.app.cli import main as cli
from headway.errors import UserError
from headway.nn.kernels import deterministic

chess = pytest.importorskip("chess")
clients = pytest.importorskip("chess.engine")

from headway.domains.chess.boards import board_from_fen, expected_of, parse_move  # noqa: E402
from headway.domains.chess.evaluator import (  # noqa: E402
    Evaluation,
    EvaluationCache,
    PositionInput,
    position_input,
    repetitions,
)
from headway.domains.chess.limits import SearchLimits, share_of_clock  # noqa: E402
from headway.domains.chess.match import (  # noqa: E402
    EngineOpponent,
    MatchTally,
    ModelOpponent,
    RandomOpponent,
    ladder_steps,
    play_match,
)
from headway.domains.chess.player import (  # noqa: E402
    ChessPlayer,
    PuctConfig,
    Tree,
)
from headway.domains.chess.position_files import openings  # noqa: E402
from headway.domains.chess.puzzles import solve  # noqa: E402
from headway.domains.chess.uci import Uci  # noqa: E402


class Even:
    """Thinks all moves alike and every position drawn, or worth what the pieces are."""

    has_policy = has_value = True
    history = 1

    def __init__(self, counts: bool = False) -> None:
        self.counts, self.seen = counts, []

    def evaluate(self, places: list[PositionInput]) -> list[Evaluation]:
        self.seen += places
        return [self._opinion(place) for place in places]

    def _opinion(self, place: PositionInput) -> Evaluation:
        policy = np.full(len(place.moves), 1 / len(place.moves), np.float32)
        outcome = np.array([0.0, 1.0, 0.0])
        if self.counts:
            record = place.records[0]
            white, black = record[6], record[7]
            worth = sum(
                w * ((b & white).bit_count() - (b & black).bit_count()) for w, b in zip((1, 3, 3, 5, 9), record)
            )
            share = 1 / (1 + 10 ** (-(-worth if record[8] & 1 else worth) / 4))
            outcome = np.array([share, 0.0, 1 - share])
        return Evaluation(policy, outcome)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chess")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(folder / "cache"))
        return train(folder / "tiny", games_file(folder)).directory


@pytest.mark.parametrize("fen", [MATE, chess.Board(MATE).mirror().fen(), "7k/P5pp/8/8/8/8/6PP/7K w - - 0 1"])
@pytest.mark.parametrize("search", ["value", "puct"])
def test_mate_in_one_is_found_with_an_even_policy(fen: str, search: str) -> None:
    board = board_from_fen(fen)
    thought = ChessPlayer(Even(), search).think(board, SearchLimits(nodes=200))
    assert thought.lines[0].mates
    board.push(thought.move)
    assert board.is_checkmate()


def test_the_tree_takes_what_hangs_and_sees_mates_in_two() -> None:
    free = ChessPlayer(Even(counts=True), "puct").think(
        board_from_fen("7k/8/8/3q4/4P3/8/8/7K w - - 0 1"), SearchLimits(nodes=300)
    )
    assert free.move.uci() == "e4d5"
    assert 0.6 < expected_of(free.lines[0].outcome) < 0.7  # a pawn ahead
    two = ChessPlayer(Even(), "puct").think(board_from_fen("7k/8/8/8/8/8/R7/1R5K w - - 0 1"), SearchLimits(nodes=3000))
    assert two.move.uci() in ("a2g2", "b1g1", "a2a7", "b1b7")  # what leaves a mate to follow
    assert expected_of(two.lines[0].outcome) > 0.6


def test_batches_find_what_single_looks_find_and_leave_no_virtual_visits() -> None:
    board = board_from_fen("r1bqkbnr/pppp1ppp/2n5/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR b KQkq - 3 3")
    moves = set()
    for batch in (1, 16):
        tree = Tree(Even(counts=True), PuctConfig(batch=batch))
        lines, nodes = tree.search(board, SearchLimits(nodes=600))
        assert tree.root is not None
        assert nodes == 600 == int(tree.root.visits.sum())
        waiting = [tree.root]
        while waiting:
            node = waiting.pop()
            assert not node.virtual.any()
            waiting += [child for child in node.children if child is not None]
        moves.add(lines[0].moves[0].uci())
        threat = next(line for line in lines if line.moves[0].uci() == "a7a6")
        assert expected_of(threat.outcome) < expected_of(lines[0].outcome)
    assert moves <= {"g8h6", "g7g6", "d8e7", "d8f6", "d7d5"}  # each keeps f7


def test_the_rules_end_a_line() -> None:
    tree = Tree(Even(counts=True), PuctConfig())
    lost = board_from_fen("7k/8/8/8/8/q7/8/K7 w - - 99 80")  # the last move before the fifty-move rule
    lines, _ = tree.search(lost, SearchLimits(nodes=60))
    assert expected_of(lines[0].outcome) == 0.5
    board = board_from_fen("7k/8/8/8/8/8/q7/6K1 b - - 0 1")
    for text in ("a2b3", "g1f1", "b3a2"):
        board.push_uci(text)
    lines, _ = Tree(Even(counts=True), PuctConfig()).search(board, SearchLimits(nodes=60))
    before = next(line for line in lines if line.moves[0].uci() == "f1g1")
    assert expected_of(before.outcome) == 0.5  # it stood there before
    board = board_from_fen("7k/8/8/8/8/8/q7/6K1 b - - 0 1")
    for text in ("a2b3", "g1f1", "b3a2", "f1g1", "a2b3", "g1f1", "b3a2", "f1g1"):
        board.push_uci(text)
    assert repetitions(board) == 2
    place = position_input(board, 1)
    assert place.records[0][11] == 2
    assert len(place.records) == 2
    again = board.copy()
    again.pop()
    assert repetitions(again) == 1
    lines, _ = Tree(Even(counts=True), PuctConfig()).search(again, SearchLimits(nodes=200))
    back = next(line for line in lines if line.moves[0].uci() == "f1g1")
    assert expected_of(back.outcome) == 0.5  # the third time


def test_the_tree_is_kept_for_the_moves_that_are_played() -> None:
    judge = Even(counts=True)
    tree, board = Tree(judge, PuctConfig()), chess.Board()
    lines, _ = tree.search(board, SearchLimits(nodes=400))
    for move in lines[0].moves[:2]:
        board.push(move)
    judge.seen.clear()
    found, nodes = tree.search(board, SearchLimits(nodes=1))
    assert nodes == 1
    assert len(judge.seen) <= 1  # nothing was judged anew
    assert sum(line.visits for line in found) > 1
    tree.search(chess.Board(), SearchLimits(nodes=1))
    assert judge.seen[-1].records  # another game starts anew


def test_a_policy_avoids_draws_by_the_rules_while_it_hopes_for_more() -> None:
    board, ends = board_from_fen("k7/8/8/1Q6/8/8/8/K7 w - - 0 1"), []
    for line in ChessPlayer(Even(counts=True), "policy").by_policy(board):
        after = board.copy()
        after.push(line.moves[0])
        ends.append(after.is_stalemate())
    assert ends == sorted(ends)
    assert any(ends)  # such as b5b6


def test_only_some_moves_are_looked_at_if_asked() -> None:
    only = [chess.Move.from_uci("a2a3"), chess.Move.from_uci("h2h4")]
    for search in ("policy", "value", "puct"):
        lines = ChessPlayer(Even(), search).think(chess.Board(), SearchLimits(nodes=20), only=only).lines
        assert {line.moves[0] for line in lines} == set(only)


def test_a_search_stops_at_once_and_keeps_to_its_time() -> None:
    limits = SearchLimits()
    threading.Timer(0.2, limits.stop.set).start()
    ChessPlayer(Even(), "puct").think(chess.Board(), limits)  # has no other end
    assert share_of_clock(60, 0, None, 0.05) == pytest.approx(2)
    assert share_of_clock(0.06, 0, None, 0.05) <= 0.005
    assert share_of_clock(10, 1, None, 0.05) == pytest.approx(10 / 30 + 0.8)
    assert share_of_clock(10, 0, 1, 0) == 5
    assert 0 < share_of_clock(0, 0, None, 0.05) <= 0.005


def test_what_a_model_does_not_say_is_told() -> None:
    judge = Even()
    judge.has_value = False
    assert ChessPlayer(judge).search == "policy"
    with pytest.raises(UserError, match="does not predict values, which the search puct needs"):
        ChessPlayer(judge, "puct")
    judge.has_policy, judge.has_value = False, True
    with pytest.raises(UserError, match="use the search value or puct"):
        ChessPlayer(judge, "policy")
    with pytest.raises(UserError, match="there is no search 'alphabeta'"):
        ChessPlayer(Even(), "alphabeta")
    with pytest.raises(UserError, match="the game is over"):
        ChessPlayer(Even()).think(board_from_fen("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1"), SearchLimits())


@pytest.mark.parametrize("text", ["e2e5", "Qh5", "e7e8q", "nonsense", "O-O"])
def test_unknown_and_illegal_moves_are_told(text: str) -> None:
    with pytest.raises(UserError, match=repr(text)):
        parse_move(chess.Board(), text, "here")


def session(text: str, player: ChessPlayer | None = None) -> list[str]:
    sink = io.StringIO()
    Uci(lambda: player or ChessPlayer(Even()), "tiny", source=io.StringIO(text), sink=sink).run()
    return sink.getvalue().splitlines()


class Patient(io.StringIO):
    """Input that ends only after the answer, because its end stops the search."""

    def __init__(self, text: str, sink: io.StringIO) -> None:
        super().__init__(text)
        self.sink = sink

    def __next__(self) -> str:
        try:
            return super().__next__()
        except StopIteration:
            until = time.monotonic() + 60
            while "bestmove" not in self.sink.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
            raise


def test_uci_answers_what_it_is_asked() -> None:
    said = session("uci\nisready\nquit\n")
    assert said[0] == "id name headway tiny"
    assert said[-2:] == ["uciok", "readyok"]
    assert any(line.startswith("option name MultiPV type spin") for line in said)
    said = session(f"setoption name UCI_ShowWDL value true\nposition fen {MATE}\ngo nodes 60\nstop\n")
    assert said[-1].startswith("bestmove a1a8")
    assert "score mate 1 wdl 1000 0 0" in said[-2]
    said = session("setoption name MultiPV value 3\nsetoption name Search value value\nposition startpos\ngo depth 1\n")
    assert sum("multipv" in line for line in said) == 3
    said = session("position startpos moves e2e4 e7e5\ngo nodes 30 searchmoves a2a3\n")
    assert said[-1].startswith("bestmove a2a3")
    assert session("unknown words\n\nposition startpos\ngo infinite\nstop\n")[-1].startswith("bestmove ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("position fen 8/8/8 w - - 0 1", "3 ranks, not 8"),
        ("position fen rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w HAha - 0 1", "Chess960"),
        ("position fen 8/8/8/8/8/8/8/K7 w - - 0 1", "not a chess position"),
        ("position startpos moves e2e5", "'e2e5' is not a legal move"),
        ("position", "must be 'startpos', or 'fen' and a FEN"),
        ("setoption name UCI_Chess960 value true", "Chess960 is not supported"),
        ("setoption name MultiPV value many", "choose an integer from 1 to 256"),
        ("setoption name Hash value 0", "Hash is '0'; choose an integer from 1 to 65536"),
        ("setoption name Threads value 9999999999", "choose an integer from 1 to"),
        ("setoption name Search value alphabeta", "there is no search 'alphabeta'"),
        ("setoption name Hush value 3", "there is no option 'hush'"),
        ("go nodes 0", "go nodes 0: choose an integer of at least 1"),
        ("go movestogo -1 wtime 100 btime 100", "of at least 0"),
        ("go movetime soon", "write an integer"),
    ],
)
def test_uci_says_what_is_wrong_and_goes_on(text: str, message: str) -> None:
    said = session(f"{text}\ngo nodes 5\nposition startpos\ngo nodes 5\n")
    assert said[0].startswith("info string ")
    assert message in said[0]
    assert "bestmove (none)" not in said
    assert said[-1].startswith("bestmove ")


@pytest.mark.parametrize("wrong", ["fen 8/8/8 w - - 0 1", "startpos moves e2e4 e7e9", "startpos moves e2e5", ""])
def test_a_position_that_is_none_leaves_the_one_before(wrong: str) -> None:
    said = session(f"position fen {MATE}\nposition {wrong}\ngo nodes 60\n")
    assert said[0].startswith("info string ")
    assert said[-1].startswith("bestmove a1a8")


def test_the_model_is_opened_when_it_is_needed() -> None:
    """Not for `uci` and options, which are kept until then; a model that cannot be opened ends the program."""
    opened: list[ChessPlayer] = []

    def open_player() -> ChessPlayer:
        opened.append(ChessPlayer(Even()))
        return opened[-1]

    def run(text: str, opens: object = open_player) -> list[str]:
        sink = io.StringIO()
        Uci(opens, "tiny", source=io.StringIO(text), sink=sink).run()  # type: ignore[arg-type]
        return sink.getvalue().splitlines()

    assert run("uci\nsetoption name Hash value 9\nposition startpos\nucinewgame\nstop\nquit\n")[-1] == "uciok"
    assert not opened
    assert run("setoption name Search value value\nisready\nisready\ngo depth 1\nquit\n")[:2] == ["readyok"] * 2
    assert [player.search for player in opened] == ["value"]
    assert len(opened[0].evaluator.inner.seen) >= 2  # type: ignore[attr-defined]  # warm before the clock runs

    def fails() -> ChessPlayer:
        raise UserError("runs/chess does not play chess; train one")

    with pytest.raises(UserError, match="does not play chess"):
        run("uci\nisready\n", fails)


@pytest.mark.parametrize(
    ("fen", "score"), [("7k/5QQ1/6K1/8/8/8/8/8 b - - 0 1", "mate 0"), ("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1", "cp 0")]
)
def test_the_end_of_a_game_has_a_score_and_no_move(fen: str, score: str) -> None:
    assert session(f"position fen {fen}\ngo movetime 100\n") == [f"info depth 0 score {score}", "bestmove (none)"]


def test_mates_are_looked_for_by_their_length() -> None:
    for search, fen in (("puct", "7k/8/8/8/8/8/R7/1R5K w - - 0 1"), ("policy", "k7/8/2K5/8/8/8/8/7R w - - 0 1")):
        sink = io.StringIO()
        asked = Patient(f"setoption name Search value {search}\nposition fen {fen}\ngo mate 3\n", sink)
        Uci(lambda: ChessPlayer(Even()), "tiny", source=asked, sink=sink).run()
        said = sink.getvalue().splitlines()
        assert " score mate 2 pv " in said[-2]
        board, line = chess.Board(fen), said[-2].split(" pv ")[1].split()
        assert len(line) == 3
        for text in line:
            board.push_uci(text)
        assert board.is_checkmate()
        assert said[-1].startswith(f"bestmove {line[0]} ponder {line[1]}")
    said = session("go mate 1 nodes 5\n")
    assert said[0] == "info string no mate in 1 found; this is the best move"
    assert said[-1].startswith("bestmove ")
    assert said[-1] != "bestmove (none)"
    only = session(f"position fen {MATE}\ngo mate 1 searchmoves a1a7 nodes 5\n")
    assert only[-1].startswith("bestmove a1a7")


def test_a_search_for_mates_ends_at_its_time() -> None:
    assert session("go mate 9 movetime 150\n")[-1].startswith("bestmove ")  # of more games than can ever be tried


def test_uci_waits_for_the_end_of_pondering_and_of_endless_searches() -> None:
    for end in ("stop", "ponderhit"):
        ends = os.pipe()
        read, write = os.fdopen(ends[0], "r"), os.fdopen(ends[1], "w")
        sink = io.StringIO()
        thread = threading.Thread(target=Uci(lambda: ChessPlayer(Even()), "tiny", source=read, sink=sink).run)
        thread.start()
        print(f"position fen {MATE}\ngo ponder wtime 300 btime 300", file=write, flush=True)
        until = time.monotonic() + 60
        while "mate 1" not in sink.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert "bestmove" not in sink.getvalue()  # the mate is found, and it is not our turn yet
        print(f"{end}\nisready", file=write, flush=True)
        while "bestmove" not in sink.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert "bestmove a1a8" in sink.getvalue()
        print("quit", file=write, flush=True)
        thread.join(60)
        write.close()
        read.close()


@pytest.fixture(scope="module")
def engine(run: Path) -> object:
    """The command as python-chess's client runs it."""
    code = "import sys; from headway.app.cli.main import main; sys.exit(main())"
    found = clients.SimpleEngine.popen_uci(
        [sys.executable, "-c", code, "chess", "uci", str(run), "--threads", "1"], timeout=120
    )
    found.timeout = 60
    yield found
    found.quit()


def test_a_game_by_the_clock_through_python_chess(engine: object) -> None:
    """Both sides are the engine, with less and less time: every move is legal, which the client checks."""
    board, clock = chess.Board(), [2.0, 2.0]
    while not board.is_game_over(claim_draw=True) and len(board.move_stack) < 40:
        started = time.monotonic()
        limit = clients.Limit(white_clock=clock[0], black_clock=clock[1], white_inc=0.01, black_inc=0.01)
        board.push(engine.play(board, limit).move)  # type: ignore[attr-defined]
        side = (len(board.move_stack) + 1) % 2
        clock[side] = max(0.05, clock[side] - (time.monotonic() - started) + 0.01)
    assert len(board.move_stack) >= 4


def test_games_of_the_command_in_a_match_of_programs(run: Path) -> None:
    """Whole games as a tournament plays them: a new game is told, moves are sent one by one, the rules end it."""
    code = "import sys; from headway.app.cli.main import main; sys.exit(main())"
    command = shlex.join([sys.executable, "-c", code, "chess", "uci", str(run), "--threads", "1"])
    with closing(EngineOpponent(command, 8, None, 0.1)) as side:
        side.engine.patience = 120
        tally = MatchTally()
        play_match(side, RandomOpponent(0), [board_from_fen("8/7k/8/8/8/8/QQ6/K7 w - - 90 1")], 2, tally)
    ends = tally.scores()
    assert ends["games"] == 2
    assert ends["illegal_moves"] == 0


def test_an_analysis_through_python_chess(engine: object) -> None:
    board = chess.Board(MATE)
    found = engine.analyse(board, clients.Limit(nodes=60), multipv=2)  # type: ignore[attr-defined]
    assert len(found) == 2
    assert found[0]["score"].white() == clients.Mate(1)
    assert found[0]["pv"][0].uci() == "a1a8"
    with engine.analysis(chess.Board()) as endless:  # type: ignore[attr-defined]
        time.sleep(0.1)
        endless.stop()
        assert endless.wait().move in chess.Board().legal_moves
    engine.configure({"Hash": 32, "Threads": 1})  # type: ignore[attr-defined]
    two = engine.analyse(board_from_fen("7k/8/8/8/8/8/R7/1R5K w - - 0 1"), clients.Limit(mate=2))  # type: ignore[attr-defined]
    assert two["score"].white() == clients.Mate(2)
    mated = board_from_fen("7k/5QQ1/6K1/8/8/8/8/8 b - - 0 1")
    assert engine.analyse(mated, clients.Limit(time=0.1))["score"].relative == clients.Mate(0)  # type: ignore[attr-defined]
    assert engine.play(board_from_fen("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1"), clients.Limit(nodes=5)).move is None  # type: ignore[attr-defined]


def test_puzzles_are_solved_or_not(tmp_path: Path) -> None:
    path = tmp_path / "puzzles.csv"
    other = "7k/8/8/3q4/4P3/8/8/7K w - - 0 1"
    path.write_text(f"position,bestmove\n{MATE},\"['a1a8',]\"\n{other},h1g1\n{other},\"['e4d5', 'h1g1']\"\n")
    found = solve(ChessPlayer(Even(counts=True), "value"), path, SearchLimits())
    assert (found["samples"], found["puzzle_accuracy"], found["illegal_moves"]) == (3, pytest.approx(2 / 3), 0)
    own = tmp_path / "lichess.csv"
    own.write_text("PuzzleId,FEN,Moves\n1,6k1/5ppp/8/8/8/8/n4PPP/R5K1 b - - 0 1,a2c3 a1a8\n")
    assert solve(ChessPlayer(Even(), "value"), own, SearchLimits())["puzzle_accuracy"] == 1
    with pytest.raises(UserError, match=r"contains no puzzles"):
        solve(ChessPlayer(Even()), games_file(tmp_path), SearchLimits())


def test_games_of_a_match_swap_colours_and_end_by_the_rules() -> None:
    start = board_from_fen("k7/8/8/8/8/8/3QQ3/4K3 w - - 0 1")
    start.push_san("Kd1")
    strong, weak = ModelOpponent(ChessPlayer(Even(counts=True), "value"), "counts", None, None), RandomOpponent(0)
    seen: list = []
    tally = MatchTally()
    play_match(strong, weak, [start], 2, tally, lambda tally, played: seen.append(played))
    assert tally.games == 2 == len(seen)
    assert [played.white for played in seen] == ["counts", "random moves"]
    assert seen[0].board.move_stack[0] == seen[1].board.move_stack[0] == chess.Move.from_uci("e1d1")
    for played in seen:
        real = played.board.outcome(claim_draw=True)
        assert real is not None
        assert real.result() == played.result
    scores = tally.scores()
    assert scores["illegal_moves"] == 0
    assert scores["games"] == scores["wins"] + scores["draws"] + scores["losses"]
    assert list(ladder_steps([1, 10], [1320])) == [(1, None), (10, None), (None, 1320)]
    assert list(ladder_steps([], [])) == [(None, None)]


def test_openings(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    path = tmp_path / "a.tsv"
    lines = (data_dir / "chess/lichess-openings-a.tsv").read_text().splitlines()
    path.write_text("\n".join(lines[:60]))
    found = openings([path], 5, 1)
    assert len({board.fen() for board in found}) == 5
    assert all(4 <= len(board.move_stack) <= 12 for board in found)
    assert [board.fen() for board in openings([path], 5, 1)] == [board.fen() for board in found]
    with pytest.raises(UserError, match="too few for 2,000 games"):
        openings([path], 1000, 1)
    path.write_text("eco\tname\tpgn\nA00\tBad\t1. e5\n")
    with pytest.raises(UserError, match="line 2: these are not valid opening moves"):
        openings([path], 1, 1)
    games = tmp_path / "games.pgn"
    games.write_text('[Result "*"]\n\n1. h4 g5 2. Rh2 f6 3. f4 g4 4. c3 c6 5. e4 d5 6. exd5 cxd5 7. d4 Nc6 *\n')
    (opening,) = openings([games], 1, 1)
    assert len(opening.move_stack) == 12
    assert opening.move_stack[-1].uci() == "c6d5"


def test_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    puzzles = tmp_path / "p.csv"
    puzzles.write_text(f"position,bestmove\n{MATE},a1a8\n")
    assert cli.main(["chess", "puzzles", str(run), str(puzzles), "--nodes", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["puzzle_accuracy"], found["search"]) == (1.0, "puct")
    starts = tmp_path / "o.epd"
    starts.write_text("6k1/5ppp/8/8/8/8/5PPP/R5K1 w - -\n")
    words = ["chess", "match", str(run), "--opponent", "random", "--games", "1", "--our-nodes", "30", "--json"]
    assert cli.main([*words, "--openings", str(starts), "--pgn", str(tmp_path / "g.pgn")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["matches"][0]["games"] == 1
    assert (tmp_path / "g.pgn").read_text().count("[Event ") == 1
    assert cli.main(["chess", "match", str(run), "--opponent", "random", "--elo", "1320"]) == 2
    assert (
        cli.main(
            ["chess", "match", str(run), "--opponent", "no-such-engine", "--openings", str(starts), "--games", "1"]
        )
        == 2
    )
    assert "there is no program 'no-such-engine'" in capsys.readouterr().err


def test_opinions_are_kept_and_change_nothing(run: Path) -> None:
    """Forth and back through a game a real model with the cache finds bit for bit what it finds without, and is asked
    less.
    """
    model, found, asked = hw.load(run), [], []
    for megabytes in (0, 4):
        player = model.player("puct")
        player.evaluator.resize(megabytes)
        rows: list[int] = []
        player.evaluator.inner = Counting(player.evaluator.inner, rows)
        board, told = board_from_fen("7k/p7/8/8/8/8/P7/K7 w - - 0 1"), []
        with deterministic():
            for moves in ([], ["a1b1", "h8g8"], ["a1b1", "h8g8", "b1c1", "g8f8"], []):
                now = board.copy()
                for text in moves:
                    now.push_uci(text)
                lines, nodes = player.tree.search(now, SearchLimits(nodes=6))
                told.append([(line.moves, line.visits, line.outcome.tobytes()) for line in lines] + [nodes])
        found.append(told)
        asked.append(sum(rows))
    assert found[0] == found[1]
    assert asked[1] <= asked[0] - 6


class Counting:
    """A judge that counts the positions that it is asked for."""

    def __init__(self, inner: object, rows: list[int]) -> None:
        self.inner, self.rows = inner, rows

    def evaluate(self, places: list[PositionInput]) -> list[Evaluation]:
        self.rows.append(len(places))
        return self.inner.evaluate(places)  # type: ignore[attr-defined]


def test_the_cache_keeps_apart_what_differs_and_stays_in_its_room() -> None:
    judge = Even(counts=True)
    cache = EvaluationCache(judge)
    board = chess.Board()
    first = position_input(board, 1)
    once = cache.evaluate([first, first])
    assert len(judge.seen) == 1
    assert once[0] is once[1] is cache.evaluate([first])[0]
    for text in ("g1f3", "g8f6", "f3g1", "f6g8"):
        board.push_uci(text)
    cache.evaluate(
        [position_input(board, 1), position_input(board, 0)]
    )  # the same squares, with a clock and with a past
    assert len(judge.seen) == 3
    cache.resize(0)
    cache.evaluate([first])
    cache.evaluate([first])
    assert len(judge.seen) == 5
    cache.resize(1)
    for number in range(3000):
        cache.evaluate([PositionInput(((*first.records[0][:12], number),), first.moves)])
    judge.seen.clear()
    cache.evaluate([PositionInput(((*first.records[0][:12], 2999),), first.moves)])
    assert not judge.seen  # the newest are kept
    cache.evaluate([PositionInput(((*first.records[0][:12], 0),), first.moves)])
    assert len(judge.seen) == 1  # the oldest are gone
