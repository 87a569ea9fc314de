"""Guards keep messages from forming the special tokens that a chat template writes around them.

A guard is a noncharacter. It is inserted inside every special token in a message, and where the edge of a message could
form one with the template's text. So whatever the template does with the text, no special token remains in it. A
one-character token cannot be split, so a shield is inserted before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
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
            return self._guard_edges(self._guard_spellings(value))
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

    def _guard_edges(self, text: str) -> str:
        """Guard the edges of a text. Single words stay unchanged, because templates compare types and use names."""
        inner = text.strip()
        if _WORD.fullmatch(inner):
            return text
        lead = text[: len(text) - len(text.lstrip())]
        tail = text[len(text.rstrip()) :]
        lengths = range(1, min(self._max_edge, len(inner)) + 1)
        first = GUARD if any(_is_proper_prefix(self._reversed_names, inner[:n][::-1]) for n in lengths) else ""
        last = GUARD if any(_is_proper_prefix(self._names, inner[-n:]) for n in lengths) else ""
        return f"{lead}{first}{inner}{last}{tail}"


def _is_proper_prefix(names: list[str], part: str) -> bool:
    """Whether one of the sorted names is longer than `part` and starts with it."""
    after = bisect_right(names, part)
    return after < len(names) and names[after].startswith(part)
