"""The protocol by which boards and tournaments talk to a program that plays: UCI."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TextIO

from headway.domains.chess.limits import Limits, share_of_clock
from headway.domains.chess.nodes import expected_of
from headway.domains.chess.player import SEARCHES, Player
from headway.domains.chess.puct import Line
from headway.domains.chess.rules import board_of, chess, move_named
from headway.domains.chess.values import centipawns
from headway.errors import UserError

_REPORT_EVERY = 0.5  # seconds
_UNCLEAR = 0.1  # seconds for a move where `go` cannot be read: an answer is waited for all the same
_MARGIN = 50  # milliseconds of the clock that are left to the way between two programs


class Uci:
    """Reads commands and answers them. A search runs in a thread of its own, so that `stop` is heard at once; what is
    wrong in a command is said by `info string`, and the game goes on.
    """

    def __init__(self, player: Player, name: str, source: TextIO | None = None, sink: TextIO | None = None) -> None:
        self.player, self.name = player, name
        self.source, self.sink = source or sys.stdin, sink or sys.stdout
        self.board: chess.Board | None = chess.Board()
        self.lines, self.margin, self.shows_chances = 1, _MARGIN, False
        self._limits: Limits | None = None
        self._thread: threading.Thread | None = None
        self._released = threading.Event()  # an answer to infinite and ponder waits for stop or ponderhit
        self._pondered: float | None = None  # seconds for the move once the opponent has played what was expected
        self._writing = threading.Lock()

    def run(self) -> None:
        """Answer until `quit` or the end of the input."""
        commands: dict[str, Callable[[list[str]], None]] = {
            "uci": self._uci,
            "isready": lambda _: self._say("readyok"),
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
            command = commands.get(words[0]) if words else None
            if command is None:
                continue  # the protocol wants what is unknown to be passed over
            try:
                command(words[1:])
            except Exception as error:  # a fault in one command must not end the game
                self._say(f"info string {_told(error)}")
        self._stop()

    def _uci(self, words: list[str]) -> None:
        self._say(f"id name headway {self.name}")
        self._say("id author headway")
        searches = " ".join(f"var {name}" for name in SEARCHES)
        self._say(f"option name Search type combo default {self.player.search} {searches}")
        self._say("option name MultiPV type spin default 1 min 1 max 256")
        self._say(f"option name Move Overhead type spin default {_MARGIN} min 0 max 5000")
        self._say("option name UCI_ShowWDL type check default false")
        self._say("option name Ponder type check default false")
        self._say("uciok")

    def _set(self, words: list[str]) -> None:
        self._stop()
        text = " ".join(words).removeprefix("name ")
        name, _, value = text.partition(" value ")
        known = name.strip().lower()
        if known == "search":
            self.player = Player(self.player.judge, value.strip(), self.player.tree.config)
        elif known in ("multipv", "move overhead"):
            if not value.strip().isdecimal():
                raise UserError(f"{name} is {value!r}; give a whole number")
            if known == "multipv":
                self.lines = max(1, int(value))
            else:
                self.margin = int(value)
        elif known == "uci_showwdl":
            self.shows_chances = value.strip().lower() == "true"
        elif known == "uci_chess960" and value.strip().lower() == "true":
            raise UserError("Chess960 is not played here; leave UCI_Chess960 false")

    def _new_game(self, words: list[str]) -> None:
        self._stop()
        self.player.new_game()
        self.board = chess.Board()

    def _position(self, words: list[str]) -> None:
        self._stop()
        self.board = None  # of a position that is wrong nothing is played
        moves = words[words.index("moves") + 1 :] if "moves" in words else []
        start = words[: words.index("moves")] if "moves" in words else words
        if start[:1] == ["startpos"]:
            board = chess.Board()
        elif start[:1] == ["fen"]:
            board = board_of(" ".join(start[1:]))
        else:
            raise UserError("a position is 'startpos' or 'fen' and a FEN, and 'moves' after it; give one of them")
        for text in moves:
            board.push(move_named(board, text))
        self.board = board

    def _go(self, words: list[str]) -> None:
        self._stop()
        if self.board is None or not any(self.board.generate_legal_moves()):
            self._say("info string there is no position with a legal move" if self.board is None else "info depth 0")
            self._say("bestmove (none)")
            return
        board, values = self.board, _values(words)
        try:
            if "mate" in values:
                raise UserError("go mate: mates in so many moves are not looked for; give nodes, depth or movetime")
            only = [move_named(board, text) for text in values.get("searchmoves", [])]
            limits = Limits(_number(values, "nodes"), _number(values, "depth"), self._seconds(board, values))
        except UserError as error:
            self._say(f"info string {error}")
            only, limits = [], Limits(seconds=_UNCLEAR)
        waits = "infinite" in values or "ponder" in values
        if waits:
            self._pondered, limits.seconds = limits.seconds, None
        self._released.clear()
        if not waits:
            self._released.set()
        self._limits = limits
        context = copy_context()  # with the kernels that the command line asked for
        self._thread = threading.Thread(target=context.run, args=(self._search, board, limits, only), daemon=True)
        self._thread.start()

    def _seconds(self, board: chess.Board, values: dict[str, list[str]]) -> float | None:
        """Seconds for this move; None without a clock."""
        fixed = _number(values, "movetime")
        if fixed is not None:
            return max(0.005, (fixed - self.margin) / 1000)
        side = "w" if board.turn else "b"
        left = _number(values, f"{side}time")
        if left is None:
            return None
        gained = (_number(values, f"{side}inc") or 0) / 1000
        return share_of_clock(left / 1000, gained, _number(values, "movestogo"), self.margin / 1000)

    def _search(self, board: chess.Board, limits: Limits, only: list[chess.Move]) -> None:
        told = [time.monotonic()]

        def report(lines: list[Line], nodes: int) -> None:
            if time.monotonic() - told[0] > _REPORT_EVERY:
                told[0] = time.monotonic()
                self._tell(lines, nodes, limits)

        try:
            thought = self.player.think(board, limits, report, only)
            self._tell(thought.lines, thought.nodes, limits)
            best = thought.lines[0].moves
        except Exception as error:  # whatever happens, the other program waits for a legal move
            self._say(f"info string {_told(error)}")
            best = [next(iter(board.legal_moves))]
        self._released.wait()
        follows = f" ponder {best[1].uci()}" if len(best) > 1 else ""
        self._say(f"bestmove {best[0].uci()}{follows}")

    def _tell(self, lines: list[Line], nodes: int, limits: Limits) -> None:
        seconds = max(1e-3, time.monotonic() - limits.started)
        for number, line in enumerate(lines[: self.lines], 1):
            score = "mate 1" if line.mates else f"cp {centipawns(expected_of(line.outcome))}"
            chances = " wdl {} {} {}".format(*_thousandths(line)) if self.shows_chances else ""
            moves = " ".join(move.uci() for move in line.moves)
            self._say(
                f"info depth {len(line.moves)} multipv {number} score {score}{chances} nodes {nodes} "
                f"nps {round(nodes / seconds)} time {round(1000 * seconds)} pv {moves}"
            )

    def _stop(self) -> None:
        """End the search, if there is one; its answer is said before this returns."""
        if self._thread is None or self._limits is None:
            return
        self._limits.stop.set()
        self._released.set()
        self._thread.join()
        self._thread = None

    def _ponderhit(self) -> None:
        """The opponent has played what was expected: the clock runs from now on."""
        if self._limits is None or self._thread is None:
            return
        if self._pondered is not None:
            self._limits.seconds = time.monotonic() - self._limits.started + self._pondered
        self._released.set()

    def _say(self, text: str) -> None:
        with self._writing:
            print(text, file=self.sink, flush=True)


_GO = (
    "searchmoves", "ponder", "wtime", "btime", "winc", "binc", "movestogo", "depth", "nodes", "mate", "movetime",
    "infinite",
)  # fmt: skip


def _values(words: list[str]) -> dict[str, list[str]]:
    """What follows each word of `go`."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word in _GO:
            current = found[word] = []
        else:
            current.append(word)
    return found


def _number(values: dict[str, list[str]], name: str) -> int | None:
    if name not in values:
        return None
    try:
        return int(values[name][0])
    except (IndexError, ValueError):
        raise UserError(f"go {name} {' '.join(values[name])}: give a whole number") from None


def _told(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _thousandths(line: Line) -> tuple[int, int, int]:
    win, loss = round(1000 * float(line.outcome[0])), round(1000 * float(line.outcome[2]))
    return win, 1000 - win - loss, loss
