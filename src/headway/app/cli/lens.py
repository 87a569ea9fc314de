"""`headway lens`: show what each layer of a text model would predict."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from headway.app.cli.options import add_server, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.predict.logit_lens import NextLogits

EXAMPLE = """
headway lens runs/shakespeare --text "To be, or not to be"
headway lens bert-base-uncased --text "Paris is the [MASK] of France." --neighbours 5
headway lens runs/en-de --text "A man sleeps." --target "Ein Mann schläft." --json
"""
_MAX_LAYERS = 6  # columns of the printed table


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add("--text", required=True, help="input text")
    add_verb(parser, "lens")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        lens = load(args).lens(args.text, **verb_options(args, "lens"))
    rows = [dict(row) for row in lens.card().rows]
    layers = list(rows[0])[1:]
    shown = layers[:: -(-len(layers) // _MAX_LAYERS) * -1][::-1]  # evenly, with the last one
    terminal.print("predicted at each token:" if lens.masked else "predicted after each token:")
    terminal.print_table(
        [{"token": row["token"].strip() or repr(row["token"]), **{k: row[k] for k in shown}} for row in rows]
    )
    if len(shown) < len(layers):
        terminal.print(f"{len(shown)} of {len(layers)} layers; all with --json")
    for token, nearest in zip(lens.tokens, lens.neighbours):
        terminal.print(
            f"near {token.text.strip()}: {'  '.join(f'{near.text.strip()} {near.score:.2f}' for near in nearest)}"
        )
    for number, layer in enumerate(lens.layers, 1):
        if layer.changes:
            changes = "  ".join(
                f"{token.text.strip()} {change:.2f}" for token, change in zip(lens.tokens, layer.changes)
            )
            terminal.print(f"change of state, layer {number}: {changes}")
    terminal.print_result(
        {
            "tokens": [token._asdict() for token in lens.tokens],
            "layers": [
                {
                    "predictions": [[token._asdict() for token in best] for best in layer.predictions],
                    "changes": layer.changes,
                }
                for layer in lens.layers
            ],
            "next": _distribution(lens.next),
            "each": [_distribution(one) for one in lens.each],
            "neighbours": [[token._asdict() for token in nearest] for nearest in lens.neighbours],
            "chance": lens.chance,
            "masked": lens.masked,
        }
    )


def _distribution(next_token: NextLogits) -> dict[str, Any]:
    return {**next_token._asdict(), "candidates": [token._asdict() for token in next_token.candidates]}
