"""/v1/responses: OpenAI's Responses API for text and tools. Requests are converted to /v1/chat/completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.generate import Event
from headway.serve.bodies import HINT, CalledFunction, CalledTool, ChatBody, ChatMessage, FinishReason, TokenLogprob
from headway.serve.body_reader import Neutral, Neutrals
from headway.serve.chat import prepare
from headway.serve.generation import GenerationJob, stream_events, token_usage
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, Events
from headway.serve.tool_calls import Arguments, ToolCall
from headway.serve.wire import NAMED

Count = Annotated[int, Meta(ge=1)]
Status = Literal["in_progress", "completed", "incomplete"]


_NOT_STORED = "the server stores no responses; leave it out, and send the earlier items in input"


class ResponseText(msgspec.Struct, forbid_unknown_fields=True):
    """The format of the answer, as in response_format."""

    format: dict[str, Any] | None = None
    NEUTRAL: ClassVar[Neutrals] = {
        "verbosity": Neutral(("medium",), "models have no verbosity setting; ask for it in instructions")
    }


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`effort` is reasoning_effort. Reasoning is returned in full, not summarised."""

    effort: str | None = None
    NEUTRAL: ClassVar[Neutrals] = {
        name: Neutral(("none", "auto"), "reasoning is not summarised; leave it out")
        for name in ("summary", "generate_summary")
    }


class EventOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Not supported, except for values without effect."""

    NEUTRAL: ClassVar[Neutrals] = {"include_obfuscation": Neutral((False,), "events are not padded; set it to false")}


class ResponseBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`input` is a user message or items: messages, reasoning, function_call and function_call_output. `seed`, `stop`,
    `top_k`, `min_p`, `repetition_penalty`, `chat_template_kwargs` and `thinking_token_budget` are those of
    /v1/chat/completions. `user` and `metadata` are repeated in the answer and have no other effect.
    """

    input: str | list[dict[str, Any]]
    model: str = ""  # optional if the server has one model
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    include: list[str] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None
    thinking_token_budget: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    reasoning: ReasoningOptions | None = None
    stream_options: EventOptions | None = None

    NEUTRAL: ClassVar[Neutrals] = {
        "store": Neutral((False,), _NOT_STORED),
        "previous_response_id": Neutral((), _NOT_STORED),
        "conversation": Neutral((), _NOT_STORED),
        "background": Neutral((False,), "background responses are not supported; leave it out"),
        "prompt": Neutral((), "the server stores no prompts; send instructions and input"),
        "truncation": Neutral(("disabled",), "conversations are not truncated; shorten input"),
        "service_tier": Neutral(("auto", "default"), "there is one tier; leave it out"),
        "max_tool_calls": Neutral((), "tools are called by the client; leave it out"),
        "safety_identifier": HINT,
        "prompt_cache_key": HINT,
        "prompt_cache_retention": HINT,
    }


class ContentPart(msgspec.Struct):
    """A part of an item: OutputText or ReasoningText."""

    text: str = ""


class OutputText(ContentPart):
    """Text, and the log probabilities of its tokens if requested."""

    logprobs: list[TokenLogprob] = []
    annotations: list[dict[str, Any]] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(msgspec.Struct, tag="message"):
    """A message from the assistant."""

    id: str
    content: list[OutputText]
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"


class ReasoningText(ContentPart):
    """The text of the thinking before an answer."""

    type: Literal["reasoning_text"] = "reasoning_text"


class ReasoningItem(msgspec.Struct, tag="reasoning"):
    """The thinking before an answer."""

    id: str
    content: list[ReasoningText]
    status: Status = "in_progress"
    summary: list[dict[str, Any]] = []


class FunctionCall(msgspec.Struct, tag="function_call"):
    """A tool call. The item with its output repeats `call_id`."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "in_progress"


class InputTokens(msgspec.Struct):
    """How many input tokens were cached by earlier requests. Cache writes are not counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokens(msgspec.Struct):
    """How many tokens of the output are thinking."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Token counts."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    output_tokens_details: OutputTokens


class IncompleteDetails(msgspec.Struct):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class Response(msgspec.Struct, kw_only=True):
    """The answer (in a stream, the part so far) and the settings of the request."""

    id: str
    created_at: int
    model: str
    output: list[ReasoningItem | OutputMessage | FunctionCall]
    status: Status
    usage: ResponseUsage | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    top_logprobs: int
    user: str | None
    error: None = None
    previous_response_id: None = None
    reasoning: dict[str, str] | None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"


class ResponseEvent(msgspec.Struct, kw_only=True):
    """An event in a stream. `type` determines its fields, as in the OpenAI API."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: ReasoningItem | OutputMessage | FunctionCall | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: ContentPart | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


