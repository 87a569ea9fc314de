"""`headway chat`: several turns in the terminal, streamed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headway.cli.generate import add_sampling, settings
from headway.cli.options import torch_options
from headway.cli.terminal import Terminal

EXAMPLE = """
headway chat runs/my-text --temperature 0.7
(Ctrl-C stops an answer, /reset forgets the conversation, Ctrl-D leaves)
"""
# A plain language model has no turns of its own: it continues a dialogue written as text.
USER, ASSISTANT = "User: ", "Assistant:"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="a run directory or a published model")
    parser.add_argument("--system", default="", metavar="TEXT", help="text before the conversation")
    add_sampling(parser, tokens=200)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    with torch_options(args):
        model = hw.load(args.model, device=args.device)
        terminal.note(
            "This model was not trained on conversations: it continues the text of a dialogue"
            f" ({USER.strip()} ... {ASSISTANT} ...).\n"
            "Ctrl-C stops an answer, /reset forgets the conversation, Ctrl-D leaves."
        )
        turns = converse(model, args, terminal)
    terminal.result({"turns": turns})


def converse(model, args: argparse.Namespace, terminal: Terminal) -> list[dict[str, str]]:
    """Questions and answers until the end of input."""
    turns: list[dict[str, str]] = []
    args.stop = [*args.stop, f"\n{USER.strip()}"]
    sampling, limits = settings(args)
    while (question := ask(terminal)) is not None:
        if question.strip() == "/reset":
            turns = []
            terminal.note("(forgotten)")
        elif question.strip():
            turns.append({"user": question, "assistant": ""})
            prompt, dropped = fit(model, args.system, turns, args.max_new_tokens)
            if dropped:
                terminal.note(f"(the first {dropped} turns no longer fit {model.context} tokens)")
            turns[-1]["assistant"] = answer(model.continuations(prompt, sampling, limits), terminal)
    return turns


def ask(terminal: Terminal) -> str | None:
    """The next line of the user; None at the end of input. Ctrl-C starts a new line."""
    while True:
        try:
            if sys.stdin.isatty():
                return input("> ")
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except EOFError:
            terminal.note()
            return None
        except KeyboardInterrupt:
            terminal.note("\n(Ctrl-D leaves)")


def answer(pieces, terminal: Terminal) -> str:
    """Print the pieces as they come and return them as one text; Ctrl-C ends it early."""
    text = ""
    try:
        for piece in pieces:
            if not text:
                piece = piece.lstrip()
            text += piece
            terminal.say(piece, end="")
    except KeyboardInterrupt:
        terminal.note(" (stopped)")
    terminal.say()
    return text.strip()


def fit(model, system: str, turns: list[dict[str, str]], room: int) -> tuple[str, int]:
    """The dialogue as text without the first turns that leave no room for an answer, and how many those are."""
    for dropped in range(len(turns)):
        prompt = dialogue(system, turns[dropped:])
        if model.context is None or len(model.prompt_ids(prompt)) + room <= model.context:
            return prompt, dropped
    return dialogue(system, turns[-1:]), len(turns) - 1


def dialogue(system: str, turns: list[dict[str, str]]) -> str:
    """The conversation as the text that the model continues."""
    lines = [system] if system else []
    for turn in turns:
        lines += [USER + turn["user"], f"{ASSISTANT} {turn['assistant']}".rstrip()]
    return "\n".join(lines)
