"""A run of chess: positions a second beside plain torch, puzzles, and games against random moves and Stockfish.

    python benchmarks/chess_play.py RUN                # an hour and a half of one core, most of it games
    python benchmarks/chess_play.py RUN speed elo      # some of the parts: each is kept in RUN/measured
    python benchmarks/chess_play.py RUN --quick        # a few games of each, to see that it works

Speeds are those of one process with the threads that torch takes. "Plain torch" is the model's own forward on inputs
that are ready; what we look at includes the encoding of the boards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, write

ROWS = (1, 8, 32)
SECONDS = 3.0


def rate(work: Any, rows: int) -> float:
    """Rows a second, after a warm-up."""
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        work()
        done += rows
    return done / (time.perf_counter() - started)


def speed(run: str) -> None:
    import torch

    import headway as hw
    from headway.domains.chess.boards import chess
    from headway.domains.chess.config import make_evaluator
    from headway.domains.chess.evaluator import BoardEvaluator, outputs, position_input
    from headway.domains.chess.limits import SearchLimits
    from headway.domains.chess.puzzles import puzzles

    found: dict[str, Any] = {}
    file = data_folder() / "chess/lichess_puzzles_8k.csv"
    boards = [puzzle.board for _, puzzle in zip(range(max(ROWS)), puzzles(file))]
    for weights in ("fp32", "int8"):
        model = hw.load(run, weights=weights)
        judge = make_evaluator(model.module, model.recipe, run)
        assert isinstance(judge, BoardEvaluator)
        places = [position_input(board, judge.history) for board in boards]
        for rows in ROWS:
            some = places[:rows]
            found[f"{weights}, {rows} at once"] = rate(partial(judge.evaluate, some), rows)
            inputs = judge.inputs(some)
            if weights == "fp32":
                with torch.inference_mode():
                    found[f"plain torch, {rows} at once"] = rate(partial(outputs, judge.model, inputs), rows)
        player = model.player("puct")
        started = time.perf_counter()
        nodes = player.think(chess.Board(), SearchLimits(nodes=1000)).nodes
        found[f"{weights}, nodes of a search"] = nodes / (time.perf_counter() - started)
    report(found)


def command(*words: str) -> dict[str, Any]:
    """What `headway WORDS --json` prints."""
    environment = {**os.environ, "HEADWAY_DATA": str(data_folder())}
    code = "import sys; from headway.app.cli.main import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *words, "--json"]
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def parts(run: str, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""
    puzzles = ("chess", "puzzles", run, str(data_folder() / "chess/lichess_puzzles_8k.csv"))
    games, more, some = ("2", "2", "50") if quick else ("200", "40", "2000")
    match = ("chess", "match", run, "--weights", "int8", "--movetime", "0.1", "--games")
    rungs = [("nodes", n) for n in ("1", "10", "100", "1000")] + [("elo", n) for n in ("1500", "1800")]
    return {
        "speed": partial(child, "chess_play.py", "--part", run),
        "policy": partial(command, *puzzles, "--search", "policy", *(("--limit", some) if quick else ())),
        "value": partial(command, *puzzles, "--search", "value", "--limit", some),
        "puct": partial(command, *puzzles, "--nodes", "200", "--limit", some, "--weights", "int8"),
        "random": partial(command, *match, games, "--opponent", "random"),
        "elo": partial(command, *match, games, "--elo", "1320"),
        **{f"{kind}-{much}": partial(command, *match, more, f"--{kind}", much) for kind, much in rungs},
    }


def main() -> int:
    if sys.argv[1] == "--part":
        speed(sys.argv[2])
        return 0
    run, quick = sys.argv[1], "--quick" in sys.argv
    wanted = parts(run, quick)
    chosen = [name for name in sys.argv[2:] if name in wanted] or list(wanted)
    kept = Path(run) / ("measured-quick" if quick else "measured")
    kept.mkdir(exist_ok=True)
    files = {name: kept / f"{name}.json" for name in wanted}
    for name in chosen:
        if not files[name].exists():
            files[name].write_text(json.dumps(wanted[name]()))
    summary = json.loads((Path(run) / "run.json").read_text())
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    tree = {how: found.pop(how) for how in ("policy", "value", "puct") if how in found}
    told = {name: summary.get(name) for name in ("parameters", "steps", "tokens", "seconds", "elapsed", "scores")}
    write("chess", {"run": told, "puzzles": tree, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
