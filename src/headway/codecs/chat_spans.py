"""Guards keep messages from forming the special tokens that a chat template writes around them; and the spans of the
assistant's messages in the output of a template.

A guard is a noncharacter. It is inserted inside every special token in a message, and where the edge of a message could
form one with the template's text. So whatever the template does with the text, no special token remains in it. A
one-character token cannot be split, so a shield is inserted before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from headway.errors import UserError

GUARD, SHIELD = "\ufdd4", "\ufdd6"
RESERVED = re.compile("[\ufdd0-\ufdef]")  # noncharacters, which Unicode reserves for internal use
_ROLE = re.compile(r"[\w.-]{1,64}")
_WORD = re.compile(r"\w*")
_MAX_DEPTH = 64  # maximum nesting of lists and mappings


class Spellings:
    """Finds names in a text, the longest one at each position; a name after a shield is text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        lengths: dict[str, set[int]] = {}
        for name in self._names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {character: sorted(name_lengths, reverse=True) for character, name_lengths in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, sorted(lengths)))}]" if lengths else r"(?!)")

    def end_of_name(self, text: str, position: int, stop: int | None = None) -> int | None:
        """The end of the name that starts at a position of `text[:stop]`; None if there is none."""
        if position and text[position - 1] == SHIELD:
            return None
        end = len(text) if stop is None else stop
        for length in self._lengths.get(text[position : position + 1], ()):
            if position + length <= end and text[position : position + length] in self._names:
                return position + length
        return None

    def find_names(self, text: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """The start and stop of each non-overlapping name in `text[start:stop]`."""
        end = len(text) if stop is None else stop
        while match := self._first.search(text, start, end):
            name_end = self.end_of_name(text, match.start(), end)
            if name_end is not None:
                yield match.start(), name_end
            start = name_end or match.end()

    def insert_guards(self, text: str) -> str:
        """The text with a guard inside each name, so that no name remains."""
        parts, done = [], 0
        for match in self._first.finditer(text):
            position = match.start()
            end = self.end_of_name(text, position)
            if end is None:
                continue
            shield = SHIELD if match[0] in self._names else ""
            parts.append(f"{text[done:position]}{shield}{match[0]}{GUARD if end > position + 1 else ''}")
            done = position + 1
        return "".join([*parts, text[done:]])


class Guard:
    """Inserts guards into messages so that they contain none of `names`. Raises UserError for names with
    noncharacters.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        invalid = next((name for name in self._names if RESERVED.search(name)), None)
        if invalid is not None:
            raise UserError(f"special token {invalid!r:.80} contains a noncharacter; rename it")
        self.spellings = Spellings(self._names)
        self._reversed_names = sorted(name[::-1] for name in self._names)
        self._max_edge = max(map(len, self._names), default=1) - 1

    def messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with guards. Raises UserError for invalid messages."""
        guarded = []
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, Mapping) else None
            if not isinstance(role, str) or not _ROLE.fullmatch(role):
                raise UserError(f"message {i} has the role {role!r:.80}; pass a mapping with a role such as user")
            # Templates turn roles into special tokens, such as <|user|>, so their edges need no guards.
            guarded.append({**self.value(dict(message)), "role": self._guard_spellings(role)})
        return guarded

    def value(self, value: Any, depth: int = 0) -> Any:
        """A value with guards in its strings, including those in lists and mappings."""
        if depth > _MAX_DEPTH:
            raise UserError(f"a message is nested more than {_MAX_DEPTH} levels deep; use plain strings")
        if isinstance(value, str):
            text = self._guard_spellings(value)
            # Guard the edges of a text. Single words stay unchanged, because templates compare types and use names.
            inner = text.strip()
            if _WORD.fullmatch(inner):
                return text
            lead = text[: len(text) - len(text.lstrip())]
            tail = text[len(text.rstrip()) :]
            lengths = range(1, min(self._max_edge, len(inner)) + 1)
            first = GUARD if any(_is_proper_prefix(self._reversed_names, inner[:n][::-1]) for n in lengths) else ""
            last = GUARD if any(_is_proper_prefix(self._names, inner[-n:]) for n in lengths) else ""
            return f"{lead}{first}{inner}{last}{tail}"
        if isinstance(value, Mapping):
            return {self._guard_spellings(str(key)): self.value(member, depth + 1) for key, member in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(member, depth + 1) for member in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UserError(
            f"a message contains a {type(value).__name__}; use strings, numbers, and lists and mappings of these"
        )

    def _guard_spellings(self, text: str) -> str:
        invalid = RESERVED.search(text)
        if invalid:
            raise UserError(f"a message contains the noncharacter U+{ord(invalid[0]):X}; remove it")
        return self.spellings.insert_guards(text)


def _is_proper_prefix(names: list[str], part: str) -> bool:
    """Whether one of the sorted names is longer than `part` and starts with it."""
    after = bisect_right(names, part)
    return after < len(names) and names[after].startswith(part)


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
