"""Labels by an engine: the best moves of positions with their evaluations, by several workers, streamed to a CSV."""

from __future__ import annotations

import csv
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from headway.domains.chess.engines import SLOWEST, Answer, UciEngine
from headway.domains.chess.rules import chess
from headway.domains.chess.sources import bare_positions, chess_files
from headway.errors import UserError

HEADER = ("position", "bestmove", "scores", "wdl", "game")
Position = tuple[chess.Board, str]  # with the name of its game
_AHEAD = 64  # positions that wait for each worker


@dataclass(frozen=True)
class LabelConfig:
    """`nodes` of search a position, shared by the `lines` best moves; `vary` is the share of positions that are left by
    one to four random moves first, so that errors and what follows them are learnt too; `limit` the most positions,
    `minutes` the most time.
    """

    engine: str = "stockfish"
    nodes: int = 1000
    lines: int = 8
    workers: int = 1
    vary: float = 0.0
    seed: int = 0
    limit: int | None = None
    minutes: float | None = None


class Labelled(NamedTuple):
    """How many positions are in the file now, how many of them are new, and the seconds these took."""

    positions: int
    new: int
    seconds: float


def label(
    paths: Sequence[Path],
    out: Path,
    config: LabelConfig,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Labelled:
    """Write the labels of all positions of `paths` to the CSV `out`, in their order, without those that end a game.

    With `resume` a file that is there goes on where it ends, and a half line at its end is dropped. What is written
    stays whole whatever happens. UserErrors: a file that is there without `resume`, an engine that is missing, hangs or
    dies, positions that are none.
    """
    files = chess_files(paths)
    done, last = _begin(out, resume)
    started, new = time.monotonic(), 0
    boards = _varied((found for file in files for found in bare_positions(file)), config)
    _pass_over(boards, done, last, out)
    left = islice(boards, None if config.limit is None else max(0, config.limit - done))
    until = None if config.minutes is None else started + 60 * config.minutes
    with _Workers(config) as workers, open(out, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(HEADER)
        for (board, game), answer in workers.answers(left, until):
            rows.writerow((*_row(board, answer), game))
            new += 1
            if progress is not None and new % 100 == 0:
                progress(new, time.monotonic() - started)
    if done + new == 0:
        raise UserError(f"{files[0]}: there are no positions with a legal move; give others")
    return Labelled(done + new, new, time.monotonic() - started)


def _pass_over(boards: Iterator[Position], done: int, last: str, out: Path) -> None:
    """Go past what has its labels already. UserError where that was something else."""
    found = next(islice(boards, done - 1, None), None) if done else None
    if done and (found is None or found[0].fen() != last):
        raise UserError(
            f"{out} was made of other positions; give the files, --vary and --seed that it was begun with, or choose "
            "another name"
        )


def _row(board: chess.Board, answer: Answer) -> tuple[str, str, str, str]:
    scores = " ".join(f"{line.move}:{line.score}" for line in answer.lines)
    wdl = answer.lines[0].wdl if answer.lines else None
    best = answer.lines[0].move if answer.lines else answer.best or ""
    return board.fen(), best, scores, "" if wdl is None else " ".join(map(str, wdl))


def _begin(out: Path, resume: bool) -> tuple[int, str]:
    """How many labels are in the file already, and the last position; what was cut off at its end is taken away."""
    if not out.exists() or out.stat().st_size == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        return 0, ""
    if not resume:
        raise UserError(f"{out} already exists; add --resume to continue it, or choose another name")
    with open(out, "rb+") as file:
        whole, number, last = 0, -1, b""
        for line in file:
            if not line.endswith(b"\n"):
                break
            number, last = number + 1, line
            if number == 0 and line.decode(errors="replace").strip() != ",".join(HEADER):
                raise UserError(f"{out} holds no labels of headway ({','.join(HEADER)}); choose another name")
            whole += len(line)
        file.truncate(whole)
        return max(0, number), last.decode(errors="replace").partition(",")[0] if number > 0 else ""


def _varied(boards: Iterator[Position], config: LabelConfig) -> Iterator[Position]:
    """Positions that a side can move in; some of them after random moves, which depend on their number alone."""
    for number, (board, game) in enumerate(boards):
        draw = random.Random(config.seed * 1_000_003 + number)
        if draw.random() < config.vary:
            for _ in range(draw.randint(1, 4)):
                moves = list(board.legal_moves)
                if not moves:
                    break
                board.push(draw.choice(moves))
        if any(board.generate_legal_moves()):
            yield board, game


class _Workers:
    """Engines, one a thread, that answer positions in their order."""

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.engines: list[UciEngine] = []
        self._own = threading.local()
        self._lock = threading.Lock()

    def __enter__(self) -> _Workers:
        self._pool = ThreadPoolExecutor(self.config.workers)
        try:
            self._engine_of_thread_checked()
        except BaseException:
            self._pool.shutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for engine in self.engines:
            engine.close()

    def answers(self, boards: Iterator[Position], until: float | None) -> Iterator[tuple[Position, Answer]]:
        """Each position with its answer; no new ones are asked after `until`."""
        waiting: deque[tuple[Position, Future[Answer]]] = deque()
        for position in boards:
            if until is not None and time.monotonic() > until:
                break
            waiting.append((position, self._pool.submit(self._ask, position[0].fen())))
            if len(waiting) >= _AHEAD * self.config.workers:
                position, answer = waiting.popleft()
                yield position, answer.result()
        while waiting:
            position, answer = waiting.popleft()
            yield position, answer.result()

    def _ask(self, fen: str) -> Answer:
        engine = getattr(self._own, "engine", None) or self._engine()
        return engine.ask(fen, (), f"nodes {self.config.nodes}", self.config.nodes / SLOWEST)

    def _engine(self) -> UciEngine:
        wished = {"Threads": 1, "Hash": 16, "UCI_ShowWDL": "true"}
        engine = self._own.engine = UciEngine(self.config.engine, {"MultiPV": self.config.lines}, wished)
        with self._lock:
            self.engines.append(engine)
        return engine

    def _engine_of_thread_checked(self) -> None:
        """One is started before any position is read, so that a program that is none is told at once."""
        self._pool.submit(self._engine).result()


def default_workers() -> int:
    return max(1, os.cpu_count() or 1)
