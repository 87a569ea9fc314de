"""The formats of tool calls in published models, and the grammars of answers in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from headway.errors import UserError
from headway.serve.schemas.grammar import Grammar, grammar_of
from headway.serve.tool_call_syntax import mapping_member, schema_types

MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True)
class CallFormat:
    """The tags around a call, and the key of its arguments.

    `opening` and `closing` are strings; if they are special tokens, which are not part of the text, `opening_token` and
    `closing_token` are their ids. `listed` calls are in one list. `bare` calls may start an answer without a tag.
    `named` calls are not JSON objects: after the strings of `prefix` comes the name, in some an id after `middle_id`,
    then the arguments after `middle`, and `suffix`. `around` surrounds all calls and has no meaning. In the objects of
    others the name has the key `name_key`.

    The `syntax` of arguments is "json", "coder" or "glm" (tags around each), "braces" ({key:value}, strings between two
    `quote`) or "python" (keyword arguments). `tags` are further tags in a call, `inner` the special tokens among all
    tags, by their strings. `addressed` calls are messages to a tool.
    """

    opening: str
    closing: str
    arguments: str
    listed: bool = False
    bare: bool = False
    opening_token: int | None = None
    closing_token: int | None = None
    named: bool = False
    prefix: Sequence[str] = ()
    middle: str = ""
    middle_id: str = ""
    suffix: str = ""
    around: Sequence[str] = ()
    name_key: str = "name"
    syntax: str = "json"
    quote: str = ""
    tags: Sequence[str] = ()
    addressed: bool = False
    inner: Mapping[str, int] = field(default_factory=dict)

    def head(self, name: str) -> str:
        """The text of a call to a tool before its arguments."""
        return f"{self.opening}{''.join(self.prefix)}{name}{self.middle}"


_DEEPSEEK = CallFormat(
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "arguments",
    named=True,
    middle="<｜tool▁sep｜>",
    around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
_FENCED = replace(_DEEPSEEK, prefix=("function", "<｜tool▁sep｜>"), middle="\n```json\n", suffix="```")
_GLM_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_CALL = ("<tool_call>", "</tool_call>", "arguments")
_BRACES: Mapping[str, Any] = {"named": True, "prefix": ("call:",), "syntax": "braces"}
HARMONY = CallFormat(
    "<|channel|>commentary to=", "<|call|>", "arguments", named=True, prefix=("functions.",),
    middle=" <|constrain|>json<|message|>", tags=("<|channel|>", "<|constrain|>", "<|message|>"), addressed=True,
)  # fmt: skip
# Formats by a string in the chat template, in the order of the search: some templates contain two.
FORMATS = {
    "[ARGS]": CallFormat(MISTRAL, "", "arguments", named=True, middle="[ARGS]", middle_id="[CALL_ID]"),
    MISTRAL: CallFormat(MISTRAL, "", "arguments", listed=True),
    "<|channel|>": HARMONY,
    "<arg_key>": CallFormat(*_CALL, named=True, syntax="glm", tags=_GLM_TAGS),
    "<function=": CallFormat(*_CALL, named=True, prefix=("<function=",), middle=">", syntax="coder"),
    "<start_function_call>": CallFormat(
        "<start_function_call>", "<end_function_call>", "", quote="<escape>", tags=("<escape>",), **_BRACES
    ),  # FunctionGemma
    "<|tool_call>": CallFormat(
        "<|tool_call>", "<tool_call|>", "", quote='<|"|>', tags=('<|"|>',), **_BRACES
    ),  # Gemma 4
    "```tool_code": CallFormat("```tool_code\n", "```", "", named=True, syntax="python"),  # Gemma 3
    "<|START_ACTION|>": CallFormat(
        "<|START_ACTION|>", "<|END_ACTION|>", "parameters", listed=True, name_key="tool_name"
    ),  # Command R7B and A
    "Action: ```json": CallFormat(
        "Action: ```json", "```", "parameters", listed=True, name_key="tool_name"
    ),  # Command R
    "<|/tool_call|>": CallFormat("<|tool_call|>", "<|/tool_call|>", "arguments", listed=True),  # Phi-4-mini
    "<|tool_call|>": CallFormat("<|tool_call|>", "", "arguments", listed=True),  # Granite 3
    "<tool_call>": CallFormat(*_CALL),
    "<|python_tag|>": CallFormat("<|python_tag|>", "", "parameters", bare=True),
    "```json": _FENCED,
    _DEEPSEEK.middle: _DEEPSEEK,
    "<|observation|>": CallFormat("<|assistant|>", "", "", named=True, middle="\n", bare=True),  # GLM 4
}
DEEPSEEK_MARK = _DEEPSEEK.middle


class _Arguments(NamedTuple):
    """How arguments that are not JSON are written: the text before and after all of them, before and after a name,
    after a value, and between two arguments.
    """

    start: str
    end: str
    before_name: str
    after_name: str
    after_value: str
    separator: str = ""


_ARGUMENTS = {
    "coder": _Arguments("\n", "</function>\n", "<parameter=", ">\n", "\n</parameter>\n"),
    "glm": _Arguments("\n", "", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    "braces": _Arguments("{", "}", "", ":", "", ","),
    "python": _Arguments("(", ")\n", "", "=", "", ", "),
}
_MAX_LENGTH = 65_536  # of a string with a limit
_UNLIMITED = ("pattern", "format")  # keywords of strings that cannot be enforced outside JSON
_APPLIED = ("type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "title",
            "description", "default", "examples", "$comment")  # fmt: skip


def arguments_grammar(call_format: CallFormat, schema: Mapping[str, Any], source: str, prefix: str) -> Grammar:
    """The grammar of a tool's arguments; the names of its rules start with `prefix`. UserError for a requirement that
    cannot be enforced.
    """
    if call_format.syntax == "json":
        return grammar_of(schema, source, prefix)
    unenforced = next((name for name in schema if name not in _APPLIED), None)
    if unenforced is not None:
        raise UserError(
            f"{source} has {unenforced!r:.40}, which cannot be enforced in this model's calls; leave it out"
        )
    layout, inner = _ARGUMENTS[call_format.syntax], call_format.inner
    properties, required = mapping_member(schema, "properties"), schema.get("required") or ()
    unknown = next((name for name in required if name not in properties), None)
    if unknown is not None:
        raise UserError(f"{source} requires {unknown!r:.60}, which is not among its properties; add it there")
    lines, ignored, count = [], [], len(properties)
    for i, (name, member) in enumerate(properties.items()):
        value, rules, others = _value_grammar(
            call_format, member, schema, f"{source}, argument {name!r:.60},", f"{prefix}v{i}"
        )
        argument = [spell(f"{layout.before_name}{name}{layout.after_name}", inner), value]
        lines += [*rules, f"{prefix}a{i}: {' '.join(argument)}"]
        ignored += others
    # Rules for the arguments from each one on: before the first one that is present, and after it.
    for i, name in enumerate(properties):
        after, before = f"{prefix}r{i + 1}", f"{prefix}f{i + 1}"
        separator = f"{json.dumps(layout.separator)} " if layout.separator else ""
        optional = name not in required
        lines.append(f"{prefix}f{i}: {prefix}a{i} {after}{f' | {before}' if optional else ''}")
        lines.append(f"{prefix}r{i}: {separator}{prefix}a{i} {after}{f' | {after}' if optional else ''}")
    lines += [f'{prefix}f{count}: ""', f'{prefix}r{count}: ""']
    start = " ".join([spell(layout.start, inner), f"{prefix}f0", *([spell(layout.end, inner)] if layout.end else [])])
    return Grammar(f"{prefix}all", [f"{prefix}all: {start}", *lines], ignored)


def _value_grammar(
    call_format: CallFormat, member: Any, root: Mapping[str, Any], source: str, prefix: str
) -> tuple[str, list[str], list[str]]:
    """A value and what comes after it, its rules, and ignored keywords."""
    schema: Mapping[str, Any] = member if isinstance(member, Mapping) else {}
    after = spell(_ARGUMENTS[call_format.syntax].after_value, call_format.inner)
    types = schema_types(schema, root)
    if call_format.syntax == "python" or (types and "string" not in types):
        if call_format.syntax == "braces" and types & {"object", "array"}:
            raise UserError(f"{source} is not a plain value, which cannot be enforced in this model's calls; use one")
        shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
        grammar = grammar_of({**shared, **schema} if isinstance(member, Mapping) else member, source, prefix)
        if grammar.shapes:
            raise UserError(
                f"{source} requires unique items or keys, which cannot be enforced in calls; leave that out"
            )
        # llguidance fails if a special token must follow a number that has more digits in one of its expressions.
        line_break = '"\\n"? ' if after.startswith("<[") else ""
        return f"{grammar.start} {line_break}{after}".strip(), grammar.lines, grammar.ignored
    words = schema.get("enum", [schema["const"]] if "const" in schema else None)
    unenforced = next((name for name in _UNLIMITED if name in schema), None)
    if unenforced is not None or (words and not all(isinstance(word, str) for word in words)):
        name = unenforced or "enum"
        raise UserError(f"{source} has {name!r}, which cannot be enforced in this model's calls; leave it out")
    quote = spell(call_format.quote, call_format.inner) if call_format.quote else ""
    end = f"{quote} {after}".strip()
    if words:
        text = f"({' | '.join(json.dumps(word, ensure_ascii=False) for word in words)}) {end}"
        return f"{quote} {text}".strip(), [], []
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if least or most is not None or end.startswith("<["):  # a special token cannot be part of the text
        limit = "*" if not least and most is None else f"{{{least},{'' if most is None else min(most, _MAX_LENGTH)}}}"
        text = f"/(?s:.){limit}/" if end.startswith("<[") else f"/[^<]{limit}/"
        return f"{quote} {prefix.upper()} {end}".strip(), [f"{prefix.upper()}: {text}"], []
    return f"{quote} {prefix}".strip(), [f"{prefix}[lazy]: /(?s:.*)/ {end}"], []


def calls_grammar(
    call_format: CallFormat, tools: Sequence[tuple[str, str, list[str]]], required: bool, parallel: bool
) -> str:
    """A lark grammar for answers that call only these tools (names, and rules for their arguments).

    Unless a call is `required`, any text may come before it or instead of it.
    """
    inner = call_format.inner
    opening, closing = (
        spell(
            call_format.opening,
            inner if call_format.opening_token is None else {call_format.opening: call_format.opening_token},
        ),
        spell(
            call_format.closing,
            {} if call_format.closing_token is None else {call_format.closing: call_format.closing_token},
        ),
    )
    lines = ["TEXT: /(.|\\n)*/"]
    bodies = []
    for i, (name, start, rules) in enumerate(tools):
        lines += [f"arguments{i}: {start}", *rules]
        if call_format.named:
            head = spell(f"{''.join(call_format.prefix)}{name}{call_format.middle_id}", inner)
            call_id = ["/[A-Za-z0-9]{9}/"] if call_format.middle_id else []
            middle = [spell(call_format.middle, inner)] if call_format.middle else []
            suffix = [spell(call_format.suffix, inner)] if call_format.suffix else []
            bodies.append(" ".join([head, *call_id, *middle, f"arguments{i}", *suffix]))
            continue
        before = json.dumps(f'{{"{call_format.name_key}": {json.dumps(name)}, "{call_format.arguments}": ')
        bodies.append(f'{before} arguments{i} "}}"')
    lines.append(f"object: {' | '.join(bodies)}")
    if call_format.addressed:
        text = "" if required else f" | {spell('<|channel|>final<|message|>', inner)} TEXT"
        return "\n".join([f"start: {opening} object{text}", *lines])
    if call_format.bare:
        if required:
            return "\n".join(["start: object", *lines])
        if call_format.named:
            return "\n".join([f"start: TEXT | object | TEXT {opening} object", *lines])
        return "\n".join(
            [f"start: PLAIN | {opening}? object", "PLAIN: /[ \\n\\r\\t]*([^ \\n\\r\\t{](.|\\n)*)?/", *lines]
        )
    if call_format.listed:
        more_calls = '(", " object)*' if parallel else ""
        lines.append(
            f'list: {opening} (" " | "\\n")? "[" object {more_calls} "]" {closing if call_format.closing else ""}'
        )
        return "\n".join([f"start: {'list' if required else 'TEXT | TEXT list'}", *lines])
    if call_format.named:
        lines.append(f"call: {opening} object {closing if call_format.closing else ''}")
        return "\n".join([f"start: {'' if required else 'TEXT | TEXT '}call{'+' if parallel else ''}", *lines])
    lines.append(f'call: {opening} "\\n" object "\\n" {closing}')
    if required:
        return "\n".join([f"start: call{' (NEXT call)*' if parallel else ''}", 'NEXT: "\\n"', *lines])
    if call_format.opening_token is None:
        lines += [f"head[lazy]: TEXT {opening}", f'after: head "\\n" object "\\n" {closing}']
    else:
        lines.append("after: TEXT call")
    return "\n".join([f"start: {'after* rest' if parallel else 'rest | after'}", "rest: TEXT", *lines])


def spell(text: str, inner: Mapping[str, int]) -> str:
    """A text in a grammar, with its special tokens by their ids."""
    names = sorted(filter(None, inner), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    items = [f"<[{inner[part]}]>" if part in inner else json.dumps(part, ensure_ascii=False) for part in parts if part]
    return " ".join(items) or '""'
