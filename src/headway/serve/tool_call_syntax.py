"""The syntax of tool calls: their end, the text before their arguments, and their values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from headway.serve.incremental_json import without_trailing_commas

SPACE = " \t\r\n"
MAX_HEAD_LENGTH = 200  # maximum characters before a call's arguments
FUNCTION_TAG = "<function="  # start of a Qwen3-Coder call


class JsonScanner:
    """Finds the end of a JSON value in a growing text."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self._position = 0
        self._depth = 0
        self._in_string = False

    def advance(self, text: str, first: str, starts: tuple[str, ...]) -> int | None:
        """The end of the value in `text`, or 0 if it is clearly not a call; None if more input is needed."""
        if self.stop is not None:
            return self.stop
        start = text[:_MAX_START].lstrip(SPACE)
        if start and (start[0] != first or not may_start(start.lstrip("[" + SPACE)[1:].lstrip(SPACE), starts)):
            return 0
        while self._position < len(text):
            match = (_STRING if self._in_string else _STRUCTURE).search(text, self._position)
            if match is None:
                self._position = len(text)
                return None
            character = match[0]
            if character == "\\":
                if match.end() == len(text):  # the escaped character has not arrived
                    self._position = match.start()
                    return None
                self._position = match.end() + 1
                continue
            self._position = match.end()
            if character == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if character in "{[" else -1
                if self._depth <= 0:
                    self.stop = self._position
                    return self.stop
        return None


def end_of_tags(text: str, position: int, tags: Sequence[str], final: bool) -> int | None:
    """The position after consecutive tags with white space between them; -1 if other text is there, None if more input
    is needed.
    """
    for tag in filter(None, tags):
        remainder = text[position:].lstrip(SPACE)
        if remainder.startswith(tag):
            position = len(text) - len(remainder) + len(tag)
        elif tag.startswith(remainder):
            return len(text) if final else None
        else:
            return -1
    return position


TAGGED_CALL = re.compile(r"\s*<function=(?P<name>[A-Za-z0-9_-]{1,64})>")
_ARGUMENT = re.compile(r"\s*<parameter=(?P<name>[^>\n]{1,64})>\n?")
_FUNCTION_END = re.compile(r"\s*</function>")


def _value_end(following: str) -> re.Pattern[str]:
    """The end of a value. A closing tag inside a value is part of it unless `following` or the next value comes after
    it. The tag may be missing if the `next` value starts a line.
    """
    closing_tag = rf"\n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|{following}))"
    return re.compile(rf"{closing_tag}|\n(?=<parameter=(?P<next>[^>\n]+)>)")


_VALUE_END = _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=)")
_LAST_VALUE_END = _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=|\Z)")  # at the end of an answer
_BARE_VALUE_END = _value_end("</function>")  # without <tool_call> before it

ARGUMENTS = ("arguments", "parameters")  # models trained with one of them also generate the other
# Members of an object before its arguments: few characters, so that repeated matching is cheap.
_WHITESPACE = "[ \t\r\n]*"
_MEMBER = rf'{_WHITESPACE}"(?:name|id|type)"{_WHITESPACE}:{_WHITESPACE}"(?:[^"\\]|\\.)*"{_WHITESPACE},'


def object_head(listed: bool, later: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that is an object; for a `later` call of a list, after the arguments of
    the previous one.
    """
    before = rf"{_WHITESPACE}\}}{_WHITESPACE}," if later else rf"{_WHITESPACE}\[" if listed else ""
    return re.compile(
        rf'{before}{_WHITESPACE}(?P<members>\{{(?:{_MEMBER})*){_WHITESPACE}"(?:{"|".join(ARGUMENTS)})"{_WHITESPACE}:{_WHITESPACE}'
    )


def named_call_head(prefix: str, middle_id: str, middle: str, optional: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that starts with its name. An `optional` middle may be missing."""
    call_id = f"(?:{re.escape(middle_id)}(?P<id>[A-Za-z0-9]{{9}}))?" if middle_id else ""
    separator = rf"(?:{re.escape(middle)}|(?=\s*\{{))" if optional else re.escape(middle)
    return re.compile(rf"\s*{re.escape(prefix)}(?P<name>[A-Za-z0-9_-]{{1,64}}){call_id}{separator}\s*")


def parse_tagged_arguments(text: str, tool: Mapping[str, Any], bare: bool, final: bool) -> tuple[int | None, str]:
    """The end of Qwen3-Coder's arguments, after </function>, and the arguments as JSON. The end is None if more input
    is needed, and 0 without arguments. `bare` calls have no <tool_call> before them; `final` ones end an answer.
    """
    arguments: dict[str, Any] = {}
    schema, position = _mapping_member(tool, "parameters"), 0
    properties = _mapping_member(schema, "properties")
    end_patterns = _BARE_VALUE_END if bare else _LAST_VALUE_END if final else _VALUE_END
    while (closing := _FUNCTION_END.match(text, position)) is None:
        start = _ARGUMENT.match(text, position)
        if start is None:
            remainder = text[position:].lstrip(SPACE)
            may_continue = any(tag.startswith(remainder[: len(tag)]) for tag in ("<parameter=", "</function>"))
            return (None if may_continue and len(remainder) <= MAX_HEAD_LENGTH else 0), ""
        name = start["name"]
        missing = {*properties} - {*arguments, name}
        # The first end of the value; without a closing tag, a missing argument must follow.
        end = next(
            (e for e in end_patterns.finditer(text, start.end()) if e["next"] is None or e["next"] in missing), None
        )
        if end is None:
            return None, ""
        arguments[name] = _parse_value(
            text[start.end() : end.start()], _schema_types(_mapping_member(properties, name), schema)
        )
        position = end.end()
    return closing.end(), json.dumps(arguments, ensure_ascii=False)


def _mapping_member(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member of an unchecked schema, or an empty one."""
    member = schema.get(name)
    return member if isinstance(member, Mapping) else {}


def _schema_types(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 8) -> set[str]:
    """The types in a schema, including its alternatives."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/") and depth:
        result = root
        for part in reference[2:].split("/"):
            result = _mapping_member(result, part)
        return _schema_types(result, root, depth - 1)
    type_names = schema.get("type", ())
    result = {type_names} if isinstance(type_names, str) else {kind for kind in type_names if isinstance(kind, str)}
    for name in ("anyOf", "oneOf"):
        alternatives = schema.get(name)
        for alternative in alternatives if isinstance(alternatives, list) and depth else ():
            result |= _schema_types(alternative, root, depth - 1) if isinstance(alternative, Mapping) else set()
    return result


def _parse_value(text: str, types: set[str]) -> Any:
    """Plain text as a value of one of these schema types, or the text itself."""
    word = text.strip().lower()
    if "null" in types and word == "null":
        return None
    if not types or "string" in types:
        return text
    try:
        json_text = word if "boolean" in types and word in ("true", "false") else without_trailing_commas(text)
        return json.loads(json_text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        return text


_MAX_START = 80  # characters that show whether a call starts
_STRING, _STRUCTURE = re.compile(r'[\\"]'), re.compile(r'["{}\[\]]')


def may_start(text: str, starts: tuple[str, ...]) -> bool:
    return any(text.startswith(start) or start.startswith(text) for start in starts)


def partial_tag_length(text: str, tag: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)
