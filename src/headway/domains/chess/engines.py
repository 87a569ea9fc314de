"""Chess engines as a source of labels: their moves and values for positions."""

from __future__ import annotations

import csv
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from headway.data.array_store import check_output_path
from headway.domains.chess.boards import chess
from headway.domains.chess.position_files import chess_files, unlabelled_positions
from headway.errors import UserError

_PROGRAM_FOLDERS = ("/usr/games", "/usr/local/bin", "/opt/homebrew/bin")  # program folders that PATH may lack
_MULTIPV = re.compile(r" multipv (\d+) ")
MIN_NODES_PER_SECOND = 1000.0  # nodes per second that any machine can search
_PATIENCE = 20.0  # seconds without output allowed at the start and after the time limit
_QUIT_TIMEOUT = 1.0  # seconds for a program to quit on request


class EngineLine(NamedTuple):
    """An engine's evaluation of a move, from the mover's point of view: "34" centipawns or "#-3", and (win, draw, loss)
    in thousandths if the engine reports them.
    """

    move: str
    score: str
    wdl: tuple[int, int, int] | None


class EngineAnswer(NamedTuple):
    """The best move (None if there is no legal move) and the lines, best first."""

    best: str | None
    lines: tuple[EngineLine, ...]


def find_engine(name: str) -> list[str]:
    """Return the command for a program's name or path with arguments. UserError if it does not exist."""
    search_path = os.pathsep.join([os.environ.get("PATH", ""), *_PROGRAM_FOLDERS])
    words = [name] if Path(name).expanduser().is_file() else shlex.split(name) or [name]
    program = shutil.which(words[0], path=search_path) or shutil.which(str(Path(words[0]).expanduser()))
    if program is None:
        raise UserError(f"there is no program {name!r}; install it (Debian: apt install stockfish) or pass its path")
    return [program, *words[1:]]


