"""Translates ECMA-262 regular expressions, as in JSON Schema, to equivalent terminals in llguidance's lark.

The dialects differ: dots, white space, words and digits match other characters, anchors are allowed elsewhere, and each
has features that the other lacks. So patterns are parsed and generated again, with explicit character classes. A
look-ahead becomes an intersection with the rest, or with its complement. Patterns without an equivalent are rejected.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from headway.errors import UserError

MAX_PATTERN_LENGTH = 4096  # characters per pattern
_MAX_REPEATS = 1 << 16  # maximum count of a repeat
_MAX_DEPTH = 32  # maximum depth of nested groups
_MAX_BRANCHES = 64  # maximum sequences after expanding groups that contain anchors
_MAX_CODE_POINT = 0x10FFFF
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
_CATEGORY_NAMES = {
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
CHARACTER = r"(?:[^\x{22}\x{5C}\x{0}-\x{1F}]|\x{5C}[\x{22}\x{5C}nrtbf])"  # a character in a JSON string, or its escape

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
    min_count: int
    max_count: int | None


@dataclass(frozen=True)
class _LookAhead:
    ahead: _Choice
    negative: bool


@dataclass(frozen=True)
class _Anchor:
    is_end: bool


_Node = _Characters | _Sequence | _Choice | _Repeat | _LookAhead | _Anchor


@dataclass(frozen=True)
class LarkTerminal:
    """Part of a lark terminal: one regular expression, or several that are combined."""

    expression: str
    plain: bool = True  # one regular expression, which can be part of another

    def lark(self) -> str:
        return f"/{self.expression or '(?:)'}/" if self.plain else f"({self.expression})"


def concatenate(parts: Iterable[LarkTerminal]) -> LarkTerminal:
    """The concatenation of the parts."""
    merged: list[LarkTerminal] = []
    for part in parts:
        if merged and merged[-1].plain and part.plain:
            merged[-1] = LarkTerminal(merged[-1].expression + part.expression)
        elif part.expression or not part.plain:
            merged.append(part)
    if not merged:
        return LarkTerminal("")
    return merged[0] if len(merged) == 1 else LarkTerminal(" ".join(part.lark() for part in merged), False)


def union(parts: Sequence[LarkTerminal]) -> LarkTerminal:
    if len(parts) == 1:
        return parts[0]
    if all(part.plain for part in parts):
        return LarkTerminal(f"(?:{'|'.join(part.expression for part in parts)})")
    return LarkTerminal(" | ".join(part.lark() for part in parts), False)


def intersection(parts: Sequence[LarkTerminal], without: Sequence[LarkTerminal] = ()) -> LarkTerminal:
    """The intersection of one or more `parts`, minus each of `without`."""
    if len(parts) == 1 and not without:
        return parts[0]
    return LarkTerminal(" & ".join([*(part.lark() for part in parts), *(f"~{part.lark()}" for part in without)]), False)


def escape_literal(text: str) -> str:
    """An expression that matches exactly this string."""
    return "".join(_escape_code_point(ord(character)) for character in text)


def escape_json(text: str) -> str:
    """A string in JSON notation, without quotation marks; control characters as \\u00XX."""
    parts = []
    for character in text:
        if character in _ESCAPES:
            parts.append("\\" + _ESCAPES[character])
        else:
            parts.append(f"\\u{ord(character):04x}" if ord(character) < 0x20 else character)
    return "".join(parts)


def _escape_code_point(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:X}}}"


@lru_cache(maxsize=512)
def parse_pattern(pattern: str, source: str) -> EcmaPattern:
    """A parsed pattern. UserError, which names `source`, if the string is not a pattern or has no equivalent."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise UserError(f"{source} has a pattern of {len(pattern):,} characters; use at most {MAX_PATTERN_LENGTH:,}")
    parsed = EcmaPattern(_PatternParser(pattern, source).parse(), pattern, source)
    parsed.terminal(searched=True, quoted=True)  # raises for a pattern without an equivalent
    return parsed


@dataclass(frozen=True)
class EcmaPattern:
    """A parsed pattern."""

    _choice: _Choice = field(repr=False)
    pattern: str
    source: str

    def terminal(self, searched: bool, quoted: bool) -> LarkTerminal:
        """A terminal for strings that contain a match (`searched`), or that the pattern matches completely.

        With `quoted`, strings are escaped as in JSON.
        """
        return _TerminalWriter(self, searched, quoted).terminal(self._choice)


