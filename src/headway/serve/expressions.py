"""Translates ECMA-262 regular expressions, as in JSON Schema, to equivalent terminals of llguidance's lark.

The dialects differ: dots, white space, words and digits match other characters, anchors are allowed elsewhere, and each
has features that the other lacks. So patterns are parsed and generated again, with explicit character classes. A
look-ahead becomes an intersection with the rest, or with its complement. Patterns without an equivalent are refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from headway.errors import UserError

LONGEST = 4096  # maximum characters of a pattern
_REPEATS = 1 << 16  # maximum count of a repeat
_DEEPEST = 32  # maximum depth of groups
_BRANCHES = 64  # maximum sequences after expanding groups that contain anchors
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_DIGITS = ((0x30, 0x39),)
_WORDS = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_CATEGORIES = {unicodedata.category(chr(i)) for i in range(0x3000)} - {"Cs", "Cn"}
_CATEGORIES |= {each[0] for each in _CATEGORIES}
_LONG = {
    **{"Letter": "L", "Lowercase_Letter": "Ll", "Uppercase_Letter": "Lu", "Mark": "M", "Number": "N"},
    **{"Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Space_Separator": "Zs"},
}
_EMOJI = ("Emoji", "Emoji_Component", "Emoji_Modifier", "Emoji_Presentation", "Extended_Pictographic")
_PROPERTY = re.compile(r"([pP])\{(\w+)\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_COUNT = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_NAME = re.compile(r"<[A-Za-z_]\w*>")
_ESCAPES = {'"': '"', "\\": "\\", "\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}  # escapes in a string
_UNQUOTED = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))  # characters that a JSON string cannot contain unescaped
CHARACTER = r"(?:[^\x{22}\x{5C}\x{0}-\x{1F}]|\x{5C}[\x{22}\x{5C}nrtbf])"  # one of a JSON string, or its escape

Range = tuple[int, int]


@dataclass(frozen=True)
class _Characters:
    ranges: tuple[Range, ...]
    properties: tuple[tuple[str, bool], ...] = ()  # names, and whether they are negated
    negated: bool = False


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Sequence, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


@dataclass(frozen=True)
class _Look:
    ahead: _Choice
    negative: bool


@dataclass(frozen=True)
class _Anchor:
    end: bool


_Node = _Characters | _Sequence | _Choice | _Repeat | _Look | _Anchor


@dataclass(frozen=True)
class LarkTerminal:
    """Part of a lark terminal: one regular expression, or several that are combined."""

    expression: str
    plain: bool = True  # one regular expression, which can be part of another

    def lark(self) -> str:
        return f"/{self.expression or '(?:)'}/" if self.plain else f"({self.expression})"


def joined(parts: Iterable[LarkTerminal]) -> LarkTerminal:
    """The concatenation of the parts."""
    found: list[LarkTerminal] = []
    for part in parts:
        if found and found[-1].plain and part.plain:
            found[-1] = LarkTerminal(found[-1].expression + part.expression)
        elif part.expression or not part.plain:
            found.append(part)
    if not found:
        return LarkTerminal("")
    return found[0] if len(found) == 1 else LarkTerminal(" ".join(part.lark() for part in found), False)


def either(parts: Sequence[LarkTerminal]) -> LarkTerminal:
    if len(parts) == 1:
        return parts[0]
    if all(part.plain for part in parts):
        return LarkTerminal(f"(?:{'|'.join(part.expression for part in parts)})")
    return LarkTerminal(" | ".join(part.lark() for part in parts), False)


def both(parts: Sequence[LarkTerminal], without: Sequence[LarkTerminal] = ()) -> LarkTerminal:
    """The intersection of one or more `parts`, minus each of `without`."""
    if len(parts) == 1 and not without:
        return parts[0]
    return LarkTerminal(" & ".join([*(part.lark() for part in parts), *(f"~{part.lark()}" for part in without)]), False)


def literal(text: str) -> str:
    """An expression that matches exactly this text."""
    return "".join(_written(ord(character)) for character in text)


def spelt(text: str) -> str:
    """A text as a JSON string without quotation marks; control characters as \\u00XX."""
    parts = []
    for character in text:
        if character in _ESCAPES:
            parts.append("\\" + _ESCAPES[character])
        else:
            parts.append(f"\\u{ord(character):04x}" if ord(character) < 0x20 else character)
    return "".join(parts)


def _written(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:X}}}"


@lru_cache(maxsize=512)
def expression(pattern: str, source: str) -> Expression:
    """A parsed pattern. UserError, which names `source`, if the string is not a pattern or has no equivalent."""
    if len(pattern) > LONGEST:
        raise UserError(f"{source} has a pattern of {len(pattern):,} characters; use {LONGEST:,} at most")
    read = Expression(_PatternReader(pattern, source).read(), pattern, source)
    read.terminal(searched=True, quoted=True)  # raises for a pattern without an equivalent
    return read


@dataclass(frozen=True)
class Expression:
    """A parsed pattern."""

    _choice: _Choice = field(repr=False)
    pattern: str
    source: str

    def terminal(self, searched: bool, quoted: bool) -> LarkTerminal:
        """A terminal for texts that contain a match of the pattern (`searched`), or that it matches completely.

        With `quoted`, texts are escaped as in a JSON string.
        """
        return _Writer(self, searched, quoted).terminal(self._choice)


class _Writer:
    """Generates the terminal of a parsed pattern."""

    def __init__(self, expression: Expression, searched: bool, quoted: bool) -> None:
        self._expression = expression
        self._quoted = quoted
        self._any = LarkTerminal(f"{CHARACTER}*" if quoted else "(?s:.)*")
        self._around = self._any if searched else LarkTerminal("")

    def terminal(self, choice: _Choice) -> LarkTerminal:
        written = []
        for parts in self._flat(choice.options):
            whole = self._anchored(parts)
            if whole is not None:
                written.append(whole)
        if not written:
            raise self._refused("anchors that nothing can match")
        return either(written)

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self._expression.source} has the pattern {self._expression.pattern!r:.80} with {what}, which cannot be "
            "enforced; use another pattern"
        )

    def _flat(self, options: Sequence[_Sequence]) -> list[list[_Node]]:
        """The options, with all groups expanded that contain anchors or look-ahead."""
        found: list[list[_Node]] = []
        waiting = [list(option.parts) for option in reversed(options)]
        while waiting:
            parts = waiting.pop()
            place = next((i for i, part in enumerate(parts) if _is_special(part)), None)
            if place is None:
                found.append(parts)
            else:
                before, part, after = parts[:place], parts[place], parts[place + 1 :]
                inner: list[list[_Node]]
                if isinstance(part, _Choice):
                    inner = [list(option.parts) for option in part.options]
                elif isinstance(part, _Sequence):
                    inner = [list(part.parts)]
                elif isinstance(part, _Repeat) and part.most == 1:
                    inner = [[part.part], *([[]] if part.least == 0 else [])]
                else:
                    raise self._refused("an anchor or a look-ahead in a part that repeats")
                waiting += [[*before, *each, *after] for each in reversed(inner)]
            if len(found) + len(waiting) > _BRANCHES:
                raise self._refused(f"anchors in more than {_BRANCHES} places")
        return found

    def _anchored(self, parts: list[_Node]) -> LarkTerminal | None:
        """A sequence with its anchors; None if nothing can match them."""
        first = max((i for i, part in enumerate(parts) if part == _Anchor(False)), default=None)
        before = self._around
        if first is not None:
            if not all(_may_be_empty(part) for part in parts[:first]):
                return None
            looks = [part for part in parts[:first] if isinstance(part, _Look)]
            parts, before = [*looks, *parts[first + 1 :]], LarkTerminal("")
        return self._ended(parts, before, self._around)

    def _ended(self, parts: list[_Node], before: LarkTerminal, after: LarkTerminal) -> LarkTerminal | None:
        last = min((i for i, part in enumerate(parts) if part == _Anchor(True)), default=None)
        if last is not None:
            if not all(_may_be_empty(part) for part in parts[last + 1 :]):
                return None
            if any(isinstance(part, _Look) for part in parts[last + 1 :]):
                raise self._refused("a look-ahead after its end")
            parts, after = parts[:last], LarkTerminal("")
        return joined([before, self._sequence(parts, after, not before.expression)])

    def _sequence(self, parts: list[_Node], after: LarkTerminal, first: bool) -> LarkTerminal:
        """The parts and the text `after` them, to which a look-ahead applies. The `first` part starts a text."""
        place = next((i for i, part in enumerate(parts) if isinstance(part, _Look)), None)
        if place is None:
            return joined([*map(self._part, parts), after])
        first = first and place == 0
        look, rest = parts[place], self._sequence(parts[place + 1 :], after, first)
        assert isinstance(look, _Look)
        ahead = []
        for each in self._flat(look.ahead.options):
            if first and each[:1] == [_Anchor(False)]:
                each = each[1:]
            if _Anchor(False) in each:
                raise self._refused("an anchor in a look-ahead")
            whole = self._ended(each, LarkTerminal(""), self._any)
            if whole is not None:
                ahead.append(whole)
        if not ahead:
            raise self._refused("a look-ahead that nothing can match")
        seen = both([rest], [either(ahead)]) if look.negative else both([rest, either(ahead)])
        return joined([*map(self._part, parts[:place]), seen])

    def _part(self, part: _Node) -> LarkTerminal:
        if isinstance(part, _Characters):
            return LarkTerminal(self._characters(part))
        if isinstance(part, _Choice):
            return either([self._part(option) for option in part.options])
        if isinstance(part, _Sequence):
            return joined(map(self._part, part.parts))
        assert isinstance(part, _Repeat)
        suffix = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((part.least, part.most))
        if suffix is None:
            most = "" if part.most is None else part.most
            suffix = f"{{{part.least}}}" if part.least == part.most else f"{{{part.least},{most}}}"
        return LarkTerminal(f"(?:{self._part(part.part).expression}){suffix}")

    def _characters(self, part: _Characters) -> str:
        if part.properties:
            negated = "^" if part.negated else ""
            names = "".join(f"\\{'P' if other else 'p'}{{{name}}}" for name, other in part.properties)
            plain = f"[{negated}{_spelt(part.ranges)}{names}]"
            if not self._quoted:
                return plain
            return _with_escapes(f"[{plain}&&[^{_spelt(_UNQUOTED)}]]", part)
        ranges = _complement(part.ranges) if part.negated else _merged(part.ranges)
        if not self._quoted:
            return f"[{_spelt(ranges)}]" if ranges else self._nothing()
        plain_ranges = _without(ranges, _UNQUOTED)
        return _with_escapes(f"[{_spelt(plain_ranges)}]" if plain_ranges else "", part) or self._nothing()

    def _nothing(self) -> str:
        raise self._refused("a set without a character that can be generated")


def _with_escapes(plain: str, part: _Characters) -> str:
    escapes = "".join(_written(ord(letter)) for character, letter in _ESCAPES.items() if _holds(part, character))
    options = [*([plain] if plain else []), *([rf"\x{{5C}}[{escapes}]"] if escapes else [])]
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})" if options else ""


def _holds(part: _Characters, character: str) -> bool:
    code, category = ord(character), unicodedata.category(character)
    held = any(low <= code <= high for low, high in part.ranges) or any(
        (name not in _EMOJI and category.startswith(name)) != other for name, other in part.properties
    )
    return held != part.negated


def _is_special(part: _Node) -> bool:
    """Whether a group contains anchors or look-ahead."""
    if isinstance(part, _Choice):
        return any(map(_is_special, part.options))
    if isinstance(part, _Repeat):
        return isinstance(part.part, (_Look, _Anchor)) or _is_special(part.part)
    return isinstance(part, _Sequence) and any(
        isinstance(each, (_Look, _Anchor)) or _is_special(each) for each in part.parts
    )


def _may_be_empty(part: _Node) -> bool:
    if isinstance(part, _Repeat):
        return part.least == 0 or _may_be_empty(part.part)
    if isinstance(part, _Choice):
        return any(map(_may_be_empty, part.options))
    if isinstance(part, _Sequence):
        return all(map(_may_be_empty, part.parts))
    return isinstance(part, (_Look, _Anchor))


def _merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _complement(ranges: Iterable[Range]) -> tuple[Range, ...]:
    found, start = [], 0
    for low, high in _merged([*ranges, _SURROGATES]):
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)


def _without(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    return _complement([*_complement(ranges), *others])


def _spelt(ranges: Iterable[Range]) -> str:
    return "".join(_written(low) if low == high else f"{_written(low)}-{_written(high)}" for low, high in ranges)


class _PatternReader:
    """Parses a pattern from left to right."""

    def __init__(self, pattern: str, source: str) -> None:
        self._pattern = pattern
        self._source = source
        self._place = 0
        self._depth = 0

    def read(self) -> _Choice:
        choice = self._choice()
        if self._place < len(self._pattern):
            raise self._refused("an unmatched )")
        return choice

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self._source} has the pattern {self._pattern!r:.80} with {what} at character {self._place + 1}, which "
            "cannot be enforced; use another pattern"
        )

    def _next(self) -> str:
        return self._pattern[self._place : self._place + 1]

    def _found(self, sought: re.Pattern[str]) -> re.Match[str] | None:
        found = sought.match(self._pattern, self._place)
        self._place = self._place if found is None else found.end()
        return found

    def _taken(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _choice(self) -> _Choice:
        options = [self._sequence()]
        while self._taken("|"):
            options.append(self._sequence())
        return _Choice(tuple(options))

    def _sequence(self) -> _Sequence:
        parts: list[_Node] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _group(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._refused(f"more than {_DEEPEST} groups inside each other")
        look = "="
        if self._taken("?"):
            look = self._next()
            if look in ("=", "!"):
                self._place += 1
            elif self._taken(":") or self._found(_NAME) is not None:
                look = ""
            else:
                raise self._refused("a look-behind or a flag")
        else:
            look = ""
        choice = self._choice()
        if not self._taken(")"):
            raise self._refused("an unclosed group")
        self._depth -= 1
        return _Look(choice, look == "!") if look else choice

    def _atom(self) -> _Node:
        if self._taken("("):
            return self._group()
        if self._taken("["):
            return self._set()
        if self._taken("."):
            return _Characters(_LINE_ENDS, negated=True)
        if self._taken("^"):
            return _Anchor(False)
        if self._taken("$"):
            return _Anchor(True)
        if self._taken("\\"):
            return self._escaped(inside=False)
        character = self._next()
        if character in "*+?" or _COUNT.match(self._pattern, self._place):
            raise self._refused(f"a {character} that repeats nothing")
        self._place += 1
        return self._single(character)

    def _single(self, character: str) -> _Characters:
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self._refused("half a character")
        return _Characters(((ord(character), ord(character)),))

    def _repeated(self, atom: _Node) -> _Node:
        count = self._found(_COUNT)
        if count is not None:
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
            if max(least, most or 0) > _REPEATS or (most is not None and least > most):
                raise self._refused(f"a repeat count above {_REPEATS:,}, or an empty range of counts")
        elif self._next() in ("*", "+", "?") and self._next():
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._next()]
            self._place += 1
        else:
            return atom
        if isinstance(atom, _Anchor):
            raise self._refused("an anchor that repeats")
        self._taken("?")  # lazy repeats match the same texts
        return _Repeat(atom, least, most)

    def _escaped(self, inside: bool) -> _Characters:
        """The characters after a backslash."""
        found = self._found(_PROPERTY)
        if found is not None:
            name = _LONG.get(found[2], found[2])
            if name not in _CATEGORIES and name not in _EMOJI:
                raise self._refused(f"\\p{{{found[2]}}}")
            return _Characters((), ((name, found[1] == "P"),))
        self._place -= 1
        pair = self._found(_PAIR)
        if pair is not None:
            return self._single(chr(0x10000 + (int(pair[1], 16) - 0xD800) * 0x400 + int(pair[2], 16) - 0xDC00))
        self._place += 1
        found = self._found(_HEX)
        if found is not None:
            number = int(found[1] or found[2] or found[3], 16)
            if number > _LAST or 0xD800 <= number < 0xE000:
                raise self._refused("half a character")
            return self._single(chr(number))
        character = self._next()
        self._place += 1
        if character.lower() in _CLASSES and character:
            return _Characters(_CLASSES[character.lower()], negated=character.isupper())
        if character == "0" and self._next().isdigit():
            raise self._refused("an octal escape")
        if character == "b" and inside:
            return self._single("\b")
        if character == "c" and self._next().isascii() and self._next().isalpha():
            self._place += 1
            return self._single(chr(ord(self._pattern[self._place - 1]) % 32))
        if character in _CONTROLS:
            return self._single(_CONTROLS[character])
        if not character or character.isalnum() or not character.isascii():
            raise self._refused(f"\\{character}")
        return self._single(character)

    def _set(self) -> _Characters:
        negated = self._taken("^")
        ranges: list[Range] = []
        properties: list[tuple[str, bool]] = []
        while not self._taken("]"):
            one = self._member()
            ahead = self._pattern[self._place + 1 : self._place + 2]
            if self._next() == "-" and ahead not in ("]", "") and _is_single(one):
                self._place += 1
                other = self._member()
                if not _is_single(other):  # a dash before a class is a dash
                    ranges.append((0x2D, 0x2D))
                elif one.ranges[0][0] > other.ranges[0][0]:
                    raise self._refused("a range from a character to an earlier one")
                else:
                    one, other = _Characters(((one.ranges[0][0], other.ranges[0][0]),)), None
            else:
                other = None
            for each in (one, other):
                if each is not None:
                    ranges += _complement(each.ranges) if each.negated else each.ranges
                    properties += each.properties
        if not ranges and not properties and not negated:
            raise self._refused("an empty set")
        return _Characters(tuple(ranges), tuple(properties), negated)

    def _member(self) -> _Characters:
        character = self._next()
        if not character:
            raise self._refused("an unclosed set")
        self._place += 1
        return self._escaped(inside=True) if character == "\\" else self._single(character)


def _is_single(part: _Characters) -> bool:
    return len(part.ranges) == 1 and part.ranges[0][0] == part.ranges[0][1] and not part.negated and not part.properties
