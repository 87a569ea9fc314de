"""The syntax of tool calls: their end, the text before their arguments, and arguments that are not JSON."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def _value_end(following: str) -> re.Pattern[str]:
    """The end of a value. A closing tag inside a value is part of it unless `following` or the next value comes after
    it. The tag may be missing if the `next` value starts a line.
    """
    closing_tag = rf"\n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|{following}))"
    return re.compile(rf"{closing_tag}|\n(?=<parameter=(?P<next>[^>\n]+)>)")


class TagPatterns(NamedTuple):
    """Arguments between tags: the start of one, what comes after all of them, the end of a value, both also at the
    `last` call of an answer, and the end of a value in a `bare` call. An argument, or the end, has one of `starts`.
    """

    argument: re.Pattern[str]
    end: re.Pattern[str]
    last_end: re.Pattern[str]
    value_end: re.Pattern[str]
    last_value_end: re.Pattern[str]
    bare_value_end: re.Pattern[str]
    starts: tuple[str, ...]


_FUNCTION_END = re.compile(r"\s*</function>")
_GLM_VALUE_END = r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>{}))|(?P<next>(?!))"
_TAGS = {
    "coder": TagPatterns(
        re.compile(r"\s*<parameter=(?P<name>[^>\n]{1,64})>\n?"),
        _FUNCTION_END,
        _FUNCTION_END,
        _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=)"),
        _value_end(r"</function>\s*(?:</tool_call>|<tool_call>|<function=|\Z)"),
        _value_end("</function>"),
        ("<parameter=", "</function>"),
    ),
    "glm": TagPatterns(
        re.compile(r"\s*<arg_key>(?P<name>[^<\n]{1,64})</arg_key>\s*<arg_value>"),
        re.compile(r"\s*(?=</tool_call>)"),
        re.compile(r"\s*(?=</tool_call>|\Z)"),
        re.compile(_GLM_VALUE_END.format("")),
        re.compile(_GLM_VALUE_END.format(r"|\Z")),
        re.compile(_GLM_VALUE_END.format("")),
        ("<arg_key>", "</tool_call>"),
    ),
}
_ENDS = {"coder": "</function>", "glm": "</tool_call>", "braces": "}", "python": ")"}  # in complete arguments
_MAX_ARGUMENTS = 1 << 16  # characters of arguments that are not JSON, which are parsed repeatedly

ARGUMENTS = ("arguments", "parameters")  # models trained with one of them also generate the other
# Members of an object before its arguments: few characters, so that repeated matching is cheap.
_WHITESPACE = "[ \t\r\n]*"
_MEMBER = (
    rf'{_WHITESPACE}"(?:name|id|type|tool_name|tool_call_id)"{_WHITESPACE}:{_WHITESPACE}"(?:[^"\\]|\\.)*"{_WHITESPACE},'
)


def object_head(listed: bool, later: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that is an object; for a `later` call of a list, after the arguments of
    the previous one.
    """
    before = rf"{_WHITESPACE}\}}{_WHITESPACE}," if later else rf"{_WHITESPACE}\[" if listed else ""
    return re.compile(
        rf'{before}{_WHITESPACE}(?P<members>\{{(?:{_MEMBER})*){_WHITESPACE}"(?:{"|".join(ARGUMENTS)})"{_WHITESPACE}:{_WHITESPACE}'
    )


def named_call_head(prefix: str, middle_id: str, middle: str, optional: bool) -> re.Pattern[str]:
    """The text before the arguments of a call that starts with its name. An `optional` middle may be missing; without a
    middle, a bracket or a tag follows the name, or nothing yet.
    """
    if not middle:
        return re.compile(rf"\s*{re.escape(prefix)}(?P<name>[A-Za-z0-9_-]{{1,64}})\s*(?=[{{(<]|\Z)")
    call_id = f"(?:{re.escape(middle_id)}(?P<id>[A-Za-z0-9]{{9}}))?" if middle_id else ""
    separator = rf"(?:{re.escape(middle)}|(?=\s*\{{))" if optional else re.escape(middle)
    return re.compile(rf"\s*{re.escape(prefix)}(?P<name>[A-Za-z0-9_-]{{1,64}}){call_id}{separator}\s*")


def parse_arguments(
    text: str, syntax: str, quote: str, tool: Mapping[str, Any], bare: bool, final: bool
) -> tuple[int | None, str]:
    """The end of arguments at the start of a text, and the arguments as JSON. The end is None if more input is needed,
    and 0 if they are invalid. `bare` calls have no tag before them; `final` ones end an answer. `quote` surrounds
    strings in braces.
    """
    if len(text) > _MAX_ARGUMENTS:
        return 0, ""
    if not final and _ENDS[syntax] not in text:
        return None, ""
    if syntax == "braces":
        return _parse_braces(text, quote)
    if syntax == "python":
        return _parse_python(text)
    return _parse_tags(text, _TAGS[syntax], tool, bare, final)