class _TerminalWriter:
    """Generates the terminal of a parsed pattern."""

    def __init__(self, expression: EcmaPattern, searched: bool, quoted: bool) -> None:
        self._expression = expression
        self._quoted = quoted
        self._anything = LarkTerminal(f"{CHARACTER}*" if quoted else "(?s:.)*")
        self._around = self._anything if searched else LarkTerminal("")

    def terminal(self, choice: _Choice) -> LarkTerminal:
        terminals = []
        for parts in self._expand(choice.options):
            anchored = self._apply_anchors(parts)
            if anchored is not None:
                terminals.append(anchored)
        if not terminals:
            raise self._error("anchors that nothing can match")
        return union(terminals)

    def _error(self, feature: str) -> UserError:
        return UserError(
            f"{self._expression.source} has the pattern {self._expression.pattern!r:.80} with {feature}, which cannot "
            "be "
            "enforced; use another pattern"
        )

    def _expand(self, options: Sequence[_Sequence]) -> list[list[_Node]]:
        """The options, expanding all groups that contain anchors or look-ahead."""
        flat: list[list[_Node]] = []
        pending = [list(option.parts) for option in reversed(options)]
        while pending:
            parts = pending.pop()
            index = next((i for i, part in enumerate(parts) if _is_special(part)), None)
            if index is None:
                flat.append(parts)
            else:
                before, part, after = parts[:index], parts[index], parts[index + 1 :]
                inner: list[list[_Node]]
                if isinstance(part, _Choice):
                    inner = [list(option.parts) for option in part.options]
                elif isinstance(part, _Sequence):
                    inner = [list(part.parts)]
                elif isinstance(part, _Repeat) and part.max_count == 1:
                    inner = [[part.part], *([[]] if part.min_count == 0 else [])]
                else:
                    raise self._error("an anchor or a look-ahead in a part that repeats")
                pending += [[*before, *option_parts, *after] for option_parts in reversed(inner)]
            if len(flat) + len(pending) > _MAX_BRANCHES:
                raise self._error(f"anchors in more than {_MAX_BRANCHES} places")
        return flat

    def _apply_anchors(self, parts: list[_Node]) -> LarkTerminal | None:
        """A sequence with its anchors; None if nothing can match them."""
        first = max((i for i, part in enumerate(parts) if part == _Anchor(False)), default=None)
        before = self._around
        if first is not None:
            if not all(_may_be_empty(part) for part in parts[:first]):
                return None
            look_aheads = [part for part in parts[:first] if isinstance(part, _LookAhead)]
            parts, before = [*look_aheads, *parts[first + 1 :]], LarkTerminal("")
        return self._apply_end(parts, before, self._around)

    def _apply_end(self, parts: list[_Node], before: LarkTerminal, after: LarkTerminal) -> LarkTerminal | None:
        last = min((i for i, part in enumerate(parts) if part == _Anchor(True)), default=None)
        if last is not None:
            if not all(_may_be_empty(part) for part in parts[last + 1 :]):
                return None
            if any(isinstance(part, _LookAhead) for part in parts[last + 1 :]):
                raise self._error("a look-ahead after its end")
            parts, after = parts[:last], LarkTerminal("")
        return concatenate([before, self._sequence(parts, after, not before.expression)])

    def _sequence(self, parts: list[_Node], after: LarkTerminal, first: bool) -> LarkTerminal:
        """The parts and the text `after` them, to which a look-ahead applies. The `first` part starts a text."""
        index = next((i for i, part in enumerate(parts) if isinstance(part, _LookAhead)), None)
        if index is None:
            return concatenate([*map(self._part, parts), after])
        first = first and index == 0
        look_ahead, remainder = parts[index], self._sequence(parts[index + 1 :], after, first)
        assert isinstance(look_ahead, _LookAhead)
        ahead = []
        for option_parts in self._expand(look_ahead.ahead.options):
            if first and option_parts[:1] == [_Anchor(False)]:
                option_parts = option_parts[1:]
            if _Anchor(False) in option_parts:
                raise self._error("an anchor in a look-ahead")
            anchored = self._apply_end(option_parts, LarkTerminal(""), self._anything)
            if anchored is not None:
                ahead.append(anchored)
        if not ahead:
            raise self._error("a look-ahead that nothing can match")
        constrained = (
            intersection([remainder], [union(ahead)])
            if look_ahead.negative
            else intersection([remainder, union(ahead)])
        )
        return concatenate([*map(self._part, parts[:index]), constrained])

    def _part(self, part: _Node) -> LarkTerminal:
        if isinstance(part, _Characters):
            return LarkTerminal(self._characters(part))
        if isinstance(part, _Choice):
            return union([self._part(option) for option in part.options])
        if isinstance(part, _Sequence):
            return concatenate(map(self._part, part.parts))
        assert isinstance(part, _Repeat)
        suffix = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((part.min_count, part.max_count))
        if suffix is None:
            max_count = "" if part.max_count is None else part.max_count
            suffix = (
                f"{{{part.min_count}}}" if part.min_count == part.max_count else f"{{{part.min_count},{max_count}}}"
            )
        return LarkTerminal(f"(?:{self._part(part.part).expression}){suffix}")

    def _characters(self, part: _Characters) -> str:
        if part.properties:
            negated = "^" if part.negated else ""
            names = "".join(f"\\{'P' if is_negated else 'p'}{{{name}}}" for name, is_negated in part.properties)
            plain = f"[{negated}{_format_ranges(part.ranges)}{names}]"
            if not self._quoted:
                return plain
            return _with_escapes(f"[{plain}&&[^{_format_ranges(_UNQUOTED)}]]", part)
        ranges = _complement_ranges(part.ranges) if part.negated else _merge_ranges(part.ranges)
        if not self._quoted:
            return f"[{_format_ranges(ranges)}]" if ranges else self._reject_empty()
        plain_ranges = _complement_ranges([*_complement_ranges(ranges), *_UNQUOTED])
        return _with_escapes(f"[{_format_ranges(plain_ranges)}]" if plain_ranges else "", part) or self._reject_empty()

    def _reject_empty(self) -> str:
        raise self._error("a set without a character that can be generated")


