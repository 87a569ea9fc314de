"""`headway chess match`: play Stockfish, another run or random moves, and estimate the Elo difference."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.chess_puzzles import add_search
from headway.app.cli.options import add_weights, integer, load, number, torch_options
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.domains.chess.match import Opponent

EXAMPLE = """
headway chess match runs/chess --opponent stockfish --elo 1320 --games 200
headway chess match runs/chess --nodes 1 10 100 --elo 1320 1600 --games 40 --pgn games.pgn    # a ladder
headway chess match runs/chess --opponent random --games 100 --search policy
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN", help="run of the chess recipe")
    add("--opponent", default="stockfish", metavar="NAME|RUN", help="UCI engine, run, or random (default: stockfish)")
    add(
        "--nodes",
        type=integer(1),
        nargs="+",
        default=[],
        metavar="N",
        help="search nodes per move for the engine; with several values, plays one match per value",
    )
    add(
        "--elo",
        type=integer(1),
        nargs="+",
        default=[],
        metavar="E",
        help="engine strength (UCI_Elo); with several values, plays one match per value",
    )
    add("--games", type=integer(1), default=20, metavar="N", help="games per match (default: 20)")
    add("--movetime", type=number(0, above=True), default=0.1, metavar="S", help="seconds per move (default: 0.1)")
    add("--our-nodes", type=integer(1), metavar="N", help="search nodes per move for our model (no time limit)")
    add(
        "--openings",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="opening files: .tsv, .pgn or .epd (default: Lichess's openings)",
    )
    add("--pgn", type=Path, metavar="FILE", help="append each finished game to this file")
    add_search(parser)
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.domains.chess.match import MatchTally, ModelOpponent, format_pgn, ladder_steps, play_match
    from headway.domains.chess.position_files import openings

    starts = openings(args.openings, -(-args.games // 2), args.seed or 0)
    matches: list[dict[str, Any]] = []
    with torch_options(args):
        player = load(args).player(args.search)
        seconds = None if args.our_nodes else args.movetime
        player_side = ModelOpponent(player, args.model.name, seconds, args.our_nodes)

        def done(tally: MatchTally, played: Any) -> None:
            terminal.note(
                f"game {tally.games}: {played.result} ({played.end}); +{tally.wins} ={tally.draws} -{tally.losses}"
            )
            if args.pgn is not None:
                with open(args.pgn, "a", encoding="utf-8") as file:
                    file.write(format_pgn(played, tally.games))

        try:
            for nodes, elo in ladder_steps(args.nodes, args.elo):
                with closing(_opponent(args, nodes, elo)) as opponent:
                    terminal.note(f"{args.model.name} ({player.search}) against {opponent.name}")
                    tally = MatchTally()
                    try:
                        play_match(player_side, opponent, starts, args.games, tally, done)
                    finally:
                        if tally.games:
                            matches.append({"opponent": opponent.name, **tally.scores()})
        finally:  # report the finished games even after an error
            if matches:
                rate = player_side.searched_nodes / max(1e-9, player_side.seconds_spent)
                rows = []
                for match in matches:
                    low, high = ("" if bound is None else f"{bound:+.0f}" for bound in match["elo_interval"])
                    row = {"opponent": match["opponent"], "+": match["wins"], "=": match["draws"], "-": match["losses"]}
                    row["points"] = f"{100 * match['score']:.1f} %"
                    row["Elo difference"] = "" if match["elo"] is None else f"{match['elo']:+.0f}"
                    rows.append({**row, "95 % interval": f"{low} to {high}"})
                terminal.print_table(rows)
                terminal.print(f"{rate:,.0f} positions per second")
                terminal.print_result({"search": player.search, "matches": matches, "positions_per_second": rate})


def _opponent(args: argparse.Namespace, nodes: int | None, elo: int | None) -> Opponent:
    import headway as hw
    from headway.domains.chess.match import EngineOpponent, ModelOpponent, RandomOpponent
    from headway.errors import UserError

    limited = nodes is not None or elo is not None
    if args.opponent == "random" or Path(args.opponent, "recipe.json").is_file():
        if limited:
            raise UserError(
                f"--nodes and --elo need a UCI engine, but opponent {args.opponent} is not one; remove them"
            )
        if args.opponent == "random":
            return RandomOpponent(args.seed or 0)
        player = hw.load(args.opponent, args.device).player()
        return ModelOpponent(player, Path(args.opponent).name, args.movetime, None)
    return EngineOpponent(args.opponent, nodes, elo, args.movetime)
