"""Tools that a model may call: described by its chat template, parsed in the format that it was trained with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from headway.codecs import TokenizerCodec
from headway.codecs.special_tokens import special_ids
from headway.codecs.thinking_format import CHANNEL
from headway.errors import UserError, nearest
from headway.serve.call_formats import DEEPSEEK_MARK, FORMATS, MISTRAL, CallFormat
from headway.serve.structured_outputs import RuleFactory, compile_format
from headway.serve.tool_calls import ToolCallParser

_MAX_TOOLS = 128  # tools per request
_NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FIELDS, _NO_PARAMETERS = ("name", "description", "parameters", "strict"), {"type": "object", "properties": {}}


def format_of(codec: TokenizerCodec, template: str) -> CallFormat:
    """A model's call format, from the tags in its chat template.

    UserError for a template without tools, or with an unsupported format.
    """
    known = "Hermes, Qwen, Llama 3, Mistral, DeepSeek, gpt-oss, GLM 4, Gemma, Granite and Command R"
    if "tools" not in template and DEEPSEEK_MARK not in template:
        raise UserError(
            f"the chat template does not support tools; use a model that was trained for them, such as {known}"
        )
    deepseek = DEEPSEEK_MARK in template
    call_format = next(
        (candidate for tag, candidate in FORMATS.items() if tag in template and deepseek == (candidate.around != ())),
        None,
    )
    if call_format is None and codec.token_id("<|python_tag|>") is not None and '"parameters"' in template:
        call_format = FORMATS["<|python_tag|>"]
    if call_format is None:
        raise UserError(f"the chat template has tool calls in a format that is not supported; use one of {known}")
    if call_format.middle_id not in template:
        call_format = replace(call_format, middle_id="")
    special = special_ids(codec.tokenizer)
    tags = [call_format.opening, call_format.closing, *call_format.prefix, call_format.middle, call_format.middle_id]
    tags += call_format.tags
    if call_format.opening == MISTRAL:  # Mistral models also generate the tags of newer ones
        tags += ["[ARGS]", "[CALL_ID]"]
    token_ids = {tag: token_id for tag in tags if (token_id := codec.token_id(tag or None)) in special}
    opening, closing = token_ids.pop(call_format.opening, None), token_ids.pop(call_format.closing, None)
    if call_format.addressed:  # its parts are found by the recipient of a message
        opening = closing = None
    return replace(call_format, opening_token=opening, closing_token=closing, inner=token_ids)


class Toolbox:
    """The tools of one request, with its `tool_choice`.

    `template_tools` are the tools for the chat template, None if none may be called. If `required`, the answer consists
    of calls only.
    """

    def __init__(
        self, codec: TokenizerCodec, template: str, tools: Sequence[Any], choice: Any = "auto", parallel: bool = True
    ) -> None:
        """`tools`, `choice` and `parallel` are tools, tool_choice and parallel_tool_calls of OpenAI's API.

        UserError for invalid values, and for a model that does not support tools.
        """
        if not isinstance(parallel, bool):
            raise UserError(f"parallel_tool_calls is {parallel!r:.40}; use true or false")
        self._codec = codec
        self._functions = _check_tools(tools)
        self.required, names = _parse_choice(choice, self._functions)
        self._offered = {name: self._functions[name] for name in names}
        self._call_format = format_of(codec, template) if names else None
        # Answers follow a grammar, so they contain no mistakes.
        self._constrained = self.required or any(function.get("strict") for function in self._offered.values())
        is_single = self._call_format is not None and (
            self._call_format.addressed or (self._call_format.bare and self.required)
        )
        self._parallel = parallel and not is_single
        self.template_tools = [_complete_tool(tool, template) for tool in tools] if names else None

    def rule(self, stop_ids: Iterable[int] = ()) -> RuleFactory | None:
        """Makes the rule for each answer: a call if one is required, and arguments that match their schema.

        None if the model is free: with "auto", unless a tool is `strict`. As slow as `rule_for`. UserError for a schema
        that cannot be enforced.
        """
        if self._call_format is None or not self._constrained:
            return None
        request = {
            "type": "calls",
            "format": asdict(self._call_format),
            "tools": [
                {"name": name, "schema": function.get("parameters") or _NO_PARAMETERS}
                for name, function in self._offered.items()
            ],
            "required": self.required,
            "parallel": self._parallel,
        }
        return compile_format(self._codec, request, stop_ids)

    def reader(self, streams: bool = False) -> ToolCallParser | None:
        """A parser for one answer; with `streams` it passes calls on as they arrive. None if no tool may be called, so
        that the answer is only text.
        """
        if self._call_format is None:
            return None
        return ToolCallParser(self._call_format, self._offered, self._parallel, streams, prose=not self._constrained)


def _check_tools(tools: Any) -> dict[str, Mapping[str, Any]]:
    """The tools' functions by name."""
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not 1 <= len(tools) <= _MAX_TOOLS:
        raise UserError(f"tools is {tools!r:.60}; send a list of 1 to {_MAX_TOOLS} functions")
    functions: dict[str, Mapping[str, Any]] = {}
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise UserError(f'tool {i} is not a function; send {{"type": "function", "function": {{"name": ...}}}}')
        name = function.get("name")
        if not isinstance(name, str) or not _NAME_PATTERN.fullmatch(name):
            raise UserError(f"tool {i} has the name {name!r:.80}; use 1 to 64 of the letters a-z, A-Z, 0-9, _ and -")
        unknown_field = next(
            (field for field, value in function.items() if field not in _FIELDS and value is not None), None
        )
        if unknown_field is not None:
            raise UserError(
                f"tool {name!r} has the unknown field {unknown_field!r:.60}; {nearest(unknown_field, _FIELDS)}"
            )
        parameters = function.get("parameters") or _NO_PARAMETERS
        if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
            raise UserError(f'tool {name!r} has parameters that are not an object; use {{"type": "object", ...}}')
        if name in functions:
            raise UserError(f"two tools have the name {name!r}; rename one of them")
        functions[name] = function
    return functions


