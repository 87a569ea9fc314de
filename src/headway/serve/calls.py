"""How published models write calls of tools, and the calls that are read from what they write.

Hermes and Qwen put a JSON object between <tool_call> and </tool_call>, Mistral a list of them behind [TOOL_CALLS],
Llama 3 an object with name and parameters at the start of an answer or behind <|python_tag|>. Newer ones of Mistral
and those of DeepSeek write the name and then the arguments as JSON, with marks between them; Qwen3-Coder writes each
argument as plain text between marks of its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from headway.serve.following import FollowedObject


@dataclass(frozen=True)
class CallFormat:
    """Where a call begins and ends, and what its arguments are called.

    `opening` and `closing` are texts; where they are special symbols, which no text shows, `opening_symbol` and
    `closing_symbol` are their ids. `listed` calls are in one list. `bare` ones may stand at the start of an answer.
    `named` ones are no JSON objects: behind the texts of `prefix` stands the name, in some an id behind `middle_id`,
    then the arguments behind `middle`, and `suffix`; those without a `middle` are written as Qwen3-Coder does. `inner`
    has the special symbols among these marks, by their texts. `around` stands around all calls and says nothing.
    """

    opening: str
    closing: str
    arguments: str
    listed: bool = False
    bare: bool = False
    opening_symbol: int | None = None
    closing_symbol: int | None = None
    named: bool = False
    prefix: Sequence[str] = ()
    middle: str = ""
    middle_id: str = ""
    suffix: str = ""
    around: Sequence[str] = ()
    inner: Mapping[str, int] = field(default_factory=dict)


class ToolCall(NamedTuple):
    """A call: its id, the tool's name and a JSON object as it was written; "" where `Arguments` follow."""

    id: str
    name: str
    arguments: str


class Arguments(NamedTuple):
    """More of the arguments of the last call."""

    text: str


Part = str | ToolCall | Arguments  # of an answer


def calls_grammar(form: CallFormat, tools: Sequence[tuple[str, str, list[str]]], required: bool, parallel: bool) -> str:
    """A lark grammar of answers in which all calls are of these tools: names, and rules of their arguments.

    Unless a call is `required`, any text may come before it or in its stead.
    """
    opening, closing = _mark(form.opening, form.opening_symbol), _mark(form.closing, form.closing_symbol)
    lines = ["TEXT: /(.|\\n)*/"]
    bodies = []
    for i, (name, start, rules) in enumerate(tools):
        lines += [f"arguments{i}: {start}", *rules]
        if form.named:
            bodies.append(_named(form, name, f"arguments{i}"))
            continue
        before = json.dumps(f'{{"name": {json.dumps(name)}, "{form.arguments}": ')
        bodies.append(f'{before} arguments{i} "}}"')
    lines.append(f"object: {' | '.join(bodies)}")
    if form.bare:
        if required:
            return "\n".join(["start: object", *lines])
        return "\n".join(
            [f"start: PLAIN | {opening}? object", "PLAIN: /[ \\n\\r\\t]*([^ \\n\\r\\t{](.|\\n)*)?/", *lines]
        )
    if form.listed:
        others = '(", " object)*' if parallel else ""
        lines.append(f'list: {opening} " "? "[" object {others} "]"')
        return "\n".join([f"start: {'list' if required else 'TEXT | TEXT list'}", *lines])
    if form.named:
        lines.append(f"call: {opening} object {closing if form.closing else ''}")
        return "\n".join([f"start: {'' if required else 'TEXT | TEXT '}call{'+' if parallel else ''}", *lines])
    lines.append(f'call: {opening} "\\n" object "\\n" {closing}')
    if required:
        return "\n".join([f"start: call{' (NEXT call)*' if parallel else ''}", 'NEXT: "\\n"', *lines])
    if form.opening_symbol is None:
        lines += [f"head[lazy]: TEXT {opening}", f'after: head "\\n" object "\\n" {closing}']
    else:
        lines.append("after: TEXT call")
    return "\n".join([f"start: {'after* rest' if parallel else 'rest | after'}", "rest: TEXT", *lines])


def _mark(text: str, symbol: int | None) -> str:
    return json.dumps(text) if symbol is None else f"<[{symbol}]>"