class UciEngine:
    """A program that speaks UCI. If it does not respond for too long, it is stopped with a UserError; if it exceeds its
    time but still reports progress, headway waits. Unknown `options` are an error; unknown `optional` ones are ignored.
    """

    def __init__(
        self,
        program: str,
        options: Mapping[str, str | int] | None = None,
        optional: Mapping[str, str | int] | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        words = find_engine(program)
        self.program, self.patience = words[0], patience
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C reaches only headway, which then stops the whole group
            )
        except OSError as error:
            raise UserError(f"{self.program} cannot be run ({error.strerror}); check its permissions") from None
        self._output: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._info_lines: dict[int, str] = {}  # the last line per MultiPV index
        self._last_output = time.monotonic()  # time of the last output
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        self.options: dict[str, str] = {}
        options = options or {}
        try:
            deadline = time.monotonic() + self.patience
            self._send("uci")
            while (line := self._read_line(deadline)).strip() != "uciok":
                words = line.split()
                if words[:2] == ["option", "name"]:
                    self.options[" ".join(words[2 : words.index("type")] if "type" in words else words[2:])] = line
            for name in options:
                if name not in self.options:
                    raise UserError(f"{self.program} has no option {name!r}; omit it, or use another program")
            for name, value in {**options, **(optional or {})}.items():
                if name in self.options:
                    self._send(f"setoption name {name} value {value}")
            self._ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> UciEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def new_game(self) -> None:
        self._send("ucinewgame")
        self._ready()

    def analyse(self, fen: str, moves: Sequence[str], go: str, seconds: float) -> EngineAnswer:
        """Return the engine's move after `moves` from `fen`. `go` are the arguments of UCI's `go`, which should take
        about `seconds`.
        """
        played = f" moves {' '.join(moves)}" if moves else ""
        self._info_lines.clear()
        self._send(f"position fen {fen}{played}\ngo {go}")
        deadline = time.monotonic() + seconds + self.patience
        while True:
            words = self._read_line(deadline, searching=True).split()
            if words[:1] == ["bestmove"]:
                best = words[1] if len(words) > 1 and words[1] not in ("(none)", "0000") else None
                lines = []
                for _, info in sorted(self._info_lines.items()):
                    fields = info.split()
                    kind, value = fields[fields.index("score") + 1 :][:2]
                    score = f"#{int(value)}" if kind == "mate" else str(int(value))
                    wdl = None
                    if "wdl" in fields:
                        win, draw, loss = map(int, fields[fields.index("wdl") + 1 :][:3])
                        wdl = (win, draw, loss)
                    lines.append(EngineLine(fields[fields.index("pv") + 1], score, wdl))
                return EngineAnswer(best, tuple(lines))

    def close(self) -> None:
        """Quit the program and its children, and kill them if they do not exit."""
        process = self._process
        with suppress(OSError, ValueError, subprocess.TimeoutExpired):
            if process.poll() is None and process.stdin is not None:
                process.stdin.write("quit\n")
                process.stdin.flush()
            process.wait(_QUIT_TIMEOUT)
            self._reader.join(_QUIT_TIMEOUT)
        if process.poll() is None or self._reader.is_alive():  # something still holds the pipe
            self._kill()
            self._reader.join(_QUIT_TIMEOUT)
        pipes = [process.stdin] if self._reader.is_alive() else [process.stdin, process.stdout]
        for pipe in pipes:  # a pipe that is being read cannot be closed
            if pipe is not None:
                with suppress(OSError):  # nobody reads unwritten data
                    pipe.close()

    def _kill(self) -> None:
        """Kill the program's process group, because a script may have started another program."""
        if os.name == "posix":
            with suppress(ProcessLookupError, PermissionError):  # macOS raises for a group that has ended
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _ready(self) -> None:
        self._send("isready")
        deadline = time.monotonic() + self.patience
        while self._read_line(deadline).strip() != "readyok":
            pass

    def _send(self, text: str) -> None:
        try:
            assert self._process.stdin is not None  # opened as a pipe
            self._process.stdin.write(text + "\n")
        except (OSError, ValueError):
            raise self._exit_error() from None

    def _read_line(self, deadline: float, searching: bool = False) -> str:
        """Return the next line that is not an info line. UserError after the deadline, which is extended for a
        `searching` engine while it reports progress.
        """
        while True:
            try:
                line = self._output.get(timeout=max(0.001, deadline - time.monotonic()))
                break
            except queue.Empty:
                deadline = self._last_output + self.patience
                if not searching or deadline <= time.monotonic():
                    self._kill()
                    reason = f"did not respond for {self.patience:g} s and was stopped"
                    raise UserError(f"{self.program} {reason}; check that it speaks UCI") from None
        if line is None:
            raise self._exit_error()
        return line

    def _exit_error(self) -> UserError:
        try:
            detail = f" with code {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:  # it closed its output but still runs
            detail = ""
        return UserError(f"{self.program} exited unexpectedly{detail}; run it by hand to see why")

    def _read_output(self) -> None:
        assert self._process.stdout is not None  # opened as a pipe
        try:
            for line in self._process.stdout:
                self._last_output = time.monotonic()
                if not line.startswith("info "):
                    self._output.put(line)
                elif " pv " in line and " score " in line:  # only the last of about fifty per position count
                    match = _MULTIPV.search(line)
                    self._info_lines[int(match[1]) if match else 1] = line
        except ValueError:  # closed while it was read
            pass
        self._output.put(None)


HEADER = ("position", "bestmove", "scores", "wdl", "game")
Position = tuple[chess.Board, str]  # with the name of its game
_QUEUE_PER_WORKER = 64  # queued positions per worker


@dataclass(frozen=True)
class LabelConfig:
    """`nodes` are the search nodes per position, shared by the `lines` best moves. `vary` is the share of positions
    changed by one to four random moves, so that models also learn from mistakes. `limit` is the maximum number of
    positions and `minutes` the maximum time.
    """

    engine: str = "stockfish"
    nodes: int = 1000
    lines: int = 8
    workers: int = 1
    vary: float = 0.0
    seed: int = 0
    limit: int | None = None
    minutes: float | None = None


class LabelCounts(NamedTuple):
    """The number of positions in the file, how many of them are new, and the seconds these took."""

    positions: int
    new: int
    seconds: float


