"""Guards: what people say must not become one of the special symbols that a chat template writes around it.

A guard is a noncharacter. It is put where a text spells a special symbol, and where its edge may become part of one
beside what a template writes; whatever a template then does with the text, the spelling is no symbol. A symbol of one
character cannot be split: it gets a shield before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headway.errors import UserError

GUARD, SHIELD = "\ufdd4", "\ufdd6"
RESERVED = re.compile("[\ufdd0-\ufdef]")  # noncharacters: Unicode keeps them for programs' own use
_ROLE = re.compile(r"[\w.-]{1,64}")
_WORD = re.compile(r"\w*")
_DEEPEST = 64  # levels of lists and mappings


class Spellings:
    """Finds names in a text, the longest that starts at a place; a shield before one keeps it text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        lengths: dict[str, set[int]] = {}
        for name in self._names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(known, reverse=True) for first, known in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, sorted(lengths)))}]" if lengths else r"(?!)")

    def at(self, text: str, place: int, stop: int | None = None) -> int | None:
        """Where the name that starts at a place of `text[:stop]` ends; None where there is none."""
        if place and text[place - 1] == SHIELD:
            return None
        end = len(text) if stop is None else stop
        for length in self._lengths.get(text[place : place + 1], ()):
            if place + length <= end and text[place : place + length] in self._names:
                return place + length
        return None

    def find(self, text: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Start and stop of the names in `text[start:stop]`, none of which overlap."""
        end = len(text) if stop is None else stop
        while match := self._first.search(text, start, end):
            found = self.at(text, match.start(), end)
            if found is not None:
                yield match.start(), found
            start = found or match.end()

    def split(self, text: str) -> str:
        """The text with a guard inside each name, so that none is left."""
        parts, done = [], 0
        for match in self._first.finditer(text):
            place = match.start()
            end = self.at(text, place)
            if end is None:
                continue
            shield = SHIELD if match[0] in self._names else ""
            parts.append(f"{text[done:place]}{shield}{match[0]}{GUARD if end > place + 1 else ''}")
            done = place + 1
        return "".join([*parts, text[done:]])


class Guard:
    """Puts guards into messages, so that they spell none of `names`. UserError for names that are never found whole."""

    def __init__(self, names: Iterable[str]) -> None:
        self._starts = sorted(names)
        strange = next((name for name in self._starts if RESERVED.search(name)), None)
        if strange is not None:
            raise UserError(f"the special symbol {strange!r:.80} holds a noncharacter, which is not text; rename it")
        self.spellings = Spellings(self._starts)
        self._ends = sorted(name[::-1] for name in self._starts)
        self._longest = max(map(len, self._starts), default=1) - 1

    def messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with guards. UserError for what is no message."""
        found = []
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, Mapping) else None
            if not isinstance(role, str) or not _ROLE.fullmatch(role):
                raise UserError(f"message {i} has the role {role!r:.80}; give a mapping with a role such as user")
            # Templates make marks of roles, as <|user|>, so that a role's edges are no concern.
            found.append({**self.value(dict(message)), "role": self._spelt(role)})
        return found

    def value(self, value: Any, depth: int = 0) -> Any:
        """The texts of a value with guards, those of lists and mappings too."""
        if depth > _DEEPEST:
            raise UserError(f"a message is nested deeper than {_DEEPEST} levels; give plain texts")
        if isinstance(value, str):
            return self._edges(self._spelt(value))
        if isinstance(value, Mapping):
            return {self._spelt(str(key)): self.value(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each, depth + 1) for each in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UserError(f"a message holds a {type(value).__name__}; give texts, numbers, lists and mappings of them")

    def _spelt(self, text: str) -> str:
        strange = RESERVED.search(text)
        if strange:
            raise UserError(f"a message holds the noncharacter U+{ord(strange[0]):X}, which is not text; remove it")
        return self.spellings.split(text)

    def _edges(self, text: str) -> str:
        """A single word is left as it is: templates compare types, and make marks of names."""
        inner = text.strip()
        if _WORD.fullmatch(inner):
            return text
        lead = text[: len(text) - len(text.lstrip())]
        tail = text[len(text.rstrip()) :]
        lengths = range(1, min(self._longest, len(inner)) + 1)
        first = GUARD if any(_begins_one(self._ends, inner[:n][::-1]) for n in lengths) else ""
        last = GUARD if any(_begins_one(self._starts, inner[-n:]) for n in lengths) else ""
        return f"{lead}{first}{inner}{last}{tail}"


def _begins_one(names: list[str], part: str) -> bool:
    """Whether one of the sorted names begins with `part` and goes on."""
    after = bisect_right(names, part)
    return after < len(names) and names[after].startswith(part)