def _named(form: CallFormat, name: str, arguments: str) -> str:
    """What a grammar says of a call of this name."""
    parts = [*form.prefix, name, *([form.middle_id] if form.middle_id else [])]
    marks = [_mark(part, form.inner.get(part)) for part in parts]
    own = ["/[A-Za-z0-9]{9}/"] if form.middle_id else []
    suffix = [_mark(form.suffix, None)] if form.suffix else []
    return " ".join([*marks, *own, _mark(form.middle, form.inner.get(form.middle)), arguments, *suffix])


_SPACE = " \t\r\n"
_ID = re.compile("[A-Za-z0-9]{9}")  # as Mistral's templates want it


@dataclass
class _Begun:
    """A call that was handed over before it ended, and where its arguments stand in the text that is held."""

    name: str
    start: int
    stop: int
    followed: FollowedObject = field(default_factory=FollowedObject)


class CallReader:
    """Reads the text of an answer as it arrives: what is said, and the calls of tools once they are whole.

    A mark is held back while it may be one, and a call until it ends. A mark inside a string of JSON is part of the
    string. What begins as a call and is none is said as it stands.

    With `pieces` a call is handed over once its name is known among the tools and an object begins behind it, and then
    its arguments as they come, as long as they are JSON. One that turns out to be no call is `broken`: its arguments
    stay what they are, and what stands behind them is said. Where a name follows its arguments, or these are no JSON
    as they come, a call is handed over whole all the same.
    """

    def __init__(
        self,
        form: CallFormat,
        tools: Mapping[str, Mapping[str, Any]],
        parallel: bool = True,
        pieces: bool = False,
    ) -> None:
        """`tools` are those that may be called, by name; without `parallel` the first call is the last that is read."""
        self.calls = 0  # that are whole
        self.broken = False
        self._form = form
        self._tools = tools
        self._inner = {symbol: text for text, symbol in form.inner.items()}
        self._parallel = parallel
        # A list that may hold one call alone is judged as a whole.
        self._pieces = pieces and (parallel or not form.listed)
        self._begun: list[_Begun] = []  # of the calls that are being read
        self._held = ""
        self._mark = ""  # how the mark of the call that is being read was written
        self._inside = False
        self._first = form.bare  # a call may begin without a mark
        self._closed = False  # by a symbol
        self._scan = _Scan()

    @property
    def full(self) -> bool:
        """Whether no more calls are read, so that nothing more need be written."""
        return self.calls > 0 and not self._parallel

    def push(self, text: str, symbol: int | None = None) -> list[Part]:
        """What is certain after a symbol and the text that it completed, in order."""
        found: list[Part] = []
        if symbol is not None and symbol == self._form.opening_symbol and not self.full:
            if self._inside:
                found += self.flush()
            found += self._begin(len(self._held))
        elif symbol is not None and symbol == self._form.closing_symbol and self._inside:
            self._closed = True
        elif self._inside:
            self._held += self._inner.get(-1 if symbol is None else symbol, "")
        self._held += text
        more: Sequence[Part] | None = ()
        while more is not None:
            found += [*more, *self._follow()]
            more = self._inside_call() if self._inside else self._outside()
        return found

    def flush(self) -> list[Part]:
        """What is still held back, at the end of an answer."""
        found: list[ToolCall] = []
        if self._inside and self._form.named:
            found = (self._named_call(final=True) or ([], 0))[0]
        elif self._inside and self._scan.stop is not None:  # whole but for its closing mark
            rest = self._held[self._scan.stop :].strip(_SPACE)
            found = self._calls(self._held[: self._scan.stop]) if self._form.closing.startswith(rest) else []
        if not self._agrees(found):
            self._break()
        elif found:
            self._held = self._mark = ""
        rest, new = self._mark + self._held, self._ended(found)
        self._held = ""
        between = (self.calls > 0 or self.broken) and not rest.strip(_SPACE)
        return [*new, *([rest] if rest and not between else [])]

    def _follow(self) -> list[Part]:
        """What is new of the arguments of calls that are not whole yet."""
        found: list[Part] = []
        while self._inside and self._pieces:
            if not self._begun or self._begun[-1].followed.ended:
                call = self._next_call()
                if call is None:
                    break
                found.append(call)
            last = self._begun[-1]
            stop = last.followed.go_on(self._held, last.stop)
            if stop > last.stop:
                found.append(Arguments(self._held[last.stop : stop]))
            last.stop = stop
            if last.followed.failed:
                self._break()
            elif not last.followed.ended:
                break
        return found

    def _next_call(self) -> ToolCall | None:
        """The call whose arguments begin next; None where that is not clear, or not yet."""
        form, held, given = self._form, self._held, ""
        if self._begun and not form.listed:
            return None
        if form.named:
            head = _head(form).match(held) if form.middle else None
            name = "" if head is None else head["name"]
            given = "" if head is None else head.groupdict().get("id") or ""
        else:
            place = self._begun[-1].stop if self._begun else 0
            head = _object_head(form, bool(self._begun)).match(held, place, place + _LONGEST_HEAD)
            try:
                members = {} if head is None else msgspec.json.decode(head["members"] + '"":""}', type=dict[str, str])
            except (msgspec.MsgspecError, UnicodeError):
                return None
            name, given = members.get("name", ""), members.get("id", "")
        if head is None or name not in self._tools or held[head.end() : head.end() + 1] != "{":
            return None
        self._begun.append(_Begun(name, head.end(), head.end()))
        return ToolCall(self._id(given), name, "")

    def _agrees(self, found: Sequence[ToolCall]) -> bool:
        """Whether calls are those that were handed over already, and more."""
        begun = [(each.name, self._held[each.start : each.stop]) for each in self._begun]
        return [(call.name, call.arguments) for call in found[: len(begun)]] == begun

    def _break(self) -> None:
        """What was handed over in pieces is no call: the rest is read on as text."""
        self._held, self._mark = self._held[self._begun[-1].stop :], ""
        self._inside = self._first = False
        self._begun, self.broken = [], True

    def _ended(self, found: list[ToolCall]) -> list[ToolCall]:
        """Calls that have ended, without those that were handed over already."""
        new, self._begun, self._mark, self._inside = found[len(self._begun) :], [], "", False
        self.calls += len(found)
        return new

    def _begin(self, place: int, mark: str = "") -> list[Part]:
        """A call begins at a place of the text that is held; what was said before it."""
        said = self._held[:place].rstrip(_SPACE)
        # White space before a call is no part of what is said, but is, if it is none.
        self._mark, self._held = self._held[len(said) : place] + mark, self._held[place + len(mark) :]
        self._inside, self._closed, self._scan = True, False, _Scan()
        return [said] if said else []

    def _outside(self) -> list[Part] | None:
        """What the text that is held says next; None where more must come."""
        form, held = self._form, self._held
        for mark in form.around:
            if mark in held:
                held = self._held = held.replace(mark, "")
        start = held.lstrip(_SPACE + ";" if self.calls else _SPACE)
        if not start:
            return None
        if self._first and not self.full:
            if start[0] == "{":
                self._begin(len(held) - len(start))
                return []
            self._first = False
        certain = len(held)
        if form.opening_symbol is None and not self.full:
            place = held.find(form.opening)
            if place >= 0:
                return self._begin(place, form.opening)
            certain -= max(_overlap(held, mark) for mark in (form.opening, *form.around))
        said = held[:certain].rstrip(_SPACE)
        self._held = held[len(said) :]
        return [said] if said else None

    def _inside_call(self) -> Sequence[Part] | None:
        form = self._form
        if form.named:
            return self._inside_named()
        stop = self._scan.go_on(self._held, "[" if form.listed else "{", self._heads())
        if stop is None:
            return None
        found, rest = self._calls(self._held[:stop]), self._held[stop:].lstrip(_SPACE)
        if not found or not self._agrees(found):
            return self._none()
        if form.closing_symbol is not None and not self._closed:
            return None if not rest else self._none()
        if form.closing_symbol is None and not rest.startswith(form.closing):
            return None if form.closing.startswith(rest) else self._none()
        closing = len(form.closing) if form.closing_symbol is None else 0
        after = rest[closing:] if form.closing else self._held[stop:]
        new, self._held = self._ended(found), after
        self._first = form.bare
        return new

    def _inside_named(self) -> Sequence[Part] | None:
        read = self._named_call()
        if read is None:
            return None
        found, end = read
        if not found or not self._agrees(found):
            return self._none()
        new, self._held = self._ended(found), self._held[end:]
        return new

    def _named_call(self, final: bool = False) -> tuple[list[ToolCall], int] | None:
        """The call with which the text that is held begins, and where it ends; none where it is no call; None where
        more must come. At the end of an answer the closing mark may be missing.
        """
        form, held = self._form, self._held
        head = (_TAGGED if not form.middle else _head(form)).match(held)
        if head is None:
            return ([], 0) if final or len(held) > _LONGEST_HEAD or "{" in held else None
        name, given = head["name"], head.groupdict().get("id")
        if name not in self._tools:
            return [], 0
        if form.middle:
            stop = self._scan.go_on(held[head.end() :], "{", ('"', "}"))
            arguments = held[head.end() :][:stop] if stop else ""
        else:
            whole = final or "</function>" in held
            stop, arguments = _tagged(held[head.end() :], self._tools[name]) if whole else (None, "")
        if not stop:
            return None if stop is None and not final else ([], 0)
        closing = form.closing if form.closing_symbol is None else ""
        end = _tail(held, head.end() + stop, [form.suffix, closing], final)
        if end is not None and end >= 0 and form.closing_symbol is not None and not (self._closed or final):
            end = -1 if held[end:].strip(_SPACE) else None
        if end is None:
            return None
        try:
            msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return [], 0
        return ([ToolCall(self._id(given), name, arguments)], end) if end >= 0 else ([], 0)

    def _id(self, given: Any) -> str:
        """The id of a call: the one that the model gave it, where it is one."""
        if isinstance(given, str) and _ID.fullmatch(given):
            return given
        short = self._form.listed or self._form.middle == "[ARGS]"
        return secrets.token_hex(5)[:9] if short else f"call_{secrets.token_hex(12)}"

    def _none(self) -> list[Part]:
        """It was no call: its mark is said, and what follows is read on."""
        if self._begun:
            self._break()
            return []
        self._inside = self._first = False
        mark, self._mark = self._mark, ""
        if mark.endswith(self._form.opening):
            return [mark]
        self._held = mark + self._held
        return []

    def _heads(self) -> tuple[str, ...]:
        """How an object that is a call may begin, behind its brace."""
        return ('"name"', f'"{self._form.arguments}"', '"id"', '"type"')

    def _calls(self, text: str) -> list[ToolCall]:
        """The calls that a JSON value is; none where it is anything else."""
        form = self._form
        try:
            items = msgspec.json.decode(
                text, type=list[dict[str, msgspec.Raw]] if form.listed else dict[str, msgspec.Raw]
            )
            found: list[ToolCall] = []
            for item in items if isinstance(items, list) else [items]:
                name = msgspec.json.decode(item["name"], type=str)
                arguments = bytes(item[form.arguments]).decode()
                if name not in self._tools or not set(item) <= {"name", form.arguments, "id", "type"}:
                    return []
                msgspec.json.decode(arguments, type=dict[str, Any])
                given = msgspec.json.decode(item.get("id", b'""'))
                found.append(ToolCall(self._id(given), name, arguments))
        except (msgspec.MsgspecError, KeyError, RecursionError, UnicodeError):
            return []
        return found if self._parallel or len(found) == 1 else []


