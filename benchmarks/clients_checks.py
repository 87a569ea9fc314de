"""What the checks of clients share: what is asked, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROMPT, MESSAGES = "Once upon a time", [{"role": "user", "content": "Once upon a time"}]
FIXED = {"temperature": 0.8, "seed": 7, "max_tokens": 24}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
SOUND = "speech/pocketsphinx/cards-001.wav"
SAID = "10 of clubs."


class Checks:
    """What each client got."""

    def __init__(self, found: dict[str, str]) -> None:
        self.found = found

    def check(self, name: str, work: Callable[[], Any]) -> None:
        try:
            work()
            self.found[name] = "ok"
        except Exception as error:  # of a client: it is a result
            self.found[name] = f"{type(error).__name__}: {error}"[:400]
        print(name, self.found[name], flush=True)


def joined(parts: Iterator[Any], chat: bool) -> str:
    choices = [choice for part in parts for choice in part.choices]
    return "".join((choice.delta.content if chat else choice.text) or "" for choice in choices)


class Running(NamedTuple):
    """The server that clients ask. `model` is the folder of the model stories, and `beside` has the others."""

    url: str
    key: str
    model: Path
    beside: Path