def _with_escapes(plain: str, part: _Characters) -> str:
    escapes = ""
    for character, letter in _ESCAPES.items():
        code, category = ord(character), unicodedata.category(character)
        is_listed = any(low <= code <= high for low, high in part.ranges) or any(
            (name not in _EMOJI and category.startswith(name)) != is_negated for name, is_negated in part.properties
        )
        if is_listed != part.negated:
            escapes += _escape_code_point(ord(letter))
    options = [*([plain] if plain else []), *([rf"\x{{5C}}[{escapes}]"] if escapes else [])]
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})" if options else ""


def _is_special(part: _Node) -> bool:
    """Whether a group contains anchors or look-ahead."""
    if isinstance(part, _Choice):
        return any(map(_is_special, part.options))
    if isinstance(part, _Repeat):
        return isinstance(part.part, (_LookAhead, _Anchor)) or _is_special(part.part)
    return isinstance(part, _Sequence) and any(
        isinstance(inner_part, (_LookAhead, _Anchor)) or _is_special(inner_part) for inner_part in part.parts
    )


def _may_be_empty(part: _Node) -> bool:
    if isinstance(part, _Repeat):
        return part.min_count == 0 or _may_be_empty(part.part)
    if isinstance(part, _Choice):
        return any(map(_may_be_empty, part.options))
    if isinstance(part, _Sequence):
        return all(map(_may_be_empty, part.parts))
    return isinstance(part, (_LookAhead, _Anchor))


def _merge_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    gaps, start = [], 0
    for low, high in _merge_ranges([*ranges, _SURROGATES]):
        if low > start:
            gaps.append((start, low - 1))
        start = high + 1
    return (*gaps, (start, _MAX_CODE_POINT)) if start <= _MAX_CODE_POINT else tuple(gaps)


def _format_ranges(ranges: Iterable[Range]) -> str:
    return "".join(
        _escape_code_point(low) if low == high else f"{_escape_code_point(low)}-{_escape_code_point(high)}"
        for low, high in ranges
    )