class _Scan:
    """Finds where a JSON value ends, in a text that grows."""

    def __init__(self) -> None:
        self.stop: int | None = None
        self._place = 0
        self._depth = 0
        self._in_string = False

    def go_on(self, text: str, first: str, heads: tuple[str, ...]) -> int | None:
        """The end of the value in `text`, also where it is clear that it is no call; None where more must come."""
        if self.stop is not None:
            return self.stop
        start = text[:_HEAD].lstrip(_SPACE)
        if start and (start[0] != first or not _may_begin(start.lstrip("[" + _SPACE)[1:].lstrip(_SPACE), heads)):
            return 0
        while self._place < len(text):
            match = (_STRING if self._in_string else _OPEN).search(text, self._place)
            if match is None:
                self._place = len(text)
                return None
            mark = match[0]
            if mark == "\\":
                if match.end() == len(text):  # what it escapes is still to come
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


def _tail(text: str, place: int, marks: Sequence[str], final: bool) -> int | None:
    """The place behind marks that follow each other, white space between them; -1 where something else stands there,
    None where more must come.
    """
    for mark in filter(None, marks):
        rest = text[place:].lstrip(_SPACE)
        if rest.startswith(mark):
            place = len(text) - len(rest) + len(mark)
        elif mark.startswith(rest):
            return len(text) if final else None
        else:
            return -1
    return place


