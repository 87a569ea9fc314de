"""Incremental JSON: a part is known to belong to an object before the rest has arrived."""

from __future__ import annotations

import re
from itertools import pairwise

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # characters of a string that need no escape
_CLOSED = ("{}", "[]")
_GAP = re.compile(r"[ \t\r\n]*")
# Strings, commas without a value before them, and commas without a value after them.
_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"|[{\[,:][ \t\r\n]*,|,(?=[ \t\r\n]*[}\]])', re.DOTALL)


def without_trailing_commas(text: str) -> str:
    """JSON without commas before closing brackets, which models sometimes generate."""
    return _COMMA.sub(lambda found: "" if found[0] == "," else found[0], text)


def _states() -> dict[str, dict[str, str]]:
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
    for kind, after in (("name", "named"), ("text", "done")):
        states[kind] = {'"': after, "\\": f"{kind} escape"}
        states[f"{kind} escape"] = {"u": f"{kind} u", **dict.fromkeys('"\\/bfnrt', kind)}
        hexadecimal = [f"{kind} u", f"{kind} u1", f"{kind} u2", f"{kind} u3", kind]
        for now, then in pairwise(hexadecimal):
            states[now] = dict.fromkeys(f"{digits}abcdefABCDEF", then)
    for word in ("true", "false", "null"):
        value[word[0]] = word[:1]
        for count in range(1, len(word)):
            states[word[:count]] = {word[count]: "done" if count + 1 == len(word) else word[: count + 1]}
    return {**states, "value": value, "first item": value}


_STATES = _states()
_NUMBERS = ("zero", "whole", "fraction", "exponent")  # they end at any other character
_BETWEEN = ("start", "first name", "next name", "named", "value", "first item", "done")  # where white space is allowed
_CLOSING = ("first name", "first item", "done")


class FollowedObject:
    """A JSON object that arrives in parts. It is incomplete, or has `ended`, or has `failed` because it is invalid.
    Commas before a closing bracket are accepted, and their positions are `dropped`.
    """

    def __init__(self) -> None:
        self.ended = self.failed = False
        self.dropped: list[int] = []
        self._state = "start"
        self._open: list[str] = []  # brackets

    def go_on(self, text: str, place: int) -> int:
        """The position up to which the object reaches in `text`, which is already parsed before `position`. A comma
        waits until the next character has arrived.
        """
        while place < len(text) and not self.ended:
            if self._state in ("name", "text"):
                plain = _PLAIN.match(text, place)
                place = place if plain is None else plain.end()
                if place == len(text):
                    break
            if text[place] == "," and (self._state == "done" or self._state in _NUMBERS):
                gap = _GAP.match(text, place + 1)
                after = text[gap.end() : gap.end() + 1] if gap is not None else ""
                if not after:
                    break
                if after in "}]":
                    self.dropped.append(place)
                    self._state, place = "done", place + 1
                    continue
            if not self._take(text[place]):
                self.failed = True
                break
            place += 1
        return place

    def _take(self, character: str) -> bool:
        """Whether the object can continue with a character."""
        if self._state in _NUMBERS and character not in _STATES[self._state]:
            self._state = "done"
        if character in " \t\r\n" and self._state in _BETWEEN:
            return True
        if character in "}]" and self._state in _CLOSING:
            if self._open.pop() + character not in _CLOSED:
                return False
            self._state, self.ended = "done", not self._open
            return True
        if character == "," and self._state == "done":
            self._state = "next name" if self._open[-1] == "{" else "value"
            return True
        following = _STATES[self._state].get(character)
        if following is None:
            return False
        if character in "{[":
            self._open.append(character)
        self._state = following
        return True
