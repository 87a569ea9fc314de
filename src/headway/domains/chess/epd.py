"""Positions with operations (EPD), as test suites have them, also in the notation of their older ones."""

from __future__ import annotations

import re

from headway.domains.chess.rules import board_of, chess, move_named
from headway.errors import UserError

_OPERATION = re.compile(r'[\s;]*(\w+)((?:\s+(?:"[^"]*(?:"|$)|[^\s;"]+))*)\s*(?:;|$)')
_COUNTERS = re.compile(r"^\d+\s+\d+\s*(?=$|[A-Za-z])")  # of a FEN, before the operations
_TAIL = re.compile(r"(?:\+|#|[!?]|ch|mate|dis|dbl|\(?e\.?p\.?\)?)+$")
_LONGEST = 20  # characters of a move
_LONGEST_LINE = 1 << 16  # characters
_CASTLING = re.compile(r"[0Oo]-?[0Oo](-?[0Oo])?")
_PROMOTION = re.compile(r"(?<=[a-h][18])[=/(]?([QRBN])\)?$")


def board_and_rest(line: str, where: str) -> tuple[chess.Board, str]:
    """The board of a line and what stands after it. UserError for a position that is none."""
    if len(line) > _LONGEST_LINE:
        raise UserError(f"{where} has {len(line):,} characters; write a position and its operations in a line")
    parts = line.split(maxsplit=4)
    rest = parts[4].strip() if len(parts) > 4 else ""
    counters = _COUNTERS.match(rest)
    fen = " ".join([*parts[:4], *(counters.group().split() if counters else ())])
    return board_of(fen, where), rest[counters.end() :] if counters else rest


def operations_of(text: str, where: str) -> dict[str, str]:
    """What each operation says, without the quotes around it. UserError for what is none."""
    found: dict[str, str] = {}
    at, end = 0, len(text.rstrip("; \t"))
    while at < end:
        match = _OPERATION.match(text, at)
        if match is None:
            raise UserError(f'{where}: {text[at:].strip()[:60]!r} is not an operation; write them as bm Nf3; id "one";')
        found.setdefault(match[1], match[2].strip().strip('"'))
        at = match.end()
    return found


def moves_of(board: chess.Board, text: str, where: str) -> list[chess.Move]:
    """The moves of an operation: Nf3, e2e4, and as older suites have them: Rd8+, Ng1-f3, 0-0, N:e4, e8(Q), Qh7mate.
    UserError for one that is not legal.
    """
    return [_move(board, word, where) for word in text.replace(",", " ").split() if not _TAIL.fullmatch(word)]


def _move(board: chess.Board, word: str, where: str) -> chess.Move:
    if len(word) > _LONGEST:
        raise UserError(f"{where}: {word[:_LONGEST]!r}... is not a chess move; write moves as e2e4 or Nf3")
    bare = _PROMOTION.sub(r"=\1", _TAIL.sub("", word).replace(":", "x"))
    if castling := _CASTLING.fullmatch(bare):
        bare = "O-O-O" if castling[1] else "O-O"
    try:
        return move_named(board, bare, where)
    except UserError as error:
        raise UserError(str(error).replace(repr(bare), repr(word))) from None