_LONGEST_HEAD = 200  # characters before the arguments of a call
_TAGGED = re.compile(r"\s*<function=(?P<name>[A-Za-z0-9_-]{1,64})>")
_ARGUMENT = re.compile(r"\s*<parameter=(?P<name>[^>\n]{1,64})>\n?")
# A mark in a value is a part of it, unless what comes behind a value follows.
_VALUE_END = re.compile(r"\n?</parameter>(?=\s*(?:<parameter=[^>\n]+>|</function>\s*</tool_call>))")
_FUNCTION_END = re.compile(r"\s*</function>")


# What may stand in an object before the arguments: few characters, so that looking for them again takes no time.
_GAP = "[ \t\r\n]*"
_MEMBER = rf'{_GAP}"(?:name|id|type)"{_GAP}:{_GAP}"(?:[^"\\]|\\.)*"{_GAP},'


def _object_head(form: CallFormat, later: bool) -> re.Pattern[str]:
    """What stands before the arguments of a call that is an object; of a `later` one of a list, behind those of the
    one before it.
    """
    before = rf"{_GAP}\}}{_GAP}," if later else rf"{_GAP}\[" if form.listed else ""
    return re.compile(rf'{before}{_GAP}(?P<members>\{{(?:{_MEMBER})*){_GAP}"{form.arguments}"{_GAP}:{_GAP}')