def label(
    paths: Sequence[Path],
    out: Path,
    config: LabelConfig,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> LabelCounts:
    """Write the labels of all positions in `paths` to the CSV file `out`, in order, without final positions.

    With `resume` an existing file is continued after dropping an incomplete last line. Lines are only written
    completely. Raises UserError for an existing file without `resume`, an engine that is missing, hangs or exits, and
    invalid positions.
    """
    files = chess_files(paths)
    done, last = _resume_labels(out, resume)
    started, new = time.monotonic(), 0
    boards = _varied((position for file in files for position in unlabelled_positions(file)), config)
    if done:
        position = next(islice(boards, done - 1, None), None)
        if position is None or position[0].fen() != last:
            raise UserError(
                f"{out} has labels for other positions; pass the same files, --vary and --seed as in the first run, or "
                "choose another name"
            )
    remaining = islice(boards, None if config.limit is None else max(0, config.limit - done))
    deadline = None if config.minutes is None else started + 60 * config.minutes
    with _Workers(config) as workers, open(out, "a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(HEADER)
        for (board, game), answer in workers.answers(remaining, deadline):
            scores = " ".join(f"{line.move}:{line.score}" for line in answer.lines)
            wdl = answer.lines[0].wdl if answer.lines else None
            best = answer.lines[0].move if answer.lines else answer.best or ""
            rows.writerow((board.fen(), best, scores, "" if wdl is None else " ".join(map(str, wdl)), game))
            new += 1
            if progress is not None and new % 100 == 0:
                progress(new, time.monotonic() - started)
    if done + new == 0:
        raise UserError(f"{files[0]}: no position has a legal move; use other files")
    return LabelCounts(done + new, new, time.monotonic() - started)


def _resume_labels(out: Path, resume: bool) -> tuple[int, str]:
    """Return the number of labels in the file and the last position; an incomplete last line is removed."""
    check_output_path(out)
    if not out.exists() or out.stat().st_size == 0:
        return 0, ""
    if not resume:
        raise UserError(f"{out} already exists; add --resume to continue it, or choose another name")
    with open(out, "rb+") as file:
        complete_bytes, number, last = 0, -1, b""
        for line in file:
            if not line.endswith(b"\n"):
                break
            number, last = number + 1, line
            if number == 0 and line.decode(errors="replace").strip() != ",".join(HEADER):
                raise UserError(
                    f"{out} does not contain labels written by headway ({','.join(HEADER)}); choose another name"
                )
            complete_bytes += len(line)
        file.truncate(complete_bytes)
        return max(0, number), last.decode(errors="replace").partition(",")[0] if number > 0 else ""


def _varied(boards: Iterator[Position], config: LabelConfig) -> Iterator[Position]:
    """Yield positions with a legal move; some after random moves, which depend only on their index."""
    for number, (board, game) in enumerate(boards):
        rng = random.Random(config.seed * 1_000_003 + number)
        if rng.random() < config.vary:
            for _ in range(rng.randint(1, 4)):
                moves = list(board.legal_moves)
                if not moves:
                    break
                board.push(rng.choice(moves))
        if any(board.generate_legal_moves()):
            yield board, game


class _Workers:
    """Engines, one per thread, that label positions in order."""

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.engines: list[UciEngine] = []
        self._local = threading.local()
        self._lock = threading.Lock()

    def __enter__(self) -> _Workers:
        self._pool = ThreadPoolExecutor(self.config.workers)
        try:
            self._pool.submit(self._engine).result()  # an unusable program fails before any position is read
        except BaseException:
            self._pool.shutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for engine in self.engines:
            engine.close()

    def answers(self, boards: Iterator[Position], deadline: float | None) -> Iterator[tuple[Position, EngineAnswer]]:
        """Yield each position with its answer; do not submit new ones after `deadline`."""
        waiting: deque[tuple[Position, Future[EngineAnswer]]] = deque()
        for position in boards:
            if deadline is not None and time.monotonic() > deadline:
                break
            waiting.append((position, self._pool.submit(self._analyse, position[0].fen())))
            if len(waiting) >= _QUEUE_PER_WORKER * self.config.workers:
                position, answer = waiting.popleft()
                yield position, answer.result()
        while waiting:
            position, answer = waiting.popleft()
            yield position, answer.result()

    def _analyse(self, fen: str) -> EngineAnswer:
        engine = getattr(self._local, "engine", None) or self._engine()
        return engine.analyse(fen, (), f"nodes {self.config.nodes}", self.config.nodes / MIN_NODES_PER_SECOND)

    def _engine(self) -> UciEngine:
        optional = {"Threads": 1, "Hash": 16, "UCI_ShowWDL": "true"}
        engine = self._local.engine = UciEngine(self.config.engine, {"MultiPV": self.config.lines}, optional)
        with self._lock:
            self.engines.append(engine)
        return engine