class _PatternParser:
    """Parses a pattern from left to right."""

    def __init__(self, pattern: str, source: str) -> None:
        self._pattern = pattern
        self._source = source
        self._position = 0
        self._depth = 0

    def parse(self) -> _Choice:
        choice = self._parse_choice()
        if self._position < len(self._pattern):
            raise self._error("an unmatched )")
        return choice

    def _error(self, feature: str) -> UserError:
        return UserError(
            f"{self._source} has the pattern {self._pattern!r:.80} with {feature} at character {self._position + 1}, "
            "which "
            "cannot be enforced; use another pattern"
        )

    def _peek(self) -> str:
        return self._pattern[self._position : self._position + 1]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._pattern, self._position)
        self._position = self._position if match is None else match.end()
        return match

    def _accept(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._position):
            return False
        self._position += len(text)
        return True

    def _parse_choice(self) -> _Choice:
        options = [self._parse_sequence()]
        while self._accept("|"):
            options.append(self._parse_sequence())
        return _Choice(tuple(options))

    def _parse_sequence(self) -> _Sequence:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._parse_repeat(self._parse_atom()))
        return _Sequence(tuple(parts))

    def _parse_group(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"more than {_MAX_DEPTH} groups inside each other")
        prefix = "="
        if self._accept("?"):
            prefix = self._peek()
            if prefix in ("=", "!"):
                self._position += 1
            elif self._accept(":") or self._match(_NAME) is not None:
                prefix = ""
            else:
                raise self._error("a look-behind or a flag")
        else:
            prefix = ""
        choice = self._parse_choice()
        if not self._accept(")"):
            raise self._error("an unclosed group")
        self._depth -= 1
        return _LookAhead(choice, prefix == "!") if prefix else choice

    def _parse_atom(self) -> _Node:
        if self._accept("("):
            return self._parse_group()
        if self._accept("["):
            return self._parse_set()
        if self._accept("."):
            return _Characters(_LINE_ENDS, negated=True)
        if self._accept("^"):
            return _Anchor(False)
        if self._accept("$"):
            return _Anchor(True)
        if self._accept("\\"):
            return self._parse_escape(inside=False)
        character = self._peek()
        if character in "*+?" or _COUNT.match(self._pattern, self._position):
            raise self._error(f"a {character} that repeats nothing")
        self._position += 1
        return self._single(character)

    def _single(self, character: str) -> _Characters:
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self._error("half a character")
        return _Characters(((ord(character), ord(character)),))

    def _parse_repeat(self, atom: _Node) -> _Node:
        count = self._match(_COUNT)
        if count is not None:
            min_count = int(count[1])
            max_count = min_count if count[2] is None else int(count[3]) if count[3] else None
            if max(min_count, max_count or 0) > _MAX_REPEATS or (max_count is not None and min_count > max_count):
                raise self._error(f"a repeat count above {_MAX_REPEATS:,}, or an empty range of counts")
        elif self._peek() in ("*", "+", "?") and self._peek():
            min_count, max_count = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._peek()]
            self._position += 1
        else:
            return atom
        if isinstance(atom, _Anchor):
            raise self._error("an anchor that repeats")
        self._accept("?")  # lazy repeats match the same strings
        return _Repeat(atom, min_count, max_count)

    def _parse_escape(self, inside: bool) -> _Characters:
        """The characters after a backslash."""
        match = self._match(_PROPERTY)
        if match is not None:
            name = _CATEGORY_NAMES.get(match[2], match[2])
            if name not in _CATEGORIES and name not in _EMOJI:
                raise self._error(f"\\p{{{match[2]}}}")
            return _Characters((), ((name, match[1] == "P"),))
        self._position -= 1
        pair = self._match(_PAIR)
        if pair is not None:
            return self._single(chr(0x10000 + (int(pair[1], 16) - 0xD800) * 0x400 + int(pair[2], 16) - 0xDC00))
        self._position += 1
        match = self._match(_HEX)
        if match is not None:
            code_point = int(match[1] or match[2] or match[3], 16)
            if code_point > _MAX_CODE_POINT or 0xD800 <= code_point < 0xE000:
                raise self._error("half a character")
            return self._single(chr(code_point))
        character = self._peek()
        self._position += 1
        if character.lower() in _CLASSES and character:
            return _Characters(_CLASSES[character.lower()], negated=character.isupper())
        if character == "0" and self._peek().isdigit():
            raise self._error("an octal escape")
        if character == "b" and inside:
            return self._single("\b")
        if character == "c" and self._peek().isascii() and self._peek().isalpha():
            self._position += 1
            return self._single(chr(ord(self._pattern[self._position - 1]) % 32))
        if character in _CONTROLS:
            return self._single(_CONTROLS[character])
        if not character or character.isalnum() or not character.isascii():
            raise self._error(f"\\{character}")
        return self._single(character)

    def _parse_set(self) -> _Characters:
        negated = self._accept("^")
        ranges: list[Range] = []
        properties: list[tuple[str, bool]] = []
        while not self._accept("]"):
            member = self._parse_member()
            ahead = self._pattern[self._position + 1 : self._position + 2]
            if self._peek() == "-" and ahead not in ("]", "") and _is_single(member):
                self._position += 1
                range_end = self._parse_member()
                if not _is_single(range_end):  # a dash before a class is literal
                    ranges.append((0x2D, 0x2D))
                elif member.ranges[0][0] > range_end.ranges[0][0]:
                    raise self._error("a range from a character to an earlier one")
                else:
                    member, range_end = _Characters(((member.ranges[0][0], range_end.ranges[0][0]),)), None
            else:
                range_end = None
            for part in (member, range_end):
                if part is not None:
                    ranges += _complement_ranges(part.ranges) if part.negated else part.ranges
                    properties += part.properties
        if not ranges and not properties and not negated:
            raise self._error("an empty set")
        return _Characters(tuple(ranges), tuple(properties), negated)

    def _parse_member(self) -> _Characters:
        character = self._peek()
        if not character:
            raise self._error("an unclosed set")
        self._position += 1
        return self._parse_escape(inside=True) if character == "\\" else self._single(character)


def _is_single(part: _Characters) -> bool:
    return len(part.ranges) == 1 and part.ranges[0][0] == part.ranges[0][1] and not part.negated and not part.properties
