"""Regular expressions of ECMA-262, as JSON Schema has them, in the words of llguidance, and with the same meaning.

The two differ: a dot, white space, words and digits take in other characters, anchors stand elsewhere, and what one has
the other has not. So a pattern is read here and written anew, every class spelt out; what cannot be written is refused.
"""

from __future__ import annotations

import re
import unicodedata

from headway.errors import UserError

LONGEST = 4096  # characters of a pattern
_REPEATS = 1 << 16  # of one part
_DEEPEST = 32  # groups within groups
_SPACE = r"\t\n\x0B\x0C\r \xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}"
_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": _SPACE}
_ANY = r"[^\n\r\x{2028}\x{2029}]"
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_CATEGORIES = {unicodedata.category(chr(i)) for i in range(0x3000)} - {"Cs", "Cn"}
_LONG = {"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Number": "N", "Decimal_Number": "Nd"}
_PROPERTY = re.compile(r"([pP])\{(\w+)\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_COUNT = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_NAME = re.compile(r"<[A-Za-z_]\w*>")
_SYNTAX = frozenset("^$\\.*+?()[]{}|/")


def whole(pattern: str, source: str, searched: bool = True) -> str:
    """An expression for whole texts that the pattern is found in, or that it matches from end to end.

    `source` says in errors whose pattern it is. Raises UserError for what is no pattern or has no such expression.
    """
    if len(pattern) > LONGEST:
        raise UserError(f"{source} has a pattern of {len(pattern):,} characters; give {LONGEST:,} at most")
    return f"(?s:{_ExpressionReader(pattern, source).whole(searched)})"


def literal(text: str) -> str:
    """An expression for a text as it stands."""
    return "".join(map(_written, text))


def _written(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{{{ord(character):X}}}"


class _ExpressionReader:
    """Reads a pattern from left to right and writes it anew."""

    def __init__(self, pattern: str, source: str) -> None:
        self._pattern = pattern
        self._source = source
        self._place = 0
        self._depth = 0

    def whole(self, searched: bool) -> str:
        written = self._anchored(".*" if searched else "")
        if self._place < len(self._pattern):
            raise self._refused("a ) without its (")
        return written

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self._source} has the pattern {self._pattern!r:.80} with {what} at character {self._place + 1}, which "
            "cannot be held to; write it otherwise"
        )

    def _next(self) -> str:
        return self._pattern[self._place : self._place + 1]

    def _found(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self._pattern, self._place)
        self._place = self._place if found is None else found.end()
        return found

    def _taken(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _anchored(self, around: str) -> str:
        """Alternatives that may have anchors at their ends, with `around` where these have none."""
        parts = []
        while True:
            parts.append(self._alternative(around))
            if not self._taken("|"):
                return f"(?:{'|'.join(parts)})"

    def _alternative(self, around: str) -> str:
        start = self._place
        if self._taken("("):  # a group that is all of it may have the anchors inside
            self._opened()
            inner = self._anchored(around)
            if self._taken(")") and self._next() in ("", "|", ")"):
                self._depth -= 1
                return inner
            self._depth -= 1
            self._place = start
        before = "" if self._taken("^") else around
        body = self._sequence()
        after = "" if self._taken("$") else around
        if self._next() not in ("", "|", ")"):
            raise self._refused("an anchor")
        return f"{before}{body}{after}"

    def _sequence(self) -> str:
        parts = []
        while self._next() not in ("", "|", ")", "$"):
            parts.append(self._repeated(self._atom()))
        return "".join(parts)

    def _opened(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refused(f"more than {_DEEPEST} groups inside each other")
        if self._taken("?") and not self._taken(":") and self._found(_NAME) is None:
            raise self._refused("a look around or a flag")

    def _atom(self) -> str:
        if self._taken("("):
            self._opened()
            parts = [self._sequence()]
            while self._taken("|"):
                parts.append(self._sequence())
            if not self._taken(")"):
                raise self._refused("an anchor in a group, or a group that does not end")
            self._depth -= 1
            return f"(?:{'|'.join(parts)})"
        if self._taken("["):
            return self._set()
        if self._taken("."):
            return _ANY
        if self._taken("\\"):
            return self._escaped(inside=False)[0]
        character = self._next()
        if character in _SYNTAX and character != "/":
            raise self._refused(f"a {character} that stands for nothing")
        self._place += 1
        return _written(character)

    def _repeated(self, atom: str) -> str:
        count = self._found(_COUNT)
        if count is not None:
            least, most = int(count[1]), int(count[3] or count[1])
            if least > most or most > _REPEATS:
                raise self._refused(f"a repeat of more than {_REPEATS:,} times, or of none")
            suffix = f"{{{least}}}" if count[2] is None else f"{{{least},{count[3]}}}"
        elif self._next() in ("*", "+", "?"):
            suffix = self._next()
            self._place += 1
        else:
            return atom
        self._taken("?")  # the shortest first: the same texts
        return f"(?:{atom}){suffix}"

    def _escaped(self, inside: bool) -> tuple[str, str | None]:
        """What follows a backslash, and the character that it is, None for many."""
        character = self._next()
        found = self._found(_PROPERTY)
        if found is not None:
            category = _LONG.get(found[2], found[2])
            if category not in _CATEGORIES and category not in {each[0] for each in _CATEGORIES}:
                raise self._refused(f"\\p{{{found[2]}}}")
            return f"\\{found[1]}{{{category}}}", None
        found = self._found(_HEX)
        if found is not None:
            number = int(found[1] or found[2] or found[3], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise self._refused("half a character")
            return _written(chr(number)), chr(number)
        self._place += 1
        if character.lower() in _CLASSES and character:
            negated = "^" if character.isupper() else ""
            plain = _CLASSES[character.lower()]
            return (plain if inside and not negated else f"[{negated}{plain}]"), None
        if character == "0" and self._next().isdigit():
            raise self._refused("a number of another text")
        if character in _CONTROLS:
            return _written(_CONTROLS[character]), _CONTROLS[character]
        if character in _SYNTAX or (character == "-" and inside):
            return _written(character), character
        raise self._refused(f"\\{character}")

    def _set(self) -> str:
        negated = "^" if self._taken("^") else ""
        parts: list[str] = []
        while not self._taken("]"):
            written, first = self._member()
            if self._pattern.startswith("-", self._place) and self._pattern[self._place + 1 : self._place + 2] != "]":
                self._place += 1
                other, last = self._member()
                if first is None or last is None or first > last:
                    raise self._refused("a range that is none")
                written = f"{written}-{other}"
            parts.append(written)
        if not parts:
            raise self._refused("a set of nothing")
        return f"[{negated}{''.join(parts)}]"

    def _member(self) -> tuple[str, str | None]:
        character = self._next()
        if not character:
            raise self._refused("a set that does not end")
        if self._taken("\\"):
            if self._taken("b"):
                return _written("\b"), "\b"
            return self._escaped(inside=True)
        self._place += 1
        return _written(character), character
