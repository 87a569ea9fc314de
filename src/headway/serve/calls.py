"""Formats of tool calls of published models, and a parser for their output.

Hermes and Qwen put a JSON object between <tool_call> and </tool_call>, Mistral a list of them after [TOOL_CALLS],
Llama 3 an object with name and parameters at the start of an answer or after <|python_tag|>. Newer Mistral models and
DeepSeek generate the name and then the arguments as JSON, separated by tags. Qwen3-Coder generates each argument as
plain text between its own tags.

Models make mistakes. The parser also accepts:

- `parameters` for `arguments` and the reverse, and arguments that are a string with an object in it,
- a comma before a closing bracket, and a missing closing tag,
- text before a Llama call, and a Qwen3-Coder call without <tool_call>,
- any Mistral format after [TOOL_CALLS].
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from headway.serve.call_text import (
    ARGUMENTS,
    FUNCTION,
    LONGEST_HEAD,
    SPACE,
    TAGGED,
    Scan,
    head,
    may_begin,
    object_head,
    overlap,
    tagged,
    tail,
)
from headway.serve.following import FollowedObject, without_trailing_commas


@dataclass(frozen=True)
class CallFormat:
    """The tags around a call, and the key of its arguments.

    `opening` and `closing` are strings; if they are special tokens, which are not part of the text, `opening_token` and
    `closing_token` are their ids. `listed` calls are in one list. `bare` calls may start an answer without a tag.
    `named` calls are not JSON objects: after the strings of `prefix` comes the name, in some an id after `middle_id`,
    then the arguments after `middle`, and `suffix`; those without a `middle` have Qwen3-Coder's format. `inner` has the
    special tokens among these tags, by their strings. `around` surrounds all calls and has no meaning.
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
    """A call: its id, the tool's name, and its arguments as generated JSON; "" if `Arguments` follow."""

    id: str
    name: str
    arguments: str


class Arguments(NamedTuple):
    """The next part of the last call's arguments."""

    text: str


Part = str | ToolCall | Arguments  # of an answer