async def create_response(body: ResponseBody, context: Context) -> Response | Events:
    """The answer to a conversation, complete or as events."""
    chat = chat_body(body)
    if body.stream:
        return Events(_stream_events(body, chat, context))
    async with _prepare(chat, context) as job, aclosing(stream_events(job, context)) as stream:
        builder = _ResponseBuilder(_response(body, job, context))
        async for event in stream:
            for _ in builder.add(event, job.token_logprob(event)):
                pass
        for _ in builder.close(context):
            pass
        return builder.response


async def _stream_events(body: ResponseBody, chat: ChatBody, context: Context) -> AsyncGenerator[ResponseEvent, None]:
    async with _prepare(chat, context) as job, aclosing(stream_events(job, context)) as stream:
        builder = _ResponseBuilder(_response(body, job, context))
        async for event in stream:
            for part in builder.add(event, job.token_logprob(event)):
                yield part
        for part in builder.close(context):
            yield part


_PARAMS = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
_PARAMS["reasoning_effort"] = "reasoning.effort"


@asynccontextmanager
async def _prepare(chat: ChatBody, context: Context) -> AsyncIterator[GenerationJob]:
    """A chat, prepared; errors name the fields of this API."""
    try:
        async with prepare(chat, context) as job:
            yield job
    except StatusError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise


def _response(body: ResponseBody, job: GenerationJob, context: Context) -> Response:
    return Response(
        id=f"resp_{context.id.removeprefix('req-')}",
        created_at=int(time.time()),
        model=job.ready.name,
        output=[],
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=1.0 if body.temperature is None else body.temperature,
        text={"format": (body.text and body.text.format) or {"type": "text"}},
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_p=1.0 if body.top_p is None else body.top_p,
        top_logprobs=body.top_logprobs or 0,
        user=body.user,
        reasoning={"effort": body.reasoning.effort} if body.reasoning and body.reasoning.effort else None,
    )


