"""A parser for the tool calls in the output of published models.

Hermes and Qwen put a JSON object between <tool_call> and </tool_call>, Mistral puts a list after [TOOL_CALLS], and
Llama 3 puts an object with name and parameters at the start of an answer or after <|python_tag|>. Newer Mistral models
and DeepSeek generate the name and then the arguments as JSON, separated by tags. Qwen3-Coder and GLM 4.5 generate each
argument as plain text between its own tags. `call_formats.py` lists all of them.

Models make mistakes. The parser also accepts:

- `parameters` for `arguments` and the reverse, and arguments that are a string with an object in it,
- a comma before a closing bracket, and a missing closing tag,
- text before a Llama call, and a Qwen3-Coder call without <tool_call>,
- any Mistral format after [TOOL_CALLS].
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from headway.generate.sequences import partial_match_length
from headway.serve.call_formats import MISTRAL, CallFormat
from headway.serve.incremental_json import IncrementalObject, without_trailing_commas
from headway.serve.tool_call_syntax import (
    ARGUMENTS,
    FUNCTION_TAG,
    MAX_HEAD_LENGTH,
    SPACE,
    JsonScanner,
    end_of_tags,
    may_start,
    named_call_head,
    object_head,
    parse_arguments,
)


class ToolCall(NamedTuple):
    """A call: its id, the tool's name, and its arguments as generated JSON; "" if `Arguments` follow."""

    id: str
    name: str
    arguments: str


class Arguments(NamedTuple):
    """The next part of the last call's arguments."""

    text: str


Part = str | ToolCall | Arguments  # of an answer


_CALL_ID = re.compile("[A-Za-z0-9]{9}")  # the format of Mistral's templates


# Before an object in the middle of text that is a quotation or part of other JSON rather than a call.
_QUOTING = re.compile(r"""(?:[\[{(`'"]|"\s*:|[}\]]\s*,)\s*$""")
_OBJECT_STARTS = tuple(
    f'"{name}"' for name in (*ARGUMENTS, "name", "id", "type", "tool_name", "tool_call_id")
)  # possible starts of an object that is a call
_LOOKAHEAD = 80  # characters that show whether a call begins


@dataclass
class _PartialCall:
    """A call that was passed on before its end, and the position of its arguments in the buffer."""

    name: str
    start: int
    stop: int
    parser: IncrementalObject = field(default_factory=IncrementalObject)