def calls_grammar(form: CallFormat, tools: Sequence[tuple[str, str, list[str]]], required: bool, parallel: bool) -> str:
    """A lark grammar of answers whose calls are all of these tools (names, and rules of their arguments).

    Unless a call is `required`, any text may come before it or instead of it.
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
    """The grammar of a call with this name."""
    parts = [*form.prefix, name, *([form.middle_id] if form.middle_id else [])]
    marks = [_mark(part, form.inner.get(part)) for part in parts]
    own = ["/[A-Za-z0-9]{9}/"] if form.middle_id else []
    suffix = [_mark(form.suffix, None)] if form.suffix else []
    return " ".join([*marks, *own, _mark(form.middle, form.inner.get(form.middle)), arguments, *suffix])


MISTRAL = "[TOOL_CALLS]"
_ID = re.compile("[A-Za-z0-9]{9}")  # the format of Mistral's templates


# Before an object in the middle of a text that is a quotation or part of other JSON, and not a call.
_QUOTING = re.compile(r"""(?:[\[{(`'"]|"\s*:|[}\]]\s*,)\s*$""")
_HEADS = tuple(f'"{name}"' for name in (*ARGUMENTS, "name", "id", "type"))  # how an object that is a call may start
_BEGIN = 80  # characters that show whether a call begins


def _shapes(form: CallFormat) -> dict[str, CallFormat]:
    """The formats of calls by the first character after their tag; "" is any other."""
    if form.opening != MISTRAL:
        return {"": form}
    inner = {"middle": "[ARGS]", "middle_id": "[CALL_ID]"}
    return {
        "[": replace(form, listed=True, named=False),
        "{": replace(form, listed=False, named=False),
        "": replace(form, listed=False, named=True, **inner),
    }


@dataclass
class _Begun:
    """A call that was passed on before its end, and the position of its arguments in the buffer."""

    name: str
    start: int
    stop: int
    followed: FollowedObject = field(default_factory=FollowedObject)


class CallReader:
    """Parses the text of an answer as it arrives into plain text and complete tool calls.

    Text that may become a tag is held back, and a call until it ends. A tag inside a JSON string is part of the string.
    Text that starts like a call but is not one is passed on unchanged.

    With `streams`, a call is passed on as soon as its name is a known tool and an object starts after it; its arguments
    follow as they arrive, as long as they are JSON. If it turns out not to be a call, it is `broken`: the arguments so
    far remain, and the rest is text. If a name follows its arguments, or these are not JSON as generated, the call is
    passed on complete.
    """

    def __init__(
        self,
        form: CallFormat,
        tools: Mapping[str, Mapping[str, Any]],
        parallel: bool = True,
        pieces: bool = False,
        prose: bool = True,
    ) -> None:
        """`tools` are the callable tools by name; without `parallel`, parsing stops after the first call. With `prose`,
        a call of a `bare` format may come after text.
        """
        self.calls = 0  # complete ones
        self.broken = False
        self._form = form
        self._shapes = _shapes(form)
        self._shape: CallFormat | None = None  # of the current call, once known
        self._coder = form.named and not form.middle
        self._tools = tools
        self._inner = {symbol: text for text, symbol in form.inner.items()}
        self._parallel = parallel
        self._pieces = pieces
        self._prose = prose and form.bare
        self._said = ""  # text so far, if it determines whether a call may start
        self._begun: list[_Begun] = []  # calls that are incomplete
        self._held = ""
        self._mark = ""  # tag of the current call, as generated
        self._inside = False
        self._first = form.bare  # a call may start without a tag
        self._closed = False  # by a special token
        self._scan = Scan()

    @property
    def full(self) -> bool:
        """Whether no more calls are accepted, so that generation may stop."""
        return self.calls > 0 and not self._parallel

    @property
    def _between(self) -> str:
        """Characters that may separate calls, in addition to white space."""
        return ";," if self._first and self.calls else ""

    def push(self, text: str, symbol: int | None = None) -> list[Part]:
        """The parts that are certain after a token and the text that it completed, in order."""
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
            new = [*more, *self._follow()]
            if self._prose:
                self._said += "".join(part for part in new if isinstance(part, str))
            found += new
            more = self._inside_call() if self._inside else self._outside()
        return found

    def flush(self) -> list[Part]:
        """The parts that are still held back at the end of an answer."""
        found: list[ToolCall] = []
        form = self._shaped() if self._inside else None
        if form is not None and form.named:
            found = (self._named_call(form, final=True) or ([], 0))[0]
        elif form is not None and self._scan.stop is not None:  # complete except for its closing tag
            rest = self._held[self._scan.stop :].strip(SPACE)
            found = self._calls(form, self._held[: self._scan.stop]) if form.closing.startswith(rest) else []
        if not self._agrees(found):
            self._break()
        elif found:
            self._held = self._mark = ""
        rest, new = self._mark + self._held, self._ended(found)
        self._held = ""
        between = (self.calls > 0 or self.broken) and not rest.strip(SPACE + self._between)
        return [*new, *([rest] if rest and not between else [])]

    def _shaped(self) -> CallFormat | None:
        """The format of the current call; None before its first character."""
        start = self._held.lstrip(SPACE)[:1]
        if self._shape is None and start:
            self._shape = self._shapes.get(start, self._shapes[""])
        return self._shape

    def _follow(self) -> list[Part]:
        """The new arguments of incomplete calls."""
        found: list[Part] = []
        while self._inside and self._pieces:
            if not self._begun or self._begun[-1].followed.ended:
                call = self._next_call()
                if call is None:
                    break
                found.append(call)
            last = self._begun[-1]
            stop = last.followed.go_on(self._held, last.stop)
            dropped = last.followed.dropped
            new = "".join(self._held[place] for place in range(last.stop, stop) if place not in dropped)
            if new:
                found.append(Arguments(new))
            last.stop = stop
            if last.followed.failed:
                self._break()
            elif not last.followed.ended:
                break
        return found

    def _next_call(self) -> ToolCall | None:
        """The call whose arguments start next; None if that is unclear, or not known yet."""
        form, held, given = self._shaped(), self._held, ""
        # A list that may contain only one call is checked when complete.
        if form is None or (self._begun and not form.listed) or (form.listed and not self._parallel):
            return None
        if form.named:
            start = self._head(form).match(held) if form.middle else None
            name = "" if start is None else start["name"]
            given = "" if start is None else start.groupdict().get("id") or ""
        else:
            place = self._begun[-1].stop if self._begun else 0
            start = object_head(form.listed, bool(self._begun)).match(held, place, place + LONGEST_HEAD)
            try:
                members = {} if start is None else msgspec.json.decode(start["members"] + '"":""}', type=dict[str, str])
            except (msgspec.MsgspecError, UnicodeError):
                return None
            name, given = members.get("name", ""), members.get("id", "")
        if start is None or name not in self._tools or held[start.end() : start.end() + 1] != "{":
            return None
        self._begun.append(_Begun(name, start.end(), start.end()))
        return ToolCall(self._id(given), name, "")

    def _head(self, form: CallFormat) -> re.Pattern[str]:
        return head("".join(form.prefix), form.middle_id, form.middle, form.opening == MISTRAL)

    def _agrees(self, found: Sequence[ToolCall]) -> bool:
        """Whether calls start with those that were already passed on."""
        begun = [(each.name, without_trailing_commas(self._held[each.start : each.stop])) for each in self._begun]
        return [(call.name, call.arguments) for call in found[: len(begun)]] == begun

    def _break(self) -> None:
        """The call that was passed on in parts is not one: the rest is text."""
        self._held, self._mark = self._held[self._begun[-1].stop :], ""
        self._inside = self._first = False
        self._begun, self.broken = [], True

    def _ended(self, found: list[ToolCall]) -> list[ToolCall]:
        """Complete calls, without those that were already passed on."""
        new, self._begun, self._mark, self._inside = found[len(self._begun) :], [], "", False
        self.calls += len(found)
        return new

    def _begin(self, place: int, mark: str = "") -> list[Part]:
        """Start a call at a position of the buffer; returns the text before it."""
        said = self._held[:place].rstrip(SPACE)
        # White space before a call is not part of the text, unless it turns out not to be a call.
        self._mark, self._held = self._held[len(said) : place] + mark, self._held[place + len(mark) :]
        self._inside, self._closed, self._scan = True, False, Scan()
        self._shape = None if len(self._shapes) > 1 else self._form
        return [said] if said else []

    def _outside(self) -> list[Part] | None:
        """The next text of the buffer; None if more input is needed."""
        form, held = self._form, self._held
        for mark in form.around:
            if mark in held:
                held = self._held = held.replace(mark, "")
        start = held.lstrip(SPACE + self._between)
        if not start:
            return None
        if self._first and not self.full:
            if start[0] == "{":
                self._begin(len(held) - len(start))
                return []
            self._first = False
        certain = len(held)
        if not self.full:
            marks = [form.opening] if form.opening_symbol is None else []
            places = {place: mark for mark in marks if (place := held.find(mark)) >= 0}
            if self._coder:  # without its outer tag; its start is part of the call
                marks.append(FUNCTION)
                places |= {place: "" for place in [held.find(FUNCTION)] if place >= 0}
            if self._prose and (place := self._object_in(held)) is not None:
                places[place] = ""
            if places:
                return self._begin(min(places), places[min(places)])
            if marks:
                certain -= max(overlap(held, mark) for mark in (*marks, *form.around))
        said = held[:certain].rstrip(SPACE)
        self._held = held[len(said) :]
        return [said] if said else None

    def _object_in(self, held: str) -> int | None:
        """The position of an object that may be a call; None without one."""
        for place in (found.start() for found in re.finditer("{", held)):
            if not may_begin(held[place + 1 : place + _BEGIN].lstrip(SPACE), _HEADS):
                continue
            before = self._said + held[:place]
            if not _QUOTING.search(before[-_BEGIN:]) and before.count("```") % 2 == 0:
                return place
        return None

    def _inside_call(self) -> Sequence[Part] | None:
        form = self._shaped()
        if form is None:
            return None
        if form.named:
            return self._inside_named(form)
        stop = self._scan.go_on(self._held, "[" if form.listed else "{", _HEADS)
        if stop is None:
            return None
        found, rest = self._calls(form, self._held[:stop]), self._held[stop:].lstrip(SPACE)
        if not found or not self._agrees(found):
            return self._none()
        if form.closing_symbol is not None and not self._closed:
            return None if not rest else self._none()
        closing = form.closing if form.closing_symbol is None else ""
        if not rest.startswith(closing):
            again = form.opening if form.opening_symbol is None else ""
            if not rest.startswith(again or closing):
                undecided = closing.startswith(rest) or again.startswith(rest)
                return None if undecided else self._none()
            closing = ""  # it is missing, and the next call starts
        after = rest[len(closing) :] if form.closing else self._held[stop:]
        new, self._held = self._ended(found), after
        self._first = form.bare
        return new

    def _inside_named(self, form: CallFormat) -> Sequence[Part] | None:
        read = self._named_call(form)
        if read is None:
            return None
        found, end = read
        if not found or not self._agrees(found):
            return self._none()
        new, self._held = self._ended(found), self._held[end:]
        return new

    def _named_call(self, form: CallFormat, final: bool = False) -> tuple[list[ToolCall], int] | None:
        """The call at the start of the buffer, and its end; an empty list if it is not a call; None if more input is
        needed. At the end of an answer the closing tag may be missing.
        """
        held = self._held
        bare = self._coder and not self._mark.strip(SPACE) and form.opening_symbol is None
        start = (self._head(form) if form.middle else TAGGED).match(held)
        if start is None:
            return ([], 0) if final or len(held) > LONGEST_HEAD or "{" in held else None
        name, given = start["name"], start.groupdict().get("id")
        if name not in self._tools:
            return [], 0
        if form.middle:
            stop = self._scan.go_on(held[start.end() :], "{", ('"', "}"))
            arguments = without_trailing_commas(held[start.end() :][:stop]) if stop else ""
        else:
            whole = final or "</function>" in held
            stop, arguments = tagged(held[start.end() :], self._tools[name], bare, final) if whole else (None, "")
        if not stop:
            return None if stop is None and not final else ([], 0)
        closing = form.closing if form.closing_symbol is None else ""
        end = tail(held, start.end() + stop, [form.suffix, closing], final)
        if end is not None and end >= 0 and form.closing_symbol is not None and not (self._closed or final):
            end = -1 if held[end:].strip(SPACE) else None
        if end == -1 and self._coder:  # its closing tag is missing; text may follow a call without an opening tag
            rest = held[start.end() + stop :].lstrip(SPACE)
            if bare or rest.startswith((form.opening, FUNCTION)):
                end = start.end() + stop
            elif form.opening.startswith(rest) or FUNCTION.startswith(rest):
                end = None
        if end is None:
            return None
        try:
            msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return [], 0
        return ([ToolCall(self._id(given), name, arguments)], end) if end >= 0 else ([], 0)

    def _id(self, given: Any) -> str:
        """The id of a call: the model's own if it is valid."""
        if isinstance(given, str) and _ID.fullmatch(given):
            return given
        return secrets.token_hex(5)[:9] if self._form.opening == MISTRAL else f"call_{secrets.token_hex(12)}"

    def _none(self) -> list[Part]:
        """It is not a call: its tag is text, and parsing continues after it."""
        if self._begun:
            self._break()
            return []
        self._inside = self._first = False
        mark, self._mark = self._mark, ""
        if not mark.endswith(self._form.opening):  # it started without a tag, and would start again
            mark, self._held = mark + self._held[:1], self._held[1:]
        return [mark]

    def _calls(self, form: CallFormat, text: str) -> list[ToolCall]:
        """The calls in a JSON value; empty if it is anything else."""
        kind = list[dict[str, msgspec.Raw]] if form.listed else dict[str, msgspec.Raw]
        try:
            items = msgspec.json.decode(without_trailing_commas(text), type=kind)
            found: list[ToolCall] = []
            for item in items if isinstance(items, list) else [items]:
                name = msgspec.json.decode(item["name"], type=str)
                [key] = [key for key in ARGUMENTS if key in item]
                arguments = bytes(item[key]).decode()
                if name not in self._tools or not set(item) <= {"name", key, "id", "type"}:
                    return []
                if arguments.startswith('"'):  # an object in a string
                    arguments = without_trailing_commas(msgspec.json.decode(arguments, type=str)).strip(SPACE)
                msgspec.json.decode(arguments, type=dict[str, Any])
                given = msgspec.json.decode(item.get("id", b'""'))
                found.append(ToolCall(self._id(given), name, arguments))
        except (msgspec.MsgspecError, KeyError, RecursionError, ValueError):
            return []
        return found if self._parallel or len(found) == 1 else []
