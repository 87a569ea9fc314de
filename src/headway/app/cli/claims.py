"""`headway claims`: run the experiments behind the history of the transformer."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway claims --list
headway claims fast-weights vanishing-gradients
headway claims --full --out runs/claims
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="name or number of a claim (default: all)")
    parser.add_argument(
        "--list", action="store_true", help="list the claims with their run time in minutes on one core"
    )
    parser.add_argument("--full", action="store_true", help="run the full version of claims that have one")
    help_ = "results folder; existing trials are reused (default: runs/claims)"
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), metavar="DIR", help=help_)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.claims.experiments import select_claims
    from headway.claims.runner import budget, claim_rows, present_results, run_claim, summary
    from headway.data.array_store import check_output_path

    if args.device not in ("auto", "cpu"):
        raise UserError(f"claims run on the CPU only, not on {args.device!r}; remove --device")
    claims = select_claims(args.names)
    if args.list:
        rows = claim_rows(claims)
        terminal.print_table([{key: row[key] for key in ("number", "name", "minutes", "title")} for row in rows])
        terminal.print_result({"claims": rows})
        return
    check_output_path(args.out / "trials")
    if len(claims) > 1:
        terminal.note(f"{len(claims)} claims, about {budget(claims, args.full)} on one core")
    results = []
    with torch_options(args):
        for claim in claims:
            try:
                evidence = run_claim(claim, args.out, terminal.note, full=args.full, seed=args.seed or 0)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"stopped; run the same command again to continue from {args.out}") from None
            results.append(evidence)
            terminal.print(f"{claim.number:>2}  {claim.name}: {evidence.finding.verdict}")
            terminal.print(f"    control: {evidence.finding.control_verdict}")
    page = present_results(args.out, terminal.note)
    if page is not None:
        terminal.print(f"page: {page}")
    terminal.print_result({"claims": [summary(evidence, args.out) for evidence in results], "page": page})
