"""Messages that cannot become marks: guards inside the special symbols that people spell.

A guard is a noncharacter. It is put where a text spells a special symbol, and where its edge may become part of one
beside what a template writes; whatever a template then does with the text, the spelling is no symbol. A symbol of one
character cannot be split: it gets a shield before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from headway.errors import UserError

GUARD, SHIELD = "\ufdd4", "\ufdd6"
RESERVED = re.compile("[\ufdd0-\ufdef]")  # noncharacters: Unicode keeps them for programs' own use
_ROLE = re.compile(r"[\w.-]{1,64}")
_WORD = re.compile(r"\w*")
_DEEPEST = 64  # levels of lists and mappings


class Guard:
    """Puts guards into messages, so that they spell none of `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names, key=len, reverse=True)
        self.pattern = spellings(self._names)
        self._starts = {name[:i] for name in self._names for i in range(1, len(name))}
        self._ends = {name[i:] for name in self._names for i in range(1, len(name))}
        self._longest = max(map(len, self._names), default=1) - 1

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
        while self.pattern.search(text):
            text = self.pattern.sub(_split, text)
        return text

    def _edges(self, text: str) -> str:
        """A single word is left as it is: templates compare types, and make marks of names."""
        inner = text.strip()
        if _WORD.fullmatch(inner):
            return text
        lead = text[: len(text) - len(text.lstrip())]
        tail = text[len(text.rstrip()) :]
        lengths = range(1, min(self._longest, len(inner)) + 1)
        first = GUARD if any(inner[:n] in self._ends for n in lengths) else ""
        last = GUARD if any(inner[-n:] in self._starts for n in lengths) else ""
        return f"{lead}{first}{inner}{last}{tail}"


def spellings(names: Iterable[str]) -> re.Pattern[str]:
    """Finds names in a text, the longest that starts at a place; a shield before one keeps it text."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile(f"(?<!{SHIELD})(?:{'|'.join(map(re.escape, ordered))})" if ordered else r"(?!)")


def _split(match: re.Match[str]) -> str:
    name = match[0]
    return f"{name[0]}{GUARD}{name[1:]}" if len(name) > 1 else f"{SHIELD}{name}"