class ToolCallParser:
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
        call_format: CallFormat,
        tools: Mapping[str, Mapping[str, Any]],
        parallel: bool = True,
        streams: bool = False,
        prose: bool = True,
    ) -> None:
        """`tools` are the callable tools by name; without `parallel`, parsing stops after the first call. With `prose`,
        a call of a `bare` format may come after text.
        """
        self.calls = 0  # complete ones
        self.broken = False
        self._format = call_format
        self._formats = {"": call_format}  # by the first character after their tag; "" is any other
        if call_format.opening == MISTRAL:
            named = replace(call_format, listed=False, named=True, middle="[ARGS]", middle_id="[CALL_ID]")
            listed = replace(call_format, listed=True, named=False)
            self._formats = {"[": listed, "{": replace(call_format, listed=False, named=False), "": named}
        self._current_format: CallFormat | None = None  # of the current call, once known
        self._is_tagged = call_format.syntax == "coder"
        self._recipient = ""
        self._tools = tools
        self._inner_tags = {token: text for text, token in call_format.inner.items()}
        self._parallel = parallel
        self._streams = streams
        self._prose = prose and call_format.bare
        self._text = ""  # text so far, if it determines whether a call may start
        self._partial_calls: list[_PartialCall] = []  # calls that are incomplete
        self._buffer = ""
        self._opening_tag = ""  # tag of the current call, as generated
        self._in_call = False
        self._may_start_bare = call_format.bare  # a call may start without a tag
        self._closed = False  # by a special token
        self._scanner = JsonScanner()

    @property
    def full(self) -> bool:
        """Whether no more calls are accepted, so that generation may stop."""
        return self.calls > 0 and not self._parallel

    @property
    def _separators(self) -> str:
        """Characters that may separate calls, in addition to white space."""
        return ";," if self._may_start_bare and self.calls else ""

    def push(self, text: str, token: int | None = None, recipient: str = "") -> list[Part]:
        """The parts that are certain after a token and the text that it completed, in order. In formats that address
        messages, `recipient` is the tool that the text is for.
        """
        if not self._format.addressed:
            return self._push(text, token)
        parts: list[Part] = []
        if recipient != self._recipient:
            parts += self._push(self._format.closing) if self._recipient else []
            parts += self._push(self._format.head(recipient)) if recipient else []
            self._recipient = recipient
        return [*parts, *(self._push(text) if recipient else [text] if text else [])]

    def _push(self, text: str, token: int | None = None) -> list[Part]:
        parts: list[Part] = []
        if token is not None and token == self._format.opening_token and not self.full:
            if self._in_call:
                parts += self.flush()
            parts += self._start_call(len(self._buffer))
        elif token is not None and token == self._format.closing_token and self._in_call:
            self._closed = True
        elif self._in_call:
            self._buffer += self._inner_tags.get(-1 if token is None else token, "")
        self._buffer += text
        more: Sequence[Part] | None = ()
        while more is not None:
            new = [*more, *self._stream_arguments()]
            if self._prose:
                self._text += "".join(part for part in new if isinstance(part, str))
            parts += new
            more = self._parse_call() if self._in_call else self._parse_text()
        return parts

    def flush(self) -> list[Part]:
        """The parts that are still held back at the end of an answer."""
        calls: list[ToolCall] = []
        call_format = self._call_format() if self._in_call else None
        if call_format is not None and call_format.named:
            calls = (self._match_named_call(call_format, final=True) or ([], 0))[0]
        elif call_format is not None and self._scanner.stop is not None:  # complete except for its closing tag
            remainder = self._buffer[self._scanner.stop :].strip(SPACE)
            calls = (
                self._calls_in(call_format, self._buffer[: self._scanner.stop])
                if call_format.closing.startswith(remainder)
                else []
            )
        if not self._matches_partial_calls(calls):
            self._abandon_call()
        elif calls:
            self._buffer = self._opening_tag = ""
        remainder, new_calls = self._opening_tag + self._buffer, self._finish_calls(calls)
        self._buffer = ""
        is_separator = (self.calls > 0 or self.broken) and not remainder.strip(SPACE + self._separators)
        return [*new_calls, *([remainder] if remainder and not is_separator else [])]

    def _call_format(self) -> CallFormat | None:
        """The format of the current call; None before its first character."""
        start = self._buffer.lstrip(SPACE)[:1]
        if self._current_format is None and start:
            self._current_format = self._formats.get(start, self._formats[""])
        return self._current_format

    def _stream_arguments(self) -> list[Part]:
        """The new arguments of incomplete calls."""
        parts: list[Part] = []
        while self._in_call and self._streams:
            if not self._partial_calls or self._partial_calls[-1].parser.ended:
                call = self._next_call()
                if call is None:
                    break
                parts.append(call)
            last = self._partial_calls[-1]
            stop = last.parser.advance(self._buffer, last.stop)
            dropped = last.parser.dropped
            new = "".join(self._buffer[position] for position in range(last.stop, stop) if position not in dropped)
            if new:
                parts.append(Arguments(new))
            last.stop = stop
            if last.parser.failed:
                self._abandon_call()
            elif not last.parser.ended:
                break
        return parts

    def _next_call(self) -> ToolCall | None:
        """The call whose arguments start next; None if that is unclear, or not known yet."""
        call_format, buffer, call_id = self._call_format(), self._buffer, ""
        # A list that may contain only one call is checked when complete.
        if (
            call_format is None
            or (self._partial_calls and not call_format.listed)
            or (call_format.listed and not self._parallel)
        ):
            return None
        if call_format.named:
            start = self._head_pattern(call_format).match(buffer) if call_format.syntax == "json" else None
            name = "" if start is None else start["name"]
            call_id = "" if start is None else start.groupdict().get("id") or ""
        else:
            position = self._partial_calls[-1].stop if self._partial_calls else 0
            start = object_head(call_format.listed, bool(self._partial_calls)).match(
                buffer, position, position + MAX_HEAD_LENGTH
            )
            try:
                members = {} if start is None else msgspec.json.decode(start["members"] + '"":""}', type=dict[str, str])
            except (msgspec.MsgspecError, UnicodeError):
                return None
            name, call_id = members.get(call_format.name_key, ""), members.get("id", "")
        if start is None or name not in self._tools or buffer[start.end() : start.end() + 1] != "{":
            return None
        self._partial_calls.append(_PartialCall(name, start.end(), start.end()))
        return ToolCall(self._call_id(call_id), name, "")

    def _head_pattern(self, call_format: CallFormat) -> re.Pattern[str]:
        return named_call_head(
            "".join(call_format.prefix), call_format.middle_id, call_format.middle, call_format.opening == MISTRAL
        )

    def _matches_partial_calls(self, calls: Sequence[ToolCall]) -> bool:
        """Whether calls start with those that were already passed on."""
        partial_calls = [
            (partial.name, without_trailing_commas(self._buffer[partial.start : partial.stop]))
            for partial in self._partial_calls
        ]
        return [(call.name, call.arguments) for call in calls[: len(partial_calls)]] == partial_calls

    def _abandon_call(self) -> None:
        """The call that was passed on in parts turned out not to be one: the rest is text."""
        self._buffer, self._opening_tag = self._buffer[self._partial_calls[-1].stop :], ""
        self._in_call = self._may_start_bare = False
        self._partial_calls, self.broken = [], True

    def _finish_calls(self, calls: list[ToolCall]) -> list[ToolCall]:
        """Complete calls, without those that were already passed on."""
        new_calls, self._partial_calls, self._opening_tag, self._in_call = (
            calls[len(self._partial_calls) :],
            [],
            "",
            False,
        )
        self.calls += len(calls)
        return new_calls

    def _start_call(self, position: int, tag: str = "") -> list[Part]:
        """Start a call at a position of the buffer; returns the text before it."""
        text = self._buffer[:position].rstrip(SPACE)
        # White space before a call is not part of the text, unless it turns out not to be a call.
        self._opening_tag, self._buffer = self._buffer[len(text) : position] + tag, self._buffer[position + len(tag) :]
        self._in_call, self._closed, self._scanner = True, False, JsonScanner()
        self._current_format = None if len(self._formats) > 1 else self._format
        return [text] if text else []

    def _parse_text(self) -> list[Part] | None:
        """The next text of the buffer; None if more input is needed."""
        call_format, buffer = self._format, self._buffer
        for tag in call_format.around:
            if tag in buffer:
                buffer = self._buffer = buffer.replace(tag, "")
        start = buffer.lstrip(SPACE + self._separators)
        if not start:
            return None
        if self._may_start_bare and not self.full:
            if start[0] == "{" or self._starts_with_name(start):
                self._start_call(len(buffer) - len(start))
                return []
            if call_format.named and any(f"{name}\n".startswith(start.rstrip(" \t\r")) for name in self._tools):
                return None
            self._may_start_bare = False
        certain = len(buffer)
        if not self.full:
            tags = [call_format.opening] if call_format.opening_token is None and call_format.opening else []
            positions = {position: tag for tag in tags if (position := buffer.find(tag)) >= 0}
            if self._is_tagged:  # without its outer tag; its start is part of the call
                tags.append(FUNCTION_TAG)
                positions |= {position: "" for position in [buffer.find(FUNCTION_TAG)] if position >= 0}
            for position in (match.start() for match in re.finditer("{", buffer) if self._prose):
                before, after = self._text + buffer[:position], buffer[position + 1 : position + _LOOKAHEAD]
                is_quoted = _QUOTING.search(before[-_LOOKAHEAD:]) or before.count("```") % 2
                if may_start(after.lstrip(SPACE), _OBJECT_STARTS) and not is_quoted:  # an object that may be a call
                    positions[position] = ""
                    break
            if positions:
                return self._start_call(min(positions), positions[min(positions)])
            if tags:
                certain -= max(partial_match_length(buffer, tag) for tag in (*tags, *call_format.around))
        text = buffer[:certain].rstrip(SPACE)
        self._buffer = buffer[len(text) :]
        return [text] if text else None

    def _starts_with_name(self, text: str) -> bool:
        """Whether a text starts with a line that is a tool's name, in a format that needs no tag before it."""
        name, line_break, _ = text.partition("\n")
        return self._format.named and bool(line_break) and name.strip(SPACE) in self._tools

    def _parse_call(self) -> Sequence[Part] | None:
        call_format = self._call_format()
        if call_format is None:
            return None
        if call_format.named:
            parsed = self._match_named_call(call_format)
            if parsed is None:
                return None
            calls, end = parsed
            if not calls or not self._matches_partial_calls(calls):
                return self._reject_call()
            new_calls, self._buffer = self._finish_calls(calls), self._buffer[end:]
            return new_calls
        stop = self._scanner.advance(self._buffer, "[" if call_format.listed else "{", _OBJECT_STARTS)
        if stop is None:
            return None
        calls, remainder = self._calls_in(call_format, self._buffer[:stop]), self._buffer[stop:].lstrip(SPACE)
        if not calls or not self._matches_partial_calls(calls):
            return self._reject_call()
        if call_format.closing_token is not None and not self._closed:
            return None if not remainder else self._reject_call()
        closing = call_format.closing if call_format.closing_token is None else ""
        if not remainder.startswith(closing):
            next_tag = call_format.opening if call_format.opening_token is None else ""
            if not remainder.startswith(next_tag or closing):
                undecided = closing.startswith(remainder) or next_tag.startswith(remainder)
                return None if undecided else self._reject_call()
            closing = ""  # it is missing, and the next call starts
        after = remainder[len(closing) :] if call_format.closing else self._buffer[stop:]
        new_calls, self._buffer = self._finish_calls(calls), after
        self._may_start_bare = call_format.bare
        return new_calls

    def _match_named_call(self, call_format: CallFormat, final: bool = False) -> tuple[list[ToolCall], int] | None:
        """The call at the start of the buffer, and its end; an empty list if it is not a call; None if more input is
        needed. At the end of an answer the closing tag may be missing.
        """
        buffer, ended = self._buffer, final or self._closed
        bare = self._is_tagged and not self._opening_tag.strip(SPACE) and call_format.opening_token is None
        start = self._head_pattern(call_format).match(buffer)
        if start is None:
            return ([], 0) if ended or len(buffer) > MAX_HEAD_LENGTH or "{" in buffer else None
        name, call_id = start["name"], start.groupdict().get("id")
        if name not in self._tools:
            return None if start.end() == len(buffer) and not call_format.middle and not ended else ([], 0)
        if call_format.syntax == "json":
            stop = self._scanner.advance(buffer[start.end() :], "{", ('"', "}"))
            arguments = without_trailing_commas(buffer[start.end() :][:stop]) if stop else ""
        else:
            text, syntax, quote = buffer[start.end() :], call_format.syntax, call_format.quote
            stop, arguments = parse_arguments(text, syntax, quote, self._tools[name], bare, ended)
        if stop is None or not arguments:
            return None if stop is None and not final else ([], 0)
        closing = call_format.closing if call_format.closing_token is None else ""
        end = end_of_tags(buffer, start.end() + stop, [call_format.suffix, closing], final)
        if end is not None and end >= 0 and call_format.closing_token is not None and not (self._closed or final):
            end = -1 if buffer[end:].strip(SPACE) else None
        if end == -1 and self._is_tagged:  # its closing tag is missing; text may follow a call without an opening tag
            remainder = buffer[start.end() + stop :].lstrip(SPACE)
            if bare or remainder.startswith((call_format.opening, FUNCTION_TAG)):
                end = start.end() + stop
            elif call_format.opening.startswith(remainder) or FUNCTION_TAG.startswith(remainder):
                end = None
        if end is None:
            return None
        try:
            msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return [], 0
        return ([ToolCall(self._call_id(call_id), name, arguments)], end) if end >= 0 else ([], 0)

    def _call_id(self, model_id: Any) -> str:
        """The id of a call: the model's own if it is valid."""
        if isinstance(model_id, str) and _CALL_ID.fullmatch(model_id):
            return model_id
        return secrets.token_hex(5)[:9] if self._format.opening == MISTRAL else f"call_{secrets.token_hex(12)}"

    def _reject_call(self) -> list[Part]:
        """It is not a call: its tag is text, and parsing continues after it."""
        if self._partial_calls:
            self._abandon_call()
            return []
        self._in_call = self._may_start_bare = False
        tag, self._opening_tag = self._opening_tag, ""
        if not tag.endswith(self._format.opening):  # it started without a tag, and would start again
            tag, self._buffer = tag + self._buffer[:1], self._buffer[1:]
        return [tag]

    def _calls_in(self, call_format: CallFormat, text: str) -> list[ToolCall]:
        """The calls in a JSON value; empty if it is anything else."""
        kind = list[dict[str, msgspec.Raw]] if call_format.listed else dict[str, msgspec.Raw]
        try:
            items = msgspec.json.decode(without_trailing_commas(text), type=kind)
            calls: list[ToolCall] = []
            for item in items if isinstance(items, list) else [items]:
                name = msgspec.json.decode(item[call_format.name_key], type=str)
                [key] = [key for key in ARGUMENTS if key in item]
                arguments = bytes(item[key]).decode()
                if name not in self._tools or not set(item) <= {
                    call_format.name_key,
                    key,
                    "id",
                    "type",
                    "tool_call_id",
                }:
                    return []
                if arguments.startswith('"'):  # an object in a string
                    arguments = without_trailing_commas(msgspec.json.decode(arguments, type=str)).strip(SPACE)
                msgspec.json.decode(arguments, type=dict[str, Any])
                call_id = msgspec.json.decode(item.get("id", b'""'))
                calls.append(ToolCall(self._call_id(call_id), name, arguments))
        except (msgspec.MsgspecError, KeyError, RecursionError, ValueError):
            return []
        return calls if self._parallel or len(calls) == 1 else []
