"""`headway chess match`: play Stockfish, another run or random moves, and estimate the Elo difference."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.chess_puzzles import add_search
from headway.app.cli.options import add_weights, load, number, torch_options, whole
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.domains.chess.match import ModelSide, Opponent

EXAMPLE = """
headway chess match runs/chess --opponent stockfish --elo 1320 --games 200
headway chess match runs/chess --nodes 1 10 100 --elo 1320 1600 --games 40 --pgn games.pgn    # a ladder
headway chess match runs/chess --opponent random --games 100 --search policy
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN", help="run of the recipe chess")
    add(
        "--opponent",
        default="stockfish",
        metavar="NAME|RUN",
        help="UCI engine, run, or random (default: stockfish)",
    )
    add(
        "--nodes",
        type=whole(1),
        nargs="+",
        default=[],
        metavar="N",
        help="search nodes per move of the engine; several values play one match each",
    )
    add(
        "--elo",
        type=whole(1),
        nargs="+",
        default=[],
        metavar="E",
        help="strength of the engine (UCI_Elo); several values play one match each",
    )
    add("--games", type=whole(1), default=20, metavar="N", help="games per match (default: 20)")
    add("--movetime", type=number(0, above=True), default=0.1, metavar="S", help="seconds per move (default: 0.1)")
    add("--our-nodes", type=whole(1), metavar="N", help="search nodes per move of our model, instead of a time limit")
    add(
        "--openings",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="files of openings, .tsv, .pgn or .epd (default: Lichess's openings)",
    )
    add("--pgn", type=Path, metavar="FILE", help="append each finished game to this file")
    add_search(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.match import MatchTally, ModelSide, as_pgn, play_match, rungs
    from headway.domains.chess.pgn import openings

    starts = openings(args.openings, -(-args.games // 2), args.seed or 0)
    matches: list[dict[str, Any]] = []
    with torch_options(args):
        player = load(args).player(args.search)
        seconds = None if args.our_nodes else args.movetime
        ours = ModelSide(player, args.model.name, seconds, args.our_nodes)

        def done(tally: MatchTally, played: Any) -> None:
            terminal.note(
                f"game {tally.games}: {played.result} ({played.end}); +{tally.wins} ={tally.draws} -{tally.losses}"
            )
            if args.pgn is not None:
                with open(args.pgn, "a", encoding="utf-8") as file:
                    file.write(as_pgn(played, tally.games))

        try:
            for nodes, elo in rungs(args.nodes, args.elo):
                with closing(_opponent(args, nodes, elo)) as theirs:
                    terminal.note(f"{args.model.name} ({player.search}) against {theirs.name}")
                    tally = MatchTally()
                    try:
                        play_match(ours, theirs, starts, args.games, tally, done)
                    finally:
                        if tally.games:
                            matches.append({"opponent": theirs.name, **tally.scores()})
        finally:  # report the finished games even after an error
            if matches:
                _tell(terminal, ours, matches)


def _tell(terminal: Terminal, ours: ModelSide, matches: list[dict[str, Any]]) -> None:
    rate = ours.looked / max(1e-9, ours.spent)
    rows = []
    for match in matches:
        low, high = ("" if edge is None else f"{edge:+.0f}" for edge in match["elo_interval"])
        row = {"opponent": match["opponent"], "+": match["wins"], "=": match["draws"], "-": match["losses"]}
        row["points"] = f"{100 * match['score']:.1f} %"
        row["Elo difference"] = "" if match["elo"] is None else f"{match['elo']:+.0f}"
        rows.append({**row, "95 % interval": f"{low} to {high}"})
    terminal.table(rows)
    terminal.say(f"{rate:,.0f} positions per second")
    terminal.result({"search": ours.player.search, "matches": matches, "positions_per_second": rate})


def _opponent(args: argparse.Namespace, nodes: int | None, elo: int | None) -> Opponent:
    import headway as hw
    from headway.domains.chess.match import EngineSide, ModelSide, RandomSide
    from headway.errors import UserError

    limited = nodes is not None or elo is not None
    if args.opponent == "random" or Path(args.opponent, "recipe.json").is_file():
        if limited:
            raise UserError(
                f"--nodes and --elo need a UCI engine, and opponent {args.opponent} is not one; remove them"
            )
        if args.opponent == "random":
            return RandomSide(args.seed or 0)
        player = hw.load(args.opponent, args.device).player()
        return ModelSide(player, Path(args.opponent).name, args.movetime, None)
    return EngineSide(args.opponent, nodes, elo, args.movetime)
