"""`headway chat`: several turns in the terminal, streamed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from headway.app.cli.generate import add_sampling, asked, settings
from headway.app.cli.options import load, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway chat runs/my-answers --system "Answer in one line." --temperature 0.7
(Ctrl-C stops an answer, /reset forgets the conversation, Ctrl-D leaves)
"""
# A plain language model has no turns of its own: it continues a dialogue written as text.
USER, ASSISTANT = "User: ", "Assistant:"
KEYS = "Ctrl-C stops an answer, /reset forgets the conversation, Ctrl-D leaves."

Turn = dict[str, str]  # what the user and the assistant say
Message = dict[str, str]  # a role, and what it says
Reply = Callable[[list[Turn]], Iterator[str]]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="a run directory or a published model")
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="what the assistant is told before the conversation"
    )
    add_sampling(parser, tokens=200)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        model = load(args)
        here = args.server is None
        answers = by_server if not here else as_text if model.usage.template is None else by_template
        turns = converse(answers(model, args, terminal), terminal)
    terminal.result({"turns": turns})


def by_template(model, args: argparse.Namespace, terminal: Terminal) -> Reply:
    """Answers by the model's chat template."""
    sampling, limits = settings(args)
    system = instructions(args)
    talk = model.talk
    talk.ask([*system, {"role": "user", "content": "?"}], limits)  # a template may refuse a system's message
    terminal.note(KEYS)

    def reply(turns: list[Turn]) -> Iterator[str]:
        ids, dropped = talk.ask([*system, *messages(turns)], limits)
        note_dropped(dropped, model, terminal)
        return talk.answer(ids, sampling, limits)

    return reply


def by_server(model, args: argparse.Namespace, terminal: Terminal) -> Reply:
    """Answers of a server, by the chat template of its model."""
    system = instructions(args)
    terminal.note(KEYS)
    return lambda turns: model.chat_stream([*system, *messages(turns)], **asked(args))


def instructions(args: argparse.Namespace) -> list[Message]:
    """What the assistant is told before the conversation, as messages."""
    return [{"role": "system", "content": args.system}] if args.system else []


def messages(turns: list[Turn]) -> list[Message]:
    """Turns of which the last is not answered yet, as messages."""
    told: list[Message] = [{"role": role, "content": turn[role]} for turn in turns for role in ("user", "assistant")]
    return told[:-1]


def as_text(model, args: argparse.Namespace, terminal: Terminal) -> Reply:
    """Answers of a model that has no turns: it continues a dialogue."""
    args.stop = [*args.stop, f"\n{USER.strip()}"]
    sampling, limits = settings(args)
    terminal.note(
        "This model was not trained on conversations: it continues the text of a dialogue"
        f" ({USER.strip()} ... {ASSISTANT} ...).\n{KEYS}"
    )

    def reply(turns: list[Turn]) -> Iterator[str]:
        prompt, dropped = fit(model, args.system, turns, args.max_new_tokens)
        note_dropped(dropped, model, terminal)
        return model.continuations(prompt, sampling, limits)

    return reply


def note_dropped(turns: int, model, terminal: Terminal) -> None:
    from headway.domains.chat.predictors import left_out

    if turns:
        terminal.note(f"({left_out(turns, model.context)})")


def converse(reply: Reply, terminal: Terminal) -> list[Turn]:
    """Questions and answers until the end of input. UserError where a file or a pipe has none."""
    turns: list[Turn] = []
    heard = sys.stdin.isatty()
    while (question := ask(terminal)) is not None:
        heard = heard or bool(question.strip())
        if question.strip() == "/reset":
            turns = []
            terminal.note("(forgotten)")
        elif question.strip():
            turns.append({"user": question, "assistant": ""})
            try:
                turns[-1]["assistant"] = answer(reply(turns), terminal)
            except UserError as error:  # a question that is too long, say: the conversation goes on without it
                turns.pop()
                terminal.note(f"({error})")
    if not heard:
        raise UserError("there is no line to answer; give some on standard input, as in: echo TEXT | headway chat RUN")
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


def fit(model, system: str, turns: list[Turn], room: int) -> tuple[str, int]:
    """The dialogue as text without the first turns that leave no room for an answer, and how many those are."""
    for dropped in range(len(turns)):
        prompt = dialogue(system, turns[dropped:])
        if model.context is None or len(model.prompt_ids(prompt)) + room <= model.context:
            return prompt, dropped
    return dialogue(system, turns[-1:]), len(turns) - 1


def dialogue(system: str, turns: list[Turn]) -> str:
    """The conversation as the text that the model continues."""
    lines = [system] if system else []
    for turn in turns:
        lines += [USER + turn["user"], f"{ASSISTANT} {turn['assistant']}".rstrip()]
    return "\n".join(lines)
