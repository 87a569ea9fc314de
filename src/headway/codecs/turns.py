"""Find the assistant's messages in the output of a chat template."""

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
OPEN, CLOSE = "\ufdd2", "\ufdd3"  # noncharacters around the output of a {% generation %} block
_BORDERS = re.compile(f"[{OPEN}{CLOSE}]")
_HERE = "\ufdd5"  # a noncharacter as a placeholder for the content


class SpentError(UserError):
    """A template exceeded its time or memory; running it again would take as long."""


def block_spans(text: str, marks: Spellings) -> tuple[str, list[Span]]:
    """A text without the borders of its {% generation %} blocks, and the spans of these blocks.

    A block that ends right before the turn's end token is extended to include it.
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
    """Start and stop, in characters of `full_text`, of each message of the assistant.

    `render(messages, prompt)` renders a conversation, with the start of an answer if `prompt`; `full_text` is the whole
    conversation, and `special_tokens` finds special tokens. A message starts after the start of an answer and includes
    the turn's end token. Raises UserError if the template writes earlier turns differently when others follow, so that
    messages cannot be located.
    """
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == ASSISTANT:
            around = _Around(render, messages, i, whole)
            start, stop = around.start(), around.stop(marks)
            if start is None or stop is None or not start <= stop:
                raise UserError(
                    f"this chat template writes message {i} differently when others follow, so the assistant's text "
                    "cannot be located; add {% generation %} blocks to the template, or end the conversation there"
                )
            spans.append((start, stop))
    return spans


def until_said(render: Render, messages: Sequence[Message], whole: str) -> str:
    """The text of a conversation up to the end of its last message, which is the assistant's.

    `render` and `full_text` are as in `assistant_spans`. Raises UserError if the last message is not the assistant's,
    is empty, calls tools, or is not contained unchanged in `full_text`.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if last.get("role") != ASSISTANT:
        who = f"the last message has the role {last.get('role')!r:.40}" if messages else "there is no message"
        raise UserError(
            f"{who}, but only an assistant's message can be continued; end with one, or request a new answer"
        )
    if not isinstance(content, str) or not content or last.get("tool_calls"):
        what = "calls tools" if last.get("tool_calls") else "is empty"
        raise UserError(f"the last message {what}, so it cannot be continued; use one with text only")
    split = _Around(render, messages, len(messages) - 1, whole).split()
    if split is None or whole != f"{split[0]}{content}{split[1]}":
        raise UserError(
            "this chat template changes the last message, so the position to continue from cannot be located; remove "
            "surrounding white space and reasoning from the message, or request a new answer"
        )
    return f"{split[0]}{content}"


class _Around:
    """The output of a template before and after one message."""

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
            # A line break after the end token belongs to the template, not to the message.
            return len(until) if last is None or until[last:].strip() else last
        split = self.split()
        if not split:
            return None
        stop = len(self._whole) - len(split[1])
        return marks.at(self._whole, stop) or stop

    def split(self) -> tuple[str, str] | None:
        """The texts before and after the message's content, if the full text contains them, too."""
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
        except UserError:  # many templates reject shortened conversations
            return None
