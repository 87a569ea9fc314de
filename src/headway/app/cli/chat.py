"""`headway chat`: a streamed conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.generate import add_sampling, sampling_settings
from headway.app.cli.options import add_verb, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.generate import Event

EXAMPLE = """
headway chat runs/my-answers --system "Answer in one line." --temperature 0.7
(Ctrl-C stops an answer, /reset clears the conversation, Ctrl-D quits)
"""
# A plain language model has no chat template: it continues a dialogue written as text.
USER, ASSISTANT = "User: ", "Assistant:"
KEYS_HELP = "Ctrl-C stops an answer, /reset clears the conversation, Ctrl-D quits."

Turn = dict[str, str]  # the messages of the user and the assistant
Message = dict[str, str]  # a role and its content
Reply = Callable[[list[Turn]], Iterator[str]]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message at the start of the conversation")
    add_sampling(parser, tokens=200)
    add_verb(parser, "chat", types={"thinking_token_budget": integer(-1)})


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        model = load(args)
        if args.server is None and model.usage.template is None:
            reply = dialogue_reply(model, args, terminal)
        else:
            reply = template_reply(model, args, terminal)
        turns: list[Turn] = []
        has_input = sys.stdin.isatty()
        while (question := read_line(terminal)) is not None:
            has_input = has_input or bool(question.strip())
            if question.strip() == "/reset":
                turns = []
                terminal.note("(conversation cleared)")
            elif question.strip():
                turns.append({"user": question, "assistant": ""})
                try:
                    turns[-1]["assistant"] = print_reply(reply(turns), terminal)
                except UserError as error:  # such as a question that is too long: continue without it
                    turns.pop()
                    terminal.note(f"({error})")
        if not has_input:
            raise UserError(
                "no questions on standard input; pass one per line, for example: echo TEXT | headway chat RUN"
            )
    terminal.print_result({"turns": turns})


def template_reply(model, args: argparse.Namespace, terminal: Terminal) -> Reply:
    """A reply function that uses the model's chat template, here or on a server."""
    from headway.generate.thinking import check_budget

    system_message: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    sampling, limits = (None, None) if args.server is not None else sampling_settings(args)
    if args.server is None:  # a template may reject a system message
        check_budget(args.thinking_token_budget, model.talk.thinking)
        model.talk.encode_prompt([*system_message, {"role": "user", "content": "?"}], limits)
    terminal.note(KEYS_HELP)

    def reply(turns: list[Turn]) -> Iterator[str]:
        messages = [{"role": role, "content": turn[role]} for turn in turns for role in ("user", "assistant")]
        messages = [*system_message, *messages[:-1]]  # the last turn has no answer yet
        if args.server is not None:
            options = verb_options(args, "stream") | verb_options(args, "chat_stream")
            return model.chat_stream(messages, **options)
        prompt = model.talk.encode_prompt(messages, limits, args.thinking_token_budget)
        report_dropped(prompt.dropped, model, terminal)
        return answer(model.talk.stream_answer(prompt, sampling, limits, args.thinking_token_budget), terminal)

    return reply


def answer(events: Iterator[Event], terminal: Terminal) -> Iterator[str]:
    """The text of an answer; the thinking before it goes to stderr."""
    thinking = False
    for event in events:
        if event.reasoning:
            thinking = True
            terminal.note(event.reasoning, end="")
        if event.text:
            if thinking:
                terminal.note("\n")
            thinking = False
            yield event.text


def dialogue_reply(model, args: argparse.Namespace, terminal: Terminal) -> Reply:
    """A reply function for a model without a chat template, which continues a dialogue."""
    from headway.generate.thinking import check_budget

    check_budget(args.thinking_token_budget, None)
    args.stop = [*args.stop, f"\n{USER.strip()}"]
    sampling, limits = sampling_settings(args)
    terminal.note(
        "This model has no chat template, so it continues a plain-text dialogue"
        f" ({USER.strip()} ... {ASSISTANT} ...).\n{KEYS_HELP}"
    )

    def reply(turns: list[Turn]) -> Iterator[str]:
        prompt, dropped = fit_context(model, args.system, turns, args.max_new_tokens)
        report_dropped(dropped, model, terminal)
        return model.continuations(prompt, sampling, limits)

    return reply


def report_dropped(turns: int, model, terminal: Terminal) -> None:
    from headway.domains.chat.predictors import dropped_turns_message

    if turns:
        terminal.note(f"({dropped_turns_message(turns, model.context)})")


def read_line(terminal: Terminal) -> str | None:
    """The user's next line; None at the end of input. Ctrl-C starts a new line."""
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
            terminal.note("\n(Ctrl-D quits)")


def print_reply(chunks, terminal: Terminal) -> str:
    """Print the chunks as they arrive and return them as one string; Ctrl-C stops early."""
    text = ""
    try:
        for chunk in chunks:
            if not text:
                chunk = chunk.lstrip()
            text += chunk
            terminal.print(chunk, end="")
    except KeyboardInterrupt:
        terminal.note(" (stopped)")
    terminal.print()
    return text.strip()


def fit_context(model, system: str, turns: list[Turn], max_new_tokens: int) -> tuple[str, int]:
    """The dialogue as text, without the oldest turns where the context is too short, and the number dropped."""
    for dropped in range(len(turns)):
        prompt = dialogue(system, turns[dropped:])
        if model.context is None or len(model.prompt_ids(prompt)) + max_new_tokens <= model.context:
            return prompt, dropped
    return dialogue(system, turns[-1:]), len(turns) - 1


def dialogue(system: str, turns: list[Turn]) -> str:
    """The conversation as a text for the model to continue."""
    lines = [system] if system else []
    for turn in turns:
        lines += [USER + turn["user"], f"{ASSISTANT} {turn['assistant']}".rstrip()]
    return "\n".join(lines)