class _ResponseBuilder:
    """Builds the items of a response from the events of its tokens, and the events that report them. Items and the
    response are changed in place: each event is encoded before the next is made.
    """

    def __init__(self, response: Response) -> None:
        self.response = response
        self._next_number = 0  # of the next event
        self._item: ReasoningItem | OutputMessage | FunctionCall | None = None  # the item that may still grow
        self._tokens: list[TokenLogprob] = []  # for the next text
        self._reason: FinishReason = "stop"

    def add(self, event: Event, token: TokenLogprob | None) -> Iterator[ResponseEvent]:
        if not self._next_number:
            yield self._make_event("response.created", response=self.response)
            yield self._make_event("response.in_progress", response=self.response)
        self._tokens += [] if token is None else [token]
        if event.reasoning:
            yield from self._add_reasoning(event.reasoning)
        if event.text:
            yield from self._add_text(event.text)
        for call in event.calls:
            if isinstance(call, ToolCall):
                yield from self._finish_item()
                self._tokens = []  # they are the tokens of the call
                item = FunctionCall(self._item_id("fc"), call.id, call.name, "")
                yield from self._add_item(item)
                if call.arguments:
                    yield self._add_arguments(item, Arguments(call.arguments))
            elif isinstance(self._item, FunctionCall):
                yield self._add_arguments(self._item, call)
        self._reason = event.reason or self._reason

    def close(self, context: Context) -> Iterator[ResponseEvent]:
        """The last events of a response, after all tokens."""
        response, cut = self.response, self._reason == "length"
        if not response.output:
            yield from self._add_text("")
        yield from self._finish_item("incomplete" if cut else "completed")
        counts = token_usage(context)
        details = counts.completion_tokens_details
        reasoning_tokens = 0 if details is UNSET else details.reasoning_tokens
        cached = InputTokens(counts.prompt_tokens_details.cached_tokens)
        response.usage = ResponseUsage(
            counts.prompt_tokens, counts.completion_tokens, counts.total_tokens, cached, OutputTokens(reasoning_tokens)
        )
        response.status = "incomplete" if cut else "completed"
        if cut:
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        else:
            response.completed_at = int(time.time())
        yield self._make_event(f"response.{response.status}", response=response)

    def _add_reasoning(self, text: str) -> Iterator[ResponseEvent]:
        self._tokens = []
        item = self._item
        if not isinstance(item, ReasoningItem):
            yield from self._finish_item()
            item = ReasoningItem(self._item_id("rs"), [])
            yield from self._add_item(item)
            item.content.append(ReasoningText())
            yield self._make_event("response.content_part.added", **self._location(item), part=item.content[0])
        item.content[0].text += text
        yield self._make_event("response.reasoning_text.delta", **self._location(item), delta=text)

    def _add_text(self, text: str) -> Iterator[ResponseEvent]:
        if not isinstance(self._item, OutputMessage):
            yield from self._finish_item()
            message = OutputMessage(self._item_id("msg"), [])
            yield from self._add_item(message)
            message.content.append(OutputText())
            yield self._make_event("response.content_part.added", **self._location(message), part=message.content[0])
        else:
            message = self._item
        part, tokens, self._tokens = message.content[0], self._tokens, []
        part.text += text
        part.logprobs += tokens
        yield self._make_event("response.output_text.delta", **self._location(message), delta=text, logprobs=tokens)

    def _add_arguments(self, item: FunctionCall, new_arguments: Arguments) -> ResponseEvent:
        item.arguments += new_arguments.text
        self._tokens = []
        location = {"item_id": item.id, "output_index": len(self.response.output) - 1}
        return self._make_event("response.function_call_arguments.delta", **location, delta=new_arguments.text)

    def _add_item(self, item: ReasoningItem | OutputMessage | FunctionCall) -> Iterator[ResponseEvent]:
        self._item = item
        self.response.output.append(item)
        yield self._make_event("response.output_item.added", output_index=len(self.response.output) - 1, item=item)

    def _finish_item(self, status: Status = "completed") -> Iterator[ResponseEvent]:
        """The last item ends."""
        item, self._item = self._item, None
        if item is None:
            return
        item.status = status
        index = len(self.response.output) - 1
        if isinstance(item, ReasoningItem):
            part, location = item.content[0], self._location(item)
            yield self._make_event("response.reasoning_text.done", **location, text=part.text)
            yield self._make_event("response.content_part.done", **location, part=part)
        elif isinstance(item, OutputMessage):
            part, location = item.content[0], self._location(item)
            part.logprobs += self._tokens
            self._tokens = []
            yield self._make_event("response.output_text.done", **location, text=part.text, logprobs=part.logprobs)
            yield self._make_event("response.content_part.done", **location, part=part)
        else:
            try:
                is_object = isinstance(json.loads(item.arguments), dict)
            except (ValueError, RecursionError):
                is_object = False
            if not is_object:  # it was cut off, or turned out not to be a call
                item.status = "incomplete"
            fields = {"item_id": item.id, "name": item.name, "arguments": item.arguments}
            yield self._make_event("response.function_call_arguments.done", output_index=index, **fields)
        yield self._make_event("response.output_item.done", output_index=index, item=item)

    def _location(self, message: ReasoningItem | OutputMessage) -> dict[str, Any]:
        return {"item_id": message.id, "output_index": len(self.response.output) - 1, "content_index": 0}

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self.response.id.removeprefix('resp_')}_{len(self.response.output)}"

    def _make_event(self, kind: str, **fields: Any) -> ResponseEvent:
        self._next_number += 1
        return ResponseEvent(type=kind, sequence_number=self._next_number - 1, **fields)


_LOGPROBS = "message.output_text.logprobs"
# Output that clients may request; the second has no effect, because reasoning is not encrypted.
_SUPPORTED_INCLUDES = (_LOGPROBS, "reasoning.encrypted_content")


def chat_body(body: ResponseBody) -> ChatBody:
    """The equivalent request to /v1/chat/completions. StatusError 400 for unsupported values."""
    unsupported = next((name for name in body.include or () if name not in _SUPPORTED_INCLUDES), None)
    if unsupported is not None:
        raise StatusError(400, f"include has {unsupported[:80]!r}; use {_LOGPROBS}, or leave it out", "include")
    # Other tool choices are rejected later, with a list of all of them.
    tool_choice, text_format = body.tool_choice, body.text and body.text.format
    if isinstance(tool_choice, dict) and tool_choice.get("type") == "function":
        tool_choice = {"type": "function", "function": {"name": tool_choice.get("name")}}
    if text_format is not None and text_format.get("type") == "json_schema":
        schema = {name: value for name, value in text_format.items() if name != "type"}
        text_format = {"type": "json_schema", "json_schema": schema}
    return ChatBody(
        messages=_messages(body),
        model=body.model,
        stream=bool(body.stream),
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        stop=body.stop,
        logprobs=_LOGPROBS in (body.include or ()) or bool(body.top_logprobs),
        top_logprobs=body.top_logprobs,
        response_format=text_format,
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or ())] or None,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        chat_template_kwargs=body.chat_template_kwargs,
        thinking_token_budget=body.thinking_token_budget,
        reasoning_effort=body.reasoning and body.reasoning.effort,
    )


