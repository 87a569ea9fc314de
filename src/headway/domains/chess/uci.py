"""UCI, the protocol between chess programs, and a search for forced mates that uses only the rules: every attacking
move against every defence.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, NamedTuple, TextIO

from headway.domains.chess.boards import board_from_fen, centipawns, chess, expected_of, parse_move
from headway.domains.chess.limits import SEARCHES, SearchLimits, share_of_clock
from headway.errors import UserError, nearest

if TYPE_CHECKING:
    from headway.domains.chess.player import ChessPlayer, SearchLine


_REPORT_EVERY = 0.5  # seconds
_FALLBACK_SECONDS = 0.1  # seconds for a move if `go` is invalid, because the other program still expects an answer
_AUTO = "auto"  # the strongest search that the model supports


class _Spin(NamedTuple):
    """An integer option ("spin" in UCI)."""

    default: int
    minimum: int
    maximum: int


class Uci:
    """Reads commands and answers them. `open_player` is called at `isready` or the first `go`, so that `uci` is
    answered at once; its UserErrors end the program. `search` and `threads` come from the command line (None: the
    strongest search, and one thread per core).

    A search runs in a separate thread, so that `stop` takes effect at once. Errors in a command are reported with `info
    string`, and the game continues.
    """

    def __init__(
        self,
        open_player: Callable[[], ChessPlayer],
        name: str,
        search: str | None = None,
        threads: int | None = None,
        source: TextIO | None = None,
        sink: TextIO | None = None,
    ) -> None:
        self.open_player, self.name = open_player, name
        self.source, self.sink = source or sys.stdin, sink or sys.stdout
        self.board = chess.Board()
        self.search = search or _AUTO
        cores = os.cpu_count() or 1
        self.spins = {
            "Hash": _Spin(64, 1, 65_536),  # megabytes
            "Threads": _Spin(threads or cores, 1, cores),
            "MultiPV": _Spin(1, 1, 256),
            "Move Overhead": _Spin(50, 0, 5000),  # milliseconds reserved for communication
        }
        self.options: dict[str, int] = {}
        self.shows_wdl = False
        self._player: ChessPlayer | None = None
        self._limits: SearchLimits | None = None
        self._thread: threading.Thread | None = None
        self._released = threading.Event()  # answers to infinite and ponder wait for stop or ponderhit
        self._ponder_seconds: float | None = None  # seconds for the move after ponderhit
        self._writing = threading.Lock()

    def run(self) -> None:
        """Answer until `quit` or the end of the input. UserError for a model that cannot be opened or does not play."""
        commands: dict[str, Callable[[list[str]], None]] = {
            "uci": self._uci,
            "setoption": self._set,
            "ucinewgame": self._new_game,
            "position": self._position,
            "go": self._go,
            "stop": lambda _: self._stop(),
            "ponderhit": lambda _: self._ponderhit(),
        }
        for line in self.source:
            words = line.split()
            if words[:1] == ["quit"]:
                break
            if words[:1] in (["isready"], ["go"]):
                self._ready()
            if words[:1] == ["isready"]:
                self._send("readyok")
            command = commands.get(words[0]) if words else None
            if command is None:
                continue  # the protocol requires ignoring unknown commands
            try:
                command(words[1:])
            except Exception as error:  # an error in one command must not end the game
                self._send(f"info string {_error_line(error)}")
        self._stop()

    def _ready(self) -> ChessPlayer:
        """Return the player, loaded and warmed up."""
        if self._player is None:
            try:
                self._player = self.open_player()
            except UserError as error:
                self._send(f"info string {error}")
                raise
            try:
                self._player.set_search(None if self.search == _AUTO else self.search)
            except UserError as error:  # set as an option: fall back to what the model can do
                self._send(f"info string {error}")
            self._apply(self._player)
            self._player.warm_up()
        return self._player

    def _uci(self, words: list[str]) -> None:
        self._send(f"id name headway {self.name}")
        self._send("id author headway")
        searches = " ".join(f"var {name}" for name in (_AUTO, *SEARCHES))
        self._send(f"option name Search type combo default {self.search} {searches}")
        for name, (default, minimum, maximum) in self.spins.items():
            self._send(f"option name {name} type spin default {default} min {minimum} max {maximum}")
        self._send("option name UCI_ShowWDL type check default false")
        self._send("option name Ponder type check default false")
        self._send("uciok")

    def _set(self, words: list[str]) -> None:
        self._stop()
        name, _, value = " ".join(words).removeprefix("name ").partition(" value ")
        name, value = name.strip().lower(), value.strip()
        spin = next((known for known in self.spins if known.lower() == name), None)
        if spin is not None:
            _, minimum, maximum = self.spins[spin]
            if not value.isdecimal() or not minimum <= int(value[:9]) <= maximum:
                raise UserError(f"{spin} is {value!r}; choose an integer from {minimum} to {maximum}")
            self.options[spin] = int(value)
        elif name == "search":
            search = value.lower()
            if search not in (_AUTO, *SEARCHES):
                raise UserError(f"there is no search {search!r}; use {', '.join((_AUTO, *SEARCHES))}")
            if self._player is not None:
                self._player.set_search(None if search == _AUTO else search)
            self.search = search
        elif name == "uci_showwdl":
            self.shows_wdl = value.lower() == "true"
        elif name == "uci_chess960" and value.lower() == "true":
            raise UserError("Chess960 is not supported; leave UCI_Chess960 false")
        elif name not in ("ponder", "uci_chess960"):
            raise UserError(f"there is no option {name!r}; {nearest(name, [*self.spins, 'Search', 'UCI_ShowWDL'])}")
        if self._player is not None:
            self._apply(self._player)

    def _value(self, name: str) -> int:
        return self.options.get(name, self.spins[name].default)

    def _apply(self, player: ChessPlayer) -> None:
        player.evaluator.resize(self._value("Hash"))
        if "Threads" in self.options:  # otherwise set by the command line, the environment or torch
            player.use_threads(self.options["Threads"])

    def _new_game(self, words: list[str]) -> None:
        self._stop()
        if self._player is not None:
            self._player.new_game()
        self.board = chess.Board()

    def _position(self, words: list[str]) -> None:
        """Set up a board; keep the previous one on an error."""
        self._stop()
        moves = words[words.index("moves") + 1 :] if "moves" in words else []
        start = words[: words.index("moves")] if "moves" in words else words
        if start[:1] == ["startpos"]:
            board = chess.Board()
        elif start[:1] == ["fen"]:
            board = board_from_fen(" ".join(start[1:]))
        else:
            raise UserError(
                "a position must be 'startpos', or 'fen' and a FEN, optionally followed by 'moves'; correct it"
            )
        for text in moves:
            board.push(parse_move(board, text))
        self.board = board

    def _go(self, words: list[str]) -> None:
        self._stop()
        board, current = self.board, []
        arguments: dict[str, list[str]] = {}  # arguments of each keyword
        for word in words:
            if word in _GO:
                current = arguments[word] = []
            else:
                current.append(word)
        limits, only, mate = SearchLimits(), [], None
        try:
            only = [parse_move(board, text) for text in arguments.get("searchmoves", [])]
            mate = _number(arguments, "mate", 1)
            limits.nodes, limits.depth = _number(arguments, "nodes", 1), _number(arguments, "depth", 1)
            limits.seconds = self._seconds(board, arguments)
        except UserError as error:
            self._send(f"info string {error}")
            limits, only, mate = SearchLimits(seconds=_FALLBACK_SECONDS), [], None
        self._released.clear()
        if "infinite" in arguments or "ponder" in arguments:
            self._ponder_seconds, limits.seconds = limits.seconds, None
        else:
            self._released.set()
        self._limits = limits
        context = copy_context()  # with the kernels chosen on the command line
        thread_args = (self._search, self._ready(), board, limits, only, mate)
        self._thread = threading.Thread(target=context.run, args=thread_args, daemon=True)
        self._thread.start()

    def _seconds(self, board: chess.Board, values: dict[str, list[str]]) -> float | None:
        """Return the seconds for this move; None without a clock."""
        margin = self._value("Move Overhead")
        fixed = _number(values, "movetime", 1)
        if fixed is not None:
            return max(0.005, (fixed - margin) / 1000)
        color = "w" if board.turn else "b"
        remaining = _number(values, f"{color}time")
        if remaining is None:
            return None
        increment = (_number(values, f"{color}inc") or 0) / 1000
        return share_of_clock(remaining / 1000, increment, _number(values, "movestogo", 0), margin / 1000)

    def _search(
        self, player: ChessPlayer, board: chess.Board, limits: SearchLimits, only: list[chess.Move], mate: int | None
    ) -> None:
        try:
            best = self._best(player, board, limits, only, mate)
        except Exception as error:  # the other program waits for a legal move in any case
            self._send(f"info string {_error_line(error)}")
            best = [next(iter(board.legal_moves))]
        self._released.wait()
        follows = f" ponder {best[1].uci()}" if len(best) > 1 else ""
        self._send(f"bestmove {best[0].uci() if best else '(none)'}{follows}")

    def _best(
        self, player: ChessPlayer, board: chess.Board, limits: SearchLimits, only: list[chess.Move], mate: int | None
    ) -> list[chess.Move]:
        """Return the move and the expected continuation; empty if the game is over."""
        if not any(board.generate_legal_moves()):
            self._send(f"info depth 0 score {'mate' if board.is_check() else 'cp'} 0")
            return []
        if mate is not None:
            # The shortest mate of the side to move in at most `mate` moves, with the longest defence.
            mate_line: list[chess.Move] | None = None
            for length in range(1, mate + 1):
                mate_line = _find_mate(board.copy(), length, limits, only)
                if mate_line is not None or limits.over:
                    break
            if mate_line is not None:
                moves = " ".join(move.uci() for move in mate_line)
                self._send(f"info depth {len(mate_line)} multipv 1 score mate {(len(mate_line) + 1) // 2} pv {moves}")
                return mate_line
            self._send(f"info string no mate in {mate} found; this is the best move")
            if limits.nodes is None and limits.depth is None and limits.seconds is None:
                limits.seconds = time.monotonic() - limits.started + _FALLBACK_SECONDS
        last_report = [time.monotonic()]

        def report(lines: list[SearchLine], nodes: int) -> None:
            if time.monotonic() - last_report[0] > _REPORT_EVERY:
                last_report[0] = time.monotonic()
                self._report(lines, nodes, limits)

        thought = player.think(board, limits, report, only)
        self._report(thought.lines, thought.nodes, limits)
        return thought.lines[0].moves

    def _report(self, lines: list[SearchLine], nodes: int, limits: SearchLimits) -> None:
        seconds = max(1e-3, time.monotonic() - limits.started)
        for number, line in enumerate(lines[: self._value("MultiPV")], 1):
            score = "mate 1" if line.mates else f"cp {centipawns(expected_of(line.outcome))}"
            win, loss = round(1000 * float(line.outcome[0])), round(1000 * float(line.outcome[2]))
            wdl = f" wdl {win} {1000 - win - loss} {loss}" if self.shows_wdl else ""
            moves = " ".join(move.uci() for move in line.moves)
            self._send(
                f"info depth {len(line.moves)} multipv {number} score {score}{wdl} nodes {nodes} nps "
                f"{round(nodes / seconds)} time {round(1000 * seconds)} pv {moves}"
            )

    def _stop(self) -> None:
        """End the search, if there is one; its answer is sent before this returns."""
        if self._thread is None or self._limits is None:
            return
        self._limits.stop.set()
        self._released.set()
        self._thread.join()
        self._thread = None

    def _ponderhit(self) -> None:
        """The opponent played the expected move: the clock runs from now."""
        if self._limits is None or self._thread is None:
            return
        if self._ponder_seconds is not None:
            self._limits.seconds = time.monotonic() - self._limits.started + self._ponder_seconds
        self._released.set()

    def _send(self, text: str) -> None:
        with self._writing:
            print(text, file=self.sink, flush=True)


_GO = (
    "searchmoves", "ponder", "wtime", "btime", "winc", "binc", "movestogo", "depth", "nodes", "mate", "movetime",
    "infinite",
)  # fmt: skip


def _number(values: dict[str, list[str]], name: str, minimum: int | None = None) -> int | None:
    """Return the integer after a keyword of `go`; None without it. A clock may be below 0."""
    if name not in values:
        return None
    try:
        number = int(values[name][0])
    except (IndexError, ValueError):
        raise UserError(f"go {name} {' '.join(values[name])}: write an integer") from None
    if minimum is not None and number < minimum:
        raise UserError(f"go {name} {number}: choose an integer of at least {minimum}")
    return number


def _error_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _find_mate(board: chess.Board, moves: int, limits: SearchLimits, only: list[chess.Move]) -> list[chess.Move] | None:
    """Find a mate in at most this many moves, the first of them in `only` if there are any: checks first, and only
    checks for the last move.
    """
    every = only or list(board.generate_legal_moves())
    checks = [move for move in every if board.gives_check(move)]
    quiet = [] if moves == 1 else [move for move in every if move not in checks]
    for move in checks + quiet:
        if limits.over:
            return None
        board.push(move)
        follows = _best_defence(board, moves - 1, limits)
        board.pop()
        if follows is not None:
            return [move, *follows]
    return None


def _best_defence(board: chess.Board, moves: int, limits: SearchLimits) -> list[chess.Move] | None:
    """Return the longest defence after a mating move, with `moves` attacking moves left; empty if it is already mate,
    and None if there is an escape.
    """
    longest_line: list[chess.Move] = []
    if board.is_insufficient_material() or (board.halfmove_clock >= 100 and not board.is_checkmate()):
        return None
    defences = list(board.generate_legal_moves())
    if not defences or moves == 0:
        return [] if not defences and board.is_check() else None
    for defence in defences:
        board.push(defence)
        follows = _find_mate(board, moves, limits, [])
        board.pop()
        if follows is None:
            return None
        longest_line = max(longest_line, [defence, *follows], key=len)
    return longest_line
