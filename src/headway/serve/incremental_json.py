"""Incremental JSON: a part is recognised as belonging to an object before the rest has arrived."""

from __future__ import annotations

import re
from itertools import pairwise

_UNESCAPED = re.compile(r'[^"\\\x00-\x1f]*')  # characters in a string that need no escape
_BRACKET_PAIRS = ("{}", "[]")
_WHITESPACE = re.compile(r"[ \t\r\n]*")
# Strings, commas without a value before them, and commas without a value after them.
_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"|[{\[,:][ \t\r\n]*,|,(?=[ \t\r\n]*[}\]])', re.DOTALL)


def without_trailing_commas(text: str) -> str:
    """JSON without commas before closing brackets, which models sometimes generate."""
    return _COMMA.sub(lambda match: "" if match[0] == "," else match[0], text)


def _build_transitions() -> dict[str, dict[str, str]]:
    """The next state by state and character, except for characters that end a value (RFC 8259)."""
    digits = "0123456789"
    value = {'"': "text", "{": "first name", "[": "first item", "-": "minus", "0": "zero"}
    value |= dict.fromkeys(digits[1:], "whole")
    states = {
        "start": {"{": "first name"},
        "first name": {'"': "name"},
        "next name": {'"': "name"},
        "named": {":": "value"},
        "minus": {"0": "zero", **dict.fromkeys(digits[1:], "whole")},
        "zero": {".": "point", "e": "e", "E": "e"},
        "whole": {".": "point", "e": "e", "E": "e", **dict.fromkeys(digits, "whole")},
        "point": dict.fromkeys(digits, "fraction"),
        "fraction": {"e": "e", "E": "e", **dict.fromkeys(digits, "fraction")},
        "e": {"+": "sign", "-": "sign", **dict.fromkeys(digits, "exponent")},
        "sign": dict.fromkeys(digits, "exponent"),
        "exponent": dict.fromkeys(digits, "exponent"),
        "done": {},
    }
    for kind, end_state in (("name", "named"), ("text", "done")):
        states[kind] = {'"': end_state, "\\": f"{kind} escape"}
        states[f"{kind} escape"] = {"u": f"{kind} u", **dict.fromkeys('"\\/bfnrt', kind)}
        hexadecimal = [f"{kind} u", f"{kind} u1", f"{kind} u2", f"{kind} u3", kind]
        for state, next_state in pairwise(hexadecimal):
            states[state] = dict.fromkeys(f"{digits}abcdefABCDEF", next_state)
    for word in ("true", "false", "null"):
        value[word[0]] = word[:1]
        for count in range(1, len(word)):
            states[word[:count]] = {word[count]: "done" if count + 1 == len(word) else word[: count + 1]}
    return {**states, "value": value, "first item": value}


_TRANSITIONS = _build_transitions()
_NUMBER_STATES = ("zero", "whole", "fraction", "exponent")  # they end at any other character
_WHITESPACE_STATES = (
    "start",
    "first name",
    "next name",
    "named",
    "value",
    "first item",
    "done",
)  # where white space is allowed
_CLOSING_STATES = ("first name", "first item", "done")


class IncrementalObject:
    """A JSON object that arrives in parts. It is incomplete, or has `ended`, or has `failed` because it is invalid.
    Commas before a closing bracket are accepted, and their positions are `dropped`.
    """

    def __init__(self) -> None:
        self.ended = self.failed = False
        self.dropped: list[int] = []
        self._state = "start"
        self._brackets: list[str] = []  # open brackets

    def advance(self, text: str, position: int) -> int:
        """How far the object extends into `text`, which is already parsed up to `position`. A comma
        waits until the next character has arrived.
        """
        while position < len(text) and not self.ended:
            if self._state in ("name", "text"):
                match = _UNESCAPED.match(text, position)
                position = position if match is None else match.end()
                if position == len(text):
                    break
            if text[position] == "," and (self._state == "done" or self._state in _NUMBER_STATES):
                whitespace = _WHITESPACE.match(text, position + 1)
                next_character = text[whitespace.end() : whitespace.end() + 1] if whitespace is not None else ""
                if not next_character:
                    break
                if next_character in "}]":
                    self.dropped.append(position)
                    self._state, position = "done", position + 1
                    continue
            if not self._accept(text[position]):
                self.failed = True
                break
            position += 1
        return position

    def _accept(self, character: str) -> bool:
        """Whether the object can continue with a character."""
        if self._state in _NUMBER_STATES and character not in _TRANSITIONS[self._state]:
            self._state = "done"
        if character in " \t\r\n" and self._state in _WHITESPACE_STATES:
            return True
        if character in "}]" and self._state in _CLOSING_STATES:
            if self._brackets.pop() + character not in _BRACKET_PAIRS:
                return False
            self._state, self.ended = "done", not self._brackets
            return True
        if character == "," and self._state == "done":
            self._state = "next name" if self._brackets[-1] == "{" else "value"
            return True
        next_state = _TRANSITIONS[self._state].get(character)
        if next_state is None:
            return False
        if character in "{[":
            self._brackets.append(character)
        self._state = next_state
        return True
