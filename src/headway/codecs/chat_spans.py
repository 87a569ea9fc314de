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
_PLACEHOLDER = "\ufdd5"  # a noncharacter as a placeholder for the content


class TemplateBudgetError(UserError):
    """A template exceeded its time or memory limit; running it again would take just as long."""


def block_spans(text: str, special_tokens: Spellings) -> tuple[str, list[Span]]:
    """A text without the markers around its {% generation %} blocks, and the spans of these blocks.

    A block that ends directly before the turn's end token is extended to include it.
    """
    parts, borders, done = [], [], 0
    for part in _BORDERS.split(text):
        parts.append(part)
        done += len(part)
        borders.append(done)
    plain = "".join(parts)
    spans = []
    for start, stop in zip(borders[:-1:2], borders[1::2]):
        has_end_token = any(end == stop for _, end in special_tokens.find_names(plain, start, stop))
        token_end = None if has_end_token else special_tokens.end_of_name(plain, stop)
        spans.append((start, token_end or stop))
    return plain, spans


def assistant_spans(
    render: Render, messages: Sequence[Message], full_text: str, special_tokens: Spellings
) -> list[Span]:
    """The start and stop of each assistant message, in characters of `full_text`.

    `render(messages, prompt)` renders a conversation, followed by the start of an answer if `prompt` is set.
    `full_text` is the whole conversation, and `special_tokens` finds special tokens. A message starts after the text
    that starts an answer, and includes the turn's end token. Raises UserError if messages cannot be located because the
    template writes a turn differently when others follow.
    """
    spans = []
    for i, message in enumerate(messages):
        if message.get("role") == ASSISTANT:
            locator = _MessageLocator(render, messages, i, full_text)
            start, stop = locator.start(), locator.stop(special_tokens)
            if start is None or stop is None or not start <= stop:
                raise UserError(
                    f"this chat template writes message {i} differently when others follow, so the assistant's text "
                    "cannot be located; add {% generation %} blocks to the template, or end the conversation there"
                )
            spans.append((start, stop))
    return spans


def text_up_to_content_end(render: Render, messages: Sequence[Message], full_text: str) -> str:
    """The text of a conversation up to the end of its last message, which must be the assistant's.

    `render` and `full_text` are as in `assistant_spans`. Raises UserError if the last message is not the assistant's,
    is empty, calls tools, or is not contained unchanged in `full_text`.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if last.get("role") != ASSISTANT:
        problem = f"the last message has the role {last.get('role')!r:.40}" if messages else "there is no message"
        raise UserError(
            f"{problem}, but only an assistant message can be continued; end with one, or request a new answer"
        )
    if not isinstance(content, str) or not content or last.get("tool_calls"):
        problem_part = "calls tools" if last.get("tool_calls") else "is empty"
        raise UserError(f"cannot continue the last message because it {problem_part}; pass one that contains only text")
    split = _MessageLocator(render, messages, len(messages) - 1, full_text).split()
    if split is None or full_text != f"{split[0]}{content}{split[1]}":
        raise UserError(
            "cannot continue the last message because this chat template changes it; remove "
            "surrounding white space and reasoning from it, or request a new answer"
        )
    return f"{split[0]}{content}"


class _MessageLocator:
    """The template's output before and after one message."""

    def __init__(self, render: Render, messages: Sequence[Message], index: int, full_text: str) -> None:
        self._render = render
        self._messages = messages
        self._index = index
        self._full_text = full_text

    def start(self) -> int | None:
        before = self._try_render(self._messages[: self._index], prompt=True)
        if before is not None and self._full_text.startswith(before):
            return len(before)
        split = self.split()
        return len(split[0]) if split else None

    def stop(self, special_tokens: Spellings) -> int | None:
        rendered = self._try_render(self._messages[: self._index + 1], prompt=False)
        if rendered is not None and self._full_text.startswith(rendered):
            last_token_end = max((end for _, end in special_tokens.find_names(rendered)), default=None)
            # A line break after the end token belongs to the template, not to the message.
            return len(rendered) if last_token_end is None or rendered[last_token_end:].strip() else last_token_end
        split = self.split()
        if not split:
            return None
        stop = len(self._full_text) - len(split[1])
        return special_tokens.end_of_name(self._full_text, stop) or stop

    def split(self) -> tuple[str, str] | None:
        """The texts before and after the message's content, if the full text also contains them."""
        message = {**self._messages[self._index], "content": _PLACEHOLDER}
        changed = [*self._messages[: self._index], message, *self._messages[self._index + 1 :]]
        before, placeholder, after = (self._try_render(changed, prompt=False) or "").partition(_PLACEHOLDER)
        fits = self._full_text.startswith(before) and self._full_text.endswith(after)
        is_unique = bool(placeholder) and _PLACEHOLDER not in after
        return (before, after) if is_unique and fits and len(before) + len(after) <= len(self._full_text) else None

    def _try_render(self, messages: Sequence[Message], prompt: bool) -> str | None:
        try:
            return self._render(messages, prompt)
        except TemplateBudgetError:
            raise
        except UserError:  # many templates reject shortened conversations
            return None
