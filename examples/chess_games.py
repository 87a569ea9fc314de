"""Games for the tutorial on chess: Stockfish plays fast games against itself from random openings.

python examples/chess_games.py games.pgn [GAMES]      # GAMES games (default: 40); needs stockfish and the extra chess
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import chess
import chess.engine
import chess.pgn


def game(engine: chess.engine.SimpleEngine, rng: random.Random) -> chess.pgn.Game:
    """A game of at most 120 half-moves whose first 8 are random."""
    board = chess.Board()
    for _ in range(8):
        if not board.is_game_over():
            board.push(rng.choice(list(board.legal_moves)))
    while not board.is_game_over() and board.ply() < 120:
        move = engine.play(board, chess.engine.Limit(nodes=2000)).move
        assert move is not None
        board.push(move)
    return chess.pgn.Game.from_board(board)


def main() -> None:
    path, games = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40
    program = shutil.which("stockfish") or "/usr/games/stockfish"
    rng = random.Random(0)
    with chess.engine.SimpleEngine.popen_uci(program) as engine, open(path, "w", encoding="utf-8") as file:
        for _ in range(games):
            print(game(engine, rng), file=file, end="\n\n")
    print(f"wrote {games} games to {path}")


if __name__ == "__main__":
    main()