def _parse_tags(
    text: str, tags: TagPatterns, tool: Mapping[str, Any], bare: bool, final: bool
) -> tuple[int | None, str]:
    arguments: dict[str, Any] = {}
    schema, position = mapping_member(tool, "parameters"), 0
    properties = mapping_member(schema, "properties")
    end_patterns = tags.bare_value_end if bare else tags.last_value_end if final else tags.value_end
    call_end = tags.last_end if final else tags.end
    while (closing := call_end.match(text, position)) is None:
        start = tags.argument.match(text, position)
        if start is None:
            remainder = text[position:].lstrip(SPACE)
            may_continue = any(tag.startswith(remainder[: len(tag)]) for tag in tags.starts)
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
            text[start.end() : end.start()], schema_types(mapping_member(properties, name), schema)
        )
        position = end.end()
    return closing.end(), json.dumps(arguments, ensure_ascii=False)


def _parse_braces(text: str, quote: str) -> tuple[int | None, str]:
    """Gemma's arguments: {key:value} with strings between two `quote`."""
    escaped, parts, position, depth = re.escape(quote), [], 0, 0
    lexeme = re.compile(
        rf"{escaped}(?P<text>.*?){escaped}|(?P<key>[\w.-]+)\s*(?=:)|(?P<mark>[{{}}\[\],:])|(?P<word>[\w.+-]+)|\s+",
        re.DOTALL,
    )
    while (match := lexeme.match(text, position)) is not None:
        string = match["text"] if match["text"] is not None else match["key"]
        if string is None and (word := match["word"]) and word not in _JSON_NAMES and not _NUMBER.fullmatch(word):
            string = word
        parts.append(match["word"] or match["mark"] or "" if string is None else json.dumps(string))
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match["mark"] or "", 0)
        position = match.end()
        if depth <= 0 and match["mark"] is not None:
            return (position, "".join(parts)) if text[position - 1] == "}" else (0, "")
    remainder = text[position:]
    return (None if remainder.startswith(quote) or quote.startswith(remainder) else 0), ""


def _parse_python(text: str) -> tuple[int | None, str]:
    """The arguments of a Python call: (name=value, ...), where values are literals of Python or JSON."""
    depth, stop = 0, 0
    for match in _PYTHON_LEXEME.finditer(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(match[0], 0)
        if match[0] in "'\"":  # a string that has not ended
            break
        if depth <= 0:
            stop = match.end()
            break
    if not stop:
        return None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in strings
            call = ast.parse(f"f{text[:stop]}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return 0, ""
        arguments = {keyword.arg or "": _literal(keyword.value) for keyword in call.keywords}
        return (0 if "" in arguments else stop), json.dumps(arguments, ensure_ascii=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0, ""


def _literal(node: ast.expr) -> Any:
    """The value of a literal. ValueError for other expressions."""
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_literal(key or node)): _literal(value) for key, value in zip(node.keys, node.values)}
    value = ast.literal_eval(node)
    if value is not None and not isinstance(value, (str, int, float)):
        raise ValueError
    return value


def mapping_member(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A member of an unchecked schema, or an empty one."""
    member = schema.get(name)
    return member if isinstance(member, Mapping) else {}


def schema_types(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 8) -> set[str]:
    """The types in a schema, including its alternatives."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/") and depth:
        result = root
        for part in reference[2:].split("/"):
            result = mapping_member(result, part)
        return schema_types(result, root, depth - 1)
    type_names = schema.get("type", ())
    result = {type_names} if isinstance(type_names, str) else {kind for kind in type_names if isinstance(kind, str)}
    for name in ("anyOf", "oneOf"):
        alternatives = schema.get(name)
        for alternative in alternatives if isinstance(alternatives, list) and depth else ():
            result |= schema_types(alternative, root, depth - 1) if isinstance(alternative, Mapping) else set()
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
_JSON_NAMES = {"true": True, "false": False, "null": None}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_PYTHON_LEXEME = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|[()\[\]{}'"]""", re.DOTALL)
_STRING, _STRUCTURE = re.compile(r'[\\"]'), re.compile(r'["{}\[\]]')


def may_start(text: str, starts: tuple[str, ...]) -> bool:
    return any(text.startswith(start) or start.startswith(text) for start in starts)
