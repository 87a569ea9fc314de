"""The syntax of tool calls: their end, the text before their arguments, and their values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headway.serve.following import without_trailing_commas

SPACE = " \t\r\n"
LONGEST_HEAD = 200  # maximum characters before the arguments of a call
FUNCTION = "<function="  # start of a Qwen3-Coder call


class Scan:
    """Finds the end of a JSON value in a growing text."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self._place = 0
        self._depth = 0
        self._in_string = False

    def go_on(self, text: str, first: str, heads: tuple[str, ...]) -> int | None:
        """The end of the value in `text`, or 0 if it is clearly not a call; None if more input is needed."""
        if self.stop is not None:
            return self.stop
        start = text[:_HEAD].lstrip(SPACE)
        if start and (start[0] != first or not may_begin(start.lstrip("[" + SPACE)[1:].lstrip(SPACE), heads)):
            return 0
        while self._place < len(text):
            match = (_STRING if self._in_string else _OPEN).search(text, self._place)
            if match is None:
                self._place = len(text)
                return None
            mark = match[0]
            if mark == "\\":
                if match.end() == len(text):  # the escaped character has not arrived
                    self._place = match.start()
                    return None
                self._place = match.end() + 1
                continue
            self._place = match.end()
            if mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth <= 0:
                    self.stop = self._place
                    return self.stop
        return None


def tail(text: str, place: int, marks: Sequence[str], final: bool) -> int | None:
    """The position after consecutive tags with white space between them; -1 if other text is there, None if more input
    is needed.
    """
    for mark in filter(None, marks):
        rest = text[place:].lstrip(SPACE)
        if rest.startswith(mark):
            place = len(text) - len(rest) + len(mark)
        elif mark.startswith(rest):
            return len(text) if final else None
        else:
            return -1
    return place


TAGGED = re.compile(r"\s*<function=(?P<name>[A-Za-z0-9_-]{1,64})>")
_ARGUMENT = re.compile(r"\s*<parameter=(?P<name>[^>\n]{1,64})>\n?")
_FUNCTION_END = re.compile(r"\s*</function>")


def _value_end(behind: str) -> re.Pattern[str]:
    """The end of a value. A closing tag inside a value is part of it unless `following` or the next value comes after
    it. The tag may be missing if the `next` value starts a line.
    """
    own = rf"\n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|{behind}))"
    return re.compile(rf"{own}|\n(?=<parameter=(?P<next>[^>\n]+)>)")


_VALUE_END = _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=)")
_LAST_VALUE_END = _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=|\Z)")  # at the end of an answer
_BARE_VALUE_END = _value_end("</function>")  # without <tool_call> before it

ARGUMENTS = ("arguments", "parameters")  # models trained with one of them also generate the other
# Members of an object before its arguments: few characters, so that repeated matching is cheap.
_GAP = "[ \t\r\n]*"
_MEMBER = rf'{_GAP}"(?:name|id|type)"{_GAP}:{_GAP}"(?:[^"\\]|\\.)*"{_GAP},'


def object_head(listed: bool, later: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that is an object; for a `later` call of a list, after the arguments of
    the previous one.
    """
    before = rf"{_GAP}\}}{_GAP}," if later else rf"{_GAP}\[" if listed else ""
    return re.compile(rf'{before}{_GAP}(?P<members>\{{(?:{_MEMBER})*){_GAP}"(?:{"|".join(ARGUMENTS)})"{_GAP}:{_GAP}')


def head(prefix: str, middle_id: str, middle: str, optional: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that starts with its name. An `optional` middle may be missing."""
    own = f"(?:{re.escape(middle_id)}(?P<id>[A-Za-z0-9]{{9}}))?" if middle_id else ""
    between = rf"(?:{re.escape(middle)}|(?=\s*\{{))" if optional else re.escape(middle)
    return re.compile(rf"\s*{re.escape(prefix)}(?P<name>[A-Za-z0-9_-]{{1,64}}){own}{between}\s*")


def tagged(text: str, tool: Mapping[str, Any], bare: bool, final: bool) -> tuple[int | None, str]:
    """The end of Qwen3-Coder's arguments, after </function>, and the arguments as JSON. The end is None if more input
    is needed, and 0 without arguments. `bare` calls have no <tool_call> before them; `final` ones end an answer.
    """
    found: dict[str, Any] = {}
    schema, place = _inside(tool, "parameters"), 0
    properties = _inside(schema, "properties")
    ends = _BARE_VALUE_END if bare else _LAST_VALUE_END if final else _VALUE_END
    while (ending := _FUNCTION_END.match(text, place)) is None:
        begin = _ARGUMENT.match(text, place)
        if begin is None:
            rest = text[place:].lstrip(SPACE)
            going = any(mark.startswith(rest[: len(mark)]) for mark in ("<parameter=", "</function>"))
            return (None if going and len(rest) <= LONGEST_HEAD else 0), ""
        name = begin["name"]
        others = {*properties} - {*found, name}
        # The first end of the value; without a closing tag, a missing argument must follow.
        end = next((e for e in ends.finditer(text, begin.end()) if e["next"] is None or e["next"] in others), None)
        if end is None:
            return None, ""
        found[name] = _value(text[begin.end() : end.start()], _types(_inside(properties, name), schema))
        place = end.end()
    return ending.end(), json.dumps(found, ensure_ascii=False)


def _inside(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member of an unchecked schema, or an empty one."""
    found = schema.get(name)
    return found if isinstance(found, Mapping) else {}


def _types(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 8) -> set[str]:
    """The types in a schema, including its alternatives."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/") and depth:
        found = root
        for part in reference[2:].split("/"):
            found = _inside(found, part)
        return _types(found, root, depth - 1)
    kinds = schema.get("type", ())
    found = {kinds} if isinstance(kinds, str) else {kind for kind in kinds if isinstance(kind, str)}
    for name in ("anyOf", "oneOf"):
        others = schema.get(name)
        for other in others if isinstance(others, list) and depth else ():
            found |= _types(other, root, depth - 1) if isinstance(other, Mapping) else set()
    return found


def _value(text: str, types: set[str]) -> Any:
    """A plain text as a value of these types of a schema, or the text itself."""
    word = text.strip().lower()
    if "null" in types and word == "null":
        return None
    if not types or "string" in types:
        return text
    try:
        plain = word if "boolean" in types and word in ("true", "false") else without_trailing_commas(text)
        return json.loads(plain, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        return text


_HEAD = 80  # characters that show whether a call starts
_STRING, _OPEN = re.compile(r'[\\"]'), re.compile(r'["{}\[\]]')


def may_begin(text: str, heads: tuple[str, ...]) -> bool:
    return any(text.startswith(head) or head.startswith(text) for head in heads)


def overlap(text: str, mark: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `tag`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