def _shorten(value: object) -> str:
    return f"{json.dumps(value)[:80]}"


def _messages(body: ResponseBody) -> list[ChatMessage]:
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages = [ChatMessage("system", body.instructions)] if body.instructions else []
    calls: set[str] = set()
    reasoning: str | None = None  # before the next answer or call
    for index, item in enumerate(items):
        param = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            role = item.get("role")
            if role not in ("user", "assistant", "system", "developer"):
                problem = f"{param} has the role {_shorten(role)}; use user, assistant, system or developer"
                raise StatusError(400, problem, f"{param}.role")
            content = _text_content(item.get("content"), f"{param}.content")
            message = ChatMessage("system" if role == "developer" else role, content)
            if messages and messages[-1].role == message.role == "system":  # templates take a single one, at the start
                messages[-1].content = f"{messages[-1].content}\n\n{message.content}"
            else:
                messages.append(message)
            if role == "assistant":
                message.reasoning_content, reasoning = reasoning, None
        elif kind == "reasoning":
            reasoning = _text_content(item.get("content") or item.get("summary") or "", f"{param}.content")
        elif kind == "function_call":
            function = CalledFunction(_string(item, "name", param), _string(item, "arguments", param))
            call = CalledTool(_string(item, "call_id", param), function)
            calls.add(call.id)
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage("assistant", reasoning_content=reasoning))
                reasoning = None
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
        elif kind == "function_call_output":
            id = _string(item, "call_id", param)
            if id not in calls:
                problem = f"{param} is the output of the call {id[:80]!r}, which is not among the items before it"
                raise StatusError(400, f"{problem}; send its function_call too", f"{param}.call_id")
            messages.append(ChatMessage("tool", _text_content(item.get("output"), f"{param}.output"), tool_call_id=id))
        else:
            known = "message, reasoning, function_call and function_call_output"
            remedy = f"{_NOT_STORED}" if kind == "item_reference" else f"send items of type {known}"
            raise StatusError(400, f"{param} is of type {_shorten(kind)}, which is not supported; {remedy}", param)
    return messages


def _string(item: Mapping[str, Any], name: str, param: str) -> str:
    if not isinstance(text := item.get(name), str):
        raise StatusError(400, f"{param} has {name} {_shorten(text)}; send a string", f"{param}.{name}")
    return text


_REMEDIES = {"input_image": "have /v1/caption describe it", "input_file": "send its text"}


def _text_content(content: object, param: str) -> str:
    """The text of a message or of a call's output. StatusError 400 for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise StatusError(400, f"{param} is {_shorten(content)}; send a string, or a list of text parts", param)
    texts = []
    for index, part in enumerate(content):
        path = f"{param}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_text", "output_text", "text", "reasoning_text", "summary_text"):
            remedy = _REMEDIES.get(str(kind), "send input_text")
            raise StatusError(400, f"{path} is of type {_shorten(kind)}, but only text is supported; {remedy}", path)
        texts.append(_string(part, "text", path))
    return "".join(texts)


_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def _tool(tool: Mapping[str, Any], param: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        problem = f"{param} is of type {_shorten(kind)}, but only functions are supported; define it as a function"
        raise StatusError(400, problem, f"{param}.type")
    unknown_field = next(
        (name for name, value in tool.items() if name not in (*_FUNCTION_FIELDS, "type") and value), None
    )
    if unknown_field is not None:
        problem = f"{param} has the field {unknown_field[:40]!r}; use {', '.join(_FUNCTION_FIELDS)}"
        raise StatusError(400, problem, f"{param}.{unknown_field[:40]}", "unknown_field")
    return {"type": kind, "function": {name: tool[name] for name in _FUNCTION_FIELDS if tool.get(name) is not None}}


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/responses",
        create_response,
        "the next answer in a conversation (OpenAI's Responses API)",
        ResponseBody,
        Response,
        ResponseEvent,
        NAMED,
    ),
)
