"""Matches: games from openings with colours swapped, and strength estimates."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.domains.chess.boards import chess, notation, parse_move
from headway.domains.chess.engines import MIN_NODES_PER_SECOND, UciEngine
from headway.domains.chess.games import game_over
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import ChessPlayer
from headway.errors import UserError
from headway.metrics import elo_difference

_MAX_PLIES = 600  # half moves after which a game is drawn


class Opponent:
    """A player in a game."""

    name: str

    def new_game(self) -> None:
        """Prepare for a new game."""

    def move(self, board: chess.Board) -> chess.Move:
        """Return a move for a board that has one."""
        raise NotImplementedError

    def close(self) -> None:
        """End the player."""


class ModelOpponent(Opponent):
    """A player with a time or node limit per move."""

    def __init__(self, player: ChessPlayer, name: str, seconds: float | None, nodes: int | None) -> None:
        self.player, self.name, self.seconds, self.nodes = player, name, seconds, nodes
        self.searched_nodes, self.seconds_spent = 0, 0.0

    def new_game(self) -> None:
        self.player.new_game()

    def move(self, board: chess.Board) -> chess.Move:
        started = time.monotonic()
        thought = self.player.think(board, SearchLimits(self.nodes, seconds=self.seconds))
        self.searched_nodes = self.searched_nodes + thought.nodes
        self.seconds_spent = self.seconds_spent + time.monotonic() - started
        return thought.move


class EngineOpponent(Opponent):
    """Another program: at full strength with a node limit, or limited to an Elo with a time limit."""

    def __init__(self, program: str, nodes: int | None, elo: int | None, seconds: float) -> None:
        options: dict[str, str | int] = {}
        if elo is not None:
            options = {"UCI_LimitStrength": "true", "UCI_Elo": elo}
        self.engine = UciEngine(program, options, {"Threads": 1, "Hash": 16})
        if elo is not None:
            words = self.engine.options["UCI_Elo"].split()
            low, high = (int(words[words.index(name) + 1]) for name in ("min", "max"))
            if not low <= elo <= high:
                self.engine.close()
                raise UserError(
                    f"{self.engine.program} supports Elo {low} to {high}, not {elo}; choose one in that range"
                )
        limit = f"nodes {nodes}" if nodes is not None else f"{seconds:g} s per move"
        self.name = f"{Path(self.engine.program).name} at " + (
            f"Elo {elo}, {seconds:g} s per move" if elo is not None else limit
        )
        self.go, self.seconds = f"movetime {round(1000 * seconds)}", seconds
        if nodes is not None:
            self.go, self.seconds = f"nodes {nodes}", nodes / MIN_NODES_PER_SECOND

    def new_game(self) -> None:
        self.engine.new_game()

    def move(self, board: chess.Board) -> chess.Move:
        played = [move.uci() for move in board.move_stack]
        answer = self.engine.analyse(board.root().fen(), played, self.go, self.seconds)
        if answer.best is None:
            raise UserError(f"{self.name} did not return a move for {board.fen()!r}; check the program")
        return parse_move(board, answer.best, self.name)

    def close(self) -> None:
        self.engine.close()


class RandomOpponent(Opponent):
    """Plays any legal move."""

    name = "random moves"

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def move(self, board: chess.Board) -> chess.Move:
        return self.rng.choice(list(board.legal_moves))


@dataclass
class MatchTally:
    """Results of a match from the first player's point of view."""

    wins: int = 0
    draws: int = 0
    losses: int = 0
    illegal: int = 0
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def games(self) -> int:
        return self.wins + self.draws + self.losses

    def scores(self) -> dict[str, Any]:
        """Return counts, the share of points and the difference in Elo with their intervals."""
        counts = {"games": self.games, "wins": self.wins, "draws": self.draws, "losses": self.losses}
        elo = elo_difference(self.wins, self.draws, self.losses)
        return {**counts, **elo, "illegal_moves": self.illegal, "ends": dict(sorted(self.ends.items()))}


@dataclass(frozen=True)
class PlayedGame:
    """A finished game: the board with all moves, the result, why the game ended, and who played White."""

    board: chess.Board
    result: str
    end: str
    white: str
    black: str


def play_match(
    first: Opponent,
    second: Opponent,
    openings: Sequence[chess.Board],
    count: int,
    tally: MatchTally,
    on_game: Callable[[MatchTally, PlayedGame], None] | None = None,
) -> None:
    """Play `count` games, two from each opening with colours swapped, and update `tally` after each. UserError if the
    second player fails.
    """
    for number in range(count):
        board = openings[number // 2].copy()
        swapped = number % 2 == 1
        white, black = (second, first) if swapped else (first, second)
        played = _play(board, white, black, first, tally)
        points = {"1-0": 1.0, "1/2-1/2": 0.5, "0-1": 0.0}[played.result]
        points = 1 - points if swapped else points
        tally.wins += points == 1
        tally.draws += points == 0.5
        tally.losses += points == 0
        tally.ends[played.end] = tally.ends.get(played.end, 0) + 1
        if on_game is not None:
            on_game(tally, played)


def _play(board: chess.Board, white: Opponent, black: Opponent, first: Opponent, tally: MatchTally) -> PlayedGame:
    white.new_game()
    black.new_game()
    while True:
        over = game_over(board)
        if over is None and len(board.move_stack) >= _MAX_PLIES:
            over = "1/2-1/2", "length"
        if over is not None:
            return PlayedGame(board, *over, white.name, black.name)
        player = white if board.turn else black
        move = player.move(board)
        if not board.is_legal(move):
            tally.illegal += player is first
            return PlayedGame(board, "0-1" if board.turn else "1-0", "illegal move", white.name, black.name)
        board.push(move)


def format_pgn(played: PlayedGame, number: int) -> str:
    """Return a game in PGN."""
    game = notation.Game.from_board(played.board)
    game.headers.update({"Event": "headway chess match", "Round": str(number), "White": played.white})
    game.headers.update({"Black": played.black, "Result": played.result, "Termination": played.end})
    return f"{game}\n\n"


def ladder_steps(nodes: Sequence[int], elos: Sequence[int]) -> Iterator[tuple[int | None, int | None]]:
    """Yield the steps of a ladder: (nodes, None) and (None, Elo); without any, full strength with a time limit."""
    yield from ((count, None) for count in nodes)
    yield from ((None, elo) for elo in elos)
    if not nodes and not elos:
        yield None, None
