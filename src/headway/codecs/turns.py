"""Where the assistant speaks in what a chat template writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headway.codecs.guard import Spellings
from headway.errors import UserError

ASSISTANT = "assistant"
Message = Mapping[str, Any]
Span = tuple[int, int]
Render = Callable[[Sequence[Message], bool], str]
OPEN, CLOSE = "\ufdd2", "\ufdd3"  # noncharacters, around what a {% generation %} block writes
_BORDERS = re.compile(f"[{OPEN}{CLOSE}]")
_HERE = "\ufdd5"  # a noncharacter in the place of what is sought


class SpentError(UserError):
    """A template used up its time or its memory: to ask it again would take as much."""


def block_spans(text: str, marks: Spellings) -> tuple[str, list[Span]]:
    """A text without the borders of its {% generation %} blocks, and where these were.

    A block that ends before the mark of the turn's end is taken to mean that too.
    """
    parts, borders, done = [], [], 0
    for part in _BORDERS.split(text):
        parts.append(part)
        done += len(part)
        borders.append(done)
    plain = "".join(parts)
    spans = []
    for start, stop in zip(borders[:-1:2], borders[1::2]):
        ended = any(end == stop for _, end in marks.find(plain, start, stop))
        mark = None if ended else marks.at(plain, stop)
        spans.append((start, mark or stop))
    return plain, spans


def assistant_spans(render: Render, messages: Sequence[Message], whole: str, marks: Spellings) -> list[Span]:
    """Start and stop, in characters of `whole`, of each thing that the assistant says.

    `render(messages, prompt)` writes a conversation, with the opening of an answer where `prompt` says so; `whole` is
    all of it, and `marks` find the special symbols. What is said is what follows that opening, up to the mark that ends
    the turn, which is part of it. Raises UserError where earlier turns are written otherwise once others follow, so
    that nothing can be found.
    """
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == ASSISTANT:
            around = _Around(render, messages, i, whole)
            start, stop = around.start(), around.stop(marks)
            if start is None or stop is None or not start <= stop:
                raise UserError(
                    f"this chat template writes message {i} otherwise where others follow, so that what the assistant "
                    "says is not found; put {% generation %} blocks into the template, or end the chat there"
                )
            spans.append((start, stop))
    return spans


def until_said(render: Render, messages: Sequence[Message], whole: str) -> str:
    """The text of a conversation up to the end of what its last message says, which is the assistant's.

    `render` and `whole` are as in `assistant_spans`. Raises UserError where the last message is another's, says nothing
    or calls tools, and where it does not stand in `whole` as it is.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if last.get("role") != ASSISTANT:
        who = f"the last message is of the role {last.get('role')!r:.40}" if messages else "there is no message"
        raise UserError(f"{who}, and what is continued is an assistant's; end with one, or have a new answer")
    if not isinstance(content, str) or not content or last.get("tool_calls"):
        what = "calls tools" if last.get("tool_calls") else "says nothing"
        raise UserError(f"the last message {what}, so it cannot be continued; give it a text alone")
    split = _Around(render, messages, len(messages) - 1, whole).split()
    if split is None or whole != f"{split[0]}{content}{split[1]}":
        raise UserError(
            "this chat template changes what the last message says, so that where to go on is not found; give it "
            "without white space around it and without thoughts, or have a new answer"
        )
    return f"{split[0]}{content}"


class _Around:
    """What a template writes before and after one message."""

    def __init__(self, render: Render, messages: Sequence[Message], place: int, whole: str) -> None:
        self._render = render
        self._messages = messages
        self._place = place
        self._whole = whole

    def start(self) -> int | None:
        before = self._written(self._messages[: self._place], prompt=True)
        if before is not None and self._whole.startswith(before):
            return len(before)
        split = self.split()
        return len(split[0]) if split else None

    def stop(self, marks: Spellings) -> int | None:
        until = self._written(self._messages[: self._place + 1], prompt=False)
        if until is not None and self._whole.startswith(until):
            last = max((end for _, end in marks.find(until)), default=None)
            # A line break after the mark is the template's: nobody says it.
            return len(until) if last is None or until[last:].strip() else last
        split = self.split()
        if not split:
            return None
        stop = len(self._whole) - len(split[1])
        return marks.at(self._whole, stop) or stop

    def split(self) -> tuple[str, str] | None:
        """The texts before and after the message's content, where the whole has them too."""
        message = {**self._messages[self._place], "content": _HERE}
        other = [*self._messages[: self._place], message, *self._messages[self._place + 1 :]]
        before, found, after = (self._written(other, prompt=False) or "").partition(_HERE)
        fits = self._whole.startswith(before) and self._whole.endswith(after)
        alone = bool(found) and _HERE not in after
        return (before, after) if alone and fits and len(before) + len(after) <= len(self._whole) else None

    def _written(self, messages: Sequence[Message], prompt: bool) -> str | None:
        try:
            return self._render(messages, prompt)
        except SpentError:
            raise
        except UserError:  # many templates take no conversation that is cut short
            return None