def _complete_tool(tool: Mapping[str, Any], template: str) -> dict[str, Any]:
    """A tool as chat templates expect it: without null fields, and with all fields that the template uses."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    for name, default in (("description", ""), ("parameters", _NO_PARAMETERS)):
        if re.search(rf"\.{name}\b|\[['\"]{name}['\"]\]", template):
            function.setdefault(name, default)
    return {**{name: value for name, value in tool.items() if value is not None}, "function": function}


def _parse_choice(choice: Any, functions: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """Whether a call is required, and to which tools."""
    if choice in ("auto", "required", None):
        return choice == "required", list(functions)
    if choice == "none":
        return False, []
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise UserError(f"tool_choice is {choice!r:.80}; use none, auto, required or a function's name")
    if name not in functions:
        raise UserError(f"tool_choice is {name!r:.80}, which is not a tool of the request; {nearest(name, functions)}")
    return True, [name]


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: arguments of earlier calls are objects, and there is always a content.

    UserError for arguments that are not a JSON object.
    """
    converted = []
    for i, message in enumerate(messages):
        message = dict(message)
        if message.get("content") is None:
            message["content"] = ""
        calls = message.get("tool_calls")
        if calls is not None:
            if not isinstance(calls, Sequence) or not all(_is_call(call) for call in calls):
                raise UserError(f"message {i} has invalid tool_calls; send a list of function calls")
            message["tool_calls"] = [
                {
                    **call,
                    "function": {**call["function"], "arguments": _parse_arguments(call["function"]["arguments"], i)},
                }
                for call in calls
            ]
        converted.append(message)
    return converted


def arranged_messages(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """`template_messages` as templates with other conventions expect them.

    gpt-oss reads one call per message, followed by its output, and earlier thinking as `thinking`. GLM 4 reads the name
    of a call as `metadata`, and outputs with the role observation. DeepSeek reads calls only without content, and some
    of its templates read their arguments as a string.
    """
    arranged: list[dict[str, Any]] = []
    for message in messages:
        message, calls = dict(message), message.get("tool_calls") or []
        if "thinking" in template and message.get("reasoning_content") and not (calls and message["content"]):
            message["thinking"] = message["reasoning_content"]
        if calls and not message["content"] and re.search(r"content'?\]? is (?:not )?none", template):
            message["content"] = None
        if calls and re.search(r"\['arguments'\] \+", template):
            calls = message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _to_json(call["function"]["arguments"])}}
                for call in calls
            ]
        if CHANNEL in template and len(calls) > 1:
            arranged.append({**message, "tool_calls": calls[:1]})
            arranged += [{"role": message["role"], "content": "", "tool_calls": [call]} for call in calls[1:]]
            continue
        if CHANNEL in template and message["role"] == "tool":  # after its call
            ids = [(earlier.get("tool_calls") or [{}])[0].get("id") for earlier in arranged]
            position = max(
                (i for i, call_id in enumerate(ids) if call_id == message.get("tool_call_id", "")), default=-1
            )
            arranged.insert(position + 1 if position >= 0 else len(arranged), message)
            continue
        if "<|observation|>" in template and "metadata" in template:
            message |= {"role": "observation"} if message["role"] == "tool" else {}
            for call in calls:
                function = call["function"]
                content = _to_json(function["arguments"])
                arranged.append({"role": message["role"], "content": content, "metadata": function["name"]})
            if calls:
                continue
        arranged.append(message)
    return arranged


def _to_json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and "arguments" in function


def _parse_arguments(arguments: Any, index: int) -> Mapping[str, Any]:
    try:
        parsed = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, Mapping):
        raise UserError(f"message {index} has a call with arguments {arguments!r:.60}; send a JSON object as a string")
    return parsed