def _head(form: CallFormat) -> re.Pattern[str]:
    own = f"(?:{re.escape(form.middle_id)}(?P<id>[A-Za-z0-9]{{9}}))?" if form.middle_id else ""
    before = rf"\s*{re.escape(''.join(form.prefix))}(?P<name>[A-Za-z0-9_-]{{1,64}})"
    return re.compile(rf"{before}{own}{re.escape(form.middle)}\s*")


def _tagged(text: str, tool: Mapping[str, Any]) -> tuple[int | None, str]:
    """Where the arguments of Qwen3-Coder end, behind </function>, and the same as JSON; None where more must come, and
    0 where there are none.
    """
    found: dict[str, Any] = {}
    properties, place = _inside(_inside(tool, "parameters"), "properties"), 0
    while (ending := _FUNCTION_END.match(text, place)) is None:
        begin = _ARGUMENT.match(text, place)
        if begin is None:
            rest = text[place:].lstrip(_SPACE)
            going = any(mark.startswith(rest[: len(mark)]) for mark in ("<parameter=", "</function>"))
            return (None if going and len(rest) <= _LONGEST_HEAD else 0), ""
        end = _VALUE_END.search(text, begin.end())
        if end is None:
            return None, ""
        kind = _inside(properties, begin["name"]).get("type", "string")
        found[begin["name"]] = _value(text[begin.end() : end.start()], kind)
        place = end.end()
    return ending.end(), json.dumps(found, ensure_ascii=False)


def _inside(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a schema that nobody has checked."""
    found = schema.get(name)
    return found if isinstance(found, Mapping) else {}


def _value(text: str, kind: Any) -> Any:
    """What a plain text says of this type of a schema; the text itself where it is nothing of it."""
    if kind == "string":
        return text
    try:
        return json.loads(text.strip().lower() if kind in ("boolean", "null") else text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        return text


_HEAD = 80  # characters that show whether a call begins
_STRING, _OPEN = re.compile(r'[\\"]'), re.compile(r'["{}\[\]]')


def _may_begin(text: str, heads: tuple[str, ...]) -> bool:
    return any(text.startswith(head) or head.startswith(text) for head in heads)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` with which `mark` begins."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
