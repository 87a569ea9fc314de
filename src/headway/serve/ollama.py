"""The Ollama API for its clients: /api/chat, /api/generate, /api/embed, and descriptions of models. Requests are
converted to those of /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from headway import __version__
from headway.serve import chat, completions, embeddings
from headway.serve.bodies import CalledFunction, CalledTool, ChatBody, ChatMessage, CompletionBody, ToldToken
from headway.serve.calls import ToolCall
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint, Events, Known, Ready
from headway.serve.generating import Passage, Prepared, passages, text_codec
from headway.serve.ollama_bodies import (
    CallFunction,
    Details,
    EmbedAnswer,
    EmbedBody,
    EmbeddingsAnswer,
    EmbeddingsBody,
    GenerateBody,
    LineMessage,
    ListedModel,
    MessageCall,
    ModelBody,
    ModelsAnswer,
    OllamaChatBody,
    OllamaLine,
    OllamaMessage,
    OllamaVersion,
    Options,
    RunningAnswer,
    RunningModel,
    ShowAnswer,
    ShowBody,
    TextBody,
)
from headway.serve.thinking import CLOSE, OPEN, Thoughts
from headway.serve.wire import JSON_LINES

VERSION = "0.12.11"  # of Ollama, whose API this is: clients ask for the version and use its features
_UNLIMITED = 4096  # tokens of a text if neither the request nor the context limits it


async def chatted(body: OllamaChatBody, context: Context) -> OllamaLine | Events:
    """The next answer in a conversation."""
    name = _name(body.model, context)
    if not body.messages:
        return await _loaded(body, name, context)
    asked = chat.prepared(_chat_body(body, name, _messages(body.messages), body.tools), context)
    return await _answer(body, asked, context)


async def generated(body: GenerateBody, context: Context) -> OllamaLine | Events:
    """The answer to a prompt, or its continuation."""
    if body.images:
        raise StatusError(400, "text models do not accept images; describe them with /v1/caption", "images")
    if body.template:
        raise StatusError(400, "templates in requests are not supported; fill it in, and set raw", "template")
    if body.context:
        raise StatusError(400, "context is not supported; send the conversation to /api/chat", "context")
    name = _name(body.model, context)
    if not body.prompt and not body.suffix:
        return await _loaded(body, name, context)
    async with context.served.using(name) as ready:
        prompt: Any = body.prompt or ""
        if body.suffix:
            prompt = _infilled(ready, prompt, body.suffix)
        elif ready.model.usage.template is not None and not body.raw:
            messages = [ChatMessage("system", body.system)] if body.system else []
            messages.append(ChatMessage("user", prompt))
            return await _answer(body, chat.prepared(_chat_body(body, name, messages), context), context)
        if body.system:
            problem = f"{name} gets only the prompt in this request; put the text of system into it"
            raise StatusError(400, problem, "system")
        settings = _settings(body)
        settings["max_tokens"] = settings["max_tokens"] or ready.model.context or _UNLIMITED
        logprobs = (body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None
        completion = CompletionBody(model=name, prompt=prompt, logprobs=logprobs, **settings)
        return await _answer(body, completions.prepared(completion, context), context)


async def embedded(body: EmbedBody, context: Context) -> EmbedAnswer:
    """The embedding of each input."""
    started = time.perf_counter_ns()
    if not body.input:
        await _loaded(body, _name(body.model, context), context)
        return EmbedAnswer(body.model, [], time.perf_counter_ns() - started, 0, 0)
    texts: Any = body.input
    asked = embeddings.EmbeddingBody(
        texts,
        _name(body.model, context),
        dimensions=body.dimensions,
        truncate=body.truncate is not False,
    )
    found = await embeddings.embed(asked, context)
    vectors = [each.embedding for each in found.data]
    return EmbedAnswer(body.model, vectors, time.perf_counter_ns() - started, 0, found.usage.prompt_tokens)


async def embedded_one(body: EmbeddingsBody, context: Context) -> EmbeddingsAnswer:
    """The embedding of a text."""
    found = await embedded(EmbedBody(model=body.model, input=body.prompt), context)
    return EmbeddingsAnswer(found.embeddings[0] if found.embeddings else [])


async def tags(body: None, context: Context) -> ModelsAnswer:
    """All models, loaded or not."""
    return ModelsAnswer([ListedModel(**_listed(name, each)) for name, each in context.served.listed().items()])


async def running(body: None, context: Context) -> RunningAnswer:
    """The loaded models that generate text."""
    listed, never = context.served.listed(), datetime.max.replace(tzinfo=UTC).isoformat()
    found = []
    for name in context.served.loops():
        length = listed[name].context or 0
        found.append(RunningModel(**_listed(name, listed[name]), expires_at=never, size_vram=0, context_length=length))
    return RunningAnswer(found)


async def show(body: ShowBody, context: Context) -> ShowAnswer:
    """The description of a model, which is loaded because its chat template determines its capabilities."""
    name = _name(body.model or body.name, context)
    known = context.served.known(name)
    async with context.served.using(name) as ready:
        usage = ready.model.usage
        template = usage.template or ""
        if "generate" in known.verbs:  # generative models are not offered for embeddings, although they have them
            can = ["completion", *(["insert"] if _infill_marks(ready) is not None else [])]
        else:
            can = ["embedding"] if "embed" in known.verbs else []
        can += ["tools"] * ("tools" in template) + ["thinking"] * ("think" in template)
        family = usage.family or "headway"
        info = {"general.architecture": family, "general.parameter_count": known.parameters}
        if known.context is not None:
            info[f"{family}.context_length"] = known.context
        details = Details(_size(known.parameters), family, [family])
        return ShowAnswer(details, info, can, _time(known.changed), template)


async def version(body: None, context: Context) -> OllamaVersion:
    return OllamaVersion(VERSION, __version__)


async def refused(body: None, context: Context) -> OllamaVersion:
    """StatusError 400: models are chosen when the server starts."""
    what = context.route.rpartition("/")[2] if "{" not in context.route else "blobs"
    problem = f"{what} is not supported: the models are those that headway serve was started with"
    raise StatusError(400, f"{problem}; restart it with another one, or with --models FOLDER", code="not_served")


def _name(name: str, context: Context) -> str:
    """A model's name on this server: Ollama clients add :latest to names without a tag."""
    return name if name in context.served.listed() else name.removesuffix(":latest")


async def _loaded(body: ModelBody, name: str, context: Context) -> OllamaLine:
    started = time.perf_counter_ns()
    async with context.served.using(name):
        took = time.perf_counter_ns() - started
    line = OllamaLine(model=body.model, created_at=_now(), done=True, done_reason="load")
    line.total_duration = line.load_duration = took
    if isinstance(body, OllamaChatBody):
        line.message = LineMessage("")
    else:
        line.response = ""
    return line


def _settings(body: TextBody) -> dict[str, Any]:
    """Fields of /v1/completions for the options. StatusError 400 for unsupported options."""
    options = body.options or Options()
    penalty = options.repeat_penalty if options.repeat_last_n != 0 else None
    if penalty not in (None, 1.0) and (options.repeat_last_n or -1) > 0:
        problem = f"options.repeat_last_n is {options.repeat_last_n}, but repeat_penalty counts all tokens"
        raise StatusError(400, f"{problem}; leave it out, or send -1", "options.repeat_last_n")
    form = body.format
    if isinstance(form, str) and form not in ("", "json"):
        raise StatusError(400, f'format is {form[:80]!r}; send "json" or a JSON schema', "format")
    schema = {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}
    return {
        "stream": body.stream is not False,
        "max_tokens": options.num_predict if (options.num_predict or 0) > 0 else None,
        "temperature": options.temperature,
        "top_k": options.top_k if (options.top_k or 0) > 0 else None,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": options.seed if (options.seed or 0) >= 0 else None,
        "stop": options.stop,
        "repetition_penalty": penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "response_format": None if not form else {"type": "json_object"} if form == "json" else schema,
    }


_THINKS = ("enable_thinking", "thinking")


def _chat_body(
    body: TextBody, name: str, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None
) -> ChatBody:
    # Templates use either name.
    thinks: dict[str, Any] = {} if body.think is None else {name: bool(body.think) for name in _THINKS}
    settings = {**_settings(body), "stream": False}  # so that tool calls are not split
    return ChatBody(
        model=name,
        messages=messages,
        tools=[{"type": "function", **tool} for tool in tools or ()] or None,
        logprobs=bool(body.logprobs or body.top_logprobs),
        top_logprobs=body.top_logprobs,
        chat_template_kwargs=thinks or None,
        **settings,
    )


def _messages(given: Sequence[OllamaMessage]) -> list[ChatMessage]:
    """The messages as in /v1/chat/completions. Calls without an id get one, which their outputs repeat in order."""
    found, waiting = [], []
    for place, message in enumerate(given):
        if message.images:
            problem = f"messages[{place}] has images, which text models do not accept; describe them with /v1/caption"
            raise StatusError(400, problem, f"messages[{place}].images")
        one = ChatMessage(message.role, message.content)
        if message.tool_calls:
            ids = [call.id or f"call{place:02d}{index:03d}" for index, call in enumerate(message.tool_calls)]
            waiting = list(ids)
            one.tool_calls = [
                CalledTool(id, CalledFunction(call.function.name, json.dumps(call.function.arguments)))
                for id, call in zip(ids, message.tool_calls)
            ]
        elif message.content is None:
            one.content = ""
        if message.role == "tool":
            id = message.tool_call_id or (waiting.pop(0) if waiting else None)
            one.tool_call_id = id or UNSET
            one.name = message.tool_name or UNSET
        found.append(one)
    return found


async def _answer(
    body: TextBody, asked: AbstractAsyncContextManager[Prepared], context: Context
) -> OllamaLine | Events:
    lines = _lines(body, asked, context)
    if body.stream is not False:
        return Events(lines)
    texts, thoughts, calls, tokens = [], [], [], []
    async with aclosing(lines):
        async for line in lines:
            message = line.message or LineMessage(line.response or "", line.thinking)
            texts.append(message.content)
            thoughts.append(message.thinking or "")
            calls += message.tool_calls or []
            tokens += line.logprobs or []
    _say(line, "".join(texts), "".join(thoughts), calls, tokens)  # the last line, which has the statistics
    return line


async def _lines(
    body: TextBody, asked: AbstractAsyncContextManager[Prepared], context: Context
) -> AsyncGenerator[OllamaLine, None]:
    started = time.perf_counter_ns()
    async with asked as prepared, aclosing(passages(prepared, context)) as found:
        loaded = read = time.perf_counter_ns()
        thoughts = _thoughts(body, prepared)
        reason = "stop"
        async for passage in found:
            if read == loaded:
                read = time.perf_counter_ns()
            text, thinking = thoughts.split(passage.text, passage.reason is not None)
            reason = "length" if passage.reason == "length" else "stop"
            calls, tokens = _calls(passage), [] if passage.token is None else [passage.token]
            if text or thinking or calls or tokens:
                line = _line(body)
                _say(line, text, thinking, calls, tokens)
                yield line
        ended = time.perf_counter_ns()
        last = _line(body)
        _say(last, "", "", [], [])
        last.done, last.done_reason = True, reason
        last.total_duration, last.load_duration = ended - started, loaded - started
        last.prompt_eval_duration, last.eval_duration = read - loaded, ended - read
        last.prompt_eval_count = int(context.noted["prompt_tokens"])
        last.eval_count = int(context.noted["completion_tokens"])
        yield last


def _line(body: TextBody) -> OllamaLine:
    line = OllamaLine(model=body.model, created_at=_now())
    if isinstance(body, OllamaChatBody):
        line.message = LineMessage("")
    return line


def _say(line: OllamaLine, text: str, thinking: str, calls: list[MessageCall], tokens: list[ToldToken]) -> None:
    """Put the output into a line."""
    if line.message is UNSET:
        line.response, line.thinking = text, thinking or UNSET
    else:
        line.message = LineMessage(text, thinking or UNSET, calls or UNSET)
    line.logprobs = tokens or UNSET


def _calls(passage: Passage) -> list[MessageCall]:
    whole = [call for call in passage.calls if isinstance(call, ToolCall)]
    as_written: Any = [msgspec.Raw(call.arguments.encode()) for call in whole]
    return [MessageCall(CallFunction(call.name, raw), call.id) for call, raw in zip(whole, as_written)]


def _thoughts(body: TextBody, prepared: Prepared) -> Thoughts:
    """StatusError 400 if reasoning is requested and the model has none."""
    template = prepared.ready.model.usage.template or ""
    if body.think and "think" not in template:
        raise StatusError(400, f"{body.model} is not a reasoning model; leave think out", "think")
    if OPEN not in template and CLOSE not in template:
        return Thoughts(False, False)
    prompt = text_codec(prepared.ready.model).decode(list(prepared.requests[0].prompt[-8:]))
    return Thoughts(True, prompt.rstrip().endswith(OPEN))


_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)


def _infill_marks(ready: Ready) -> list[int] | None:
    """The special tokens for infilling, which code models are trained with; None if the tokenizer has none."""
    codec = text_codec(ready.model)
    for names in _MARKS:
        ids = [id for name in names if (id := codec.token(name)) is not None]
        if len(ids) == len(names):
            return ids
    return None


def _infilled(ready: Ready, prompt: str, suffix: str) -> list[int]:
    marks, codec = _infill_marks(ready), text_codec(ready.model)
    if marks is None:
        problem = f"{ready.name} does not support infilling: its tokenizer has no tokens such as {_MARKS[0][0]}"
        raise StatusError(400, f"{problem}; leave suffix out", "suffix")
    before, behind, between = marks
    return [before, *codec.encode(prompt), behind, *codec.encode(suffix), between]


def _listed(name: str, known: Known) -> dict[str, Any]:
    identity = f"{name} {known.changed} {known.parameters}"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(known.changed),
        "size": 4 * known.parameters,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": Details(_size(known.parameters)),
    }


def _size(parameters: int) -> str:
    """A number of parameters in Ollama's format."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _now() -> str:
    return datetime.now(UTC).isoformat()


ENDPOINTS = (
    Endpoint(
        "POST", "/api/chat", chatted, "the next answer in a conversation, for Ollama clients", OllamaChatBody,
        OllamaLine, OllamaLine, JSON_LINES,
    ),
    Endpoint(
        "POST", "/api/generate", generated, "the answer to a prompt, for Ollama clients", GenerateBody,
        OllamaLine, OllamaLine, JSON_LINES,
    ),
    Endpoint("POST", "/api/embed", embedded, "the embedding of each input, for Ollama clients", EmbedBody, EmbedAnswer),
    Endpoint(
        "POST", "/api/embeddings", embedded_one, "the embedding of a text, for older Ollama clients", EmbeddingsBody,
        EmbeddingsAnswer,
    ),
    Endpoint("GET", "/api/tags", tags, "the models, for Ollama clients", None, ModelsAnswer),
    Endpoint("POST", "/api/show", show, "one model, for Ollama clients", ShowBody, ShowAnswer),
    Endpoint("GET", "/api/ps", running, "the loaded models, for Ollama clients", None, RunningAnswer),
    Endpoint("GET", "/api/version", version, "the version of the Ollama API", None, OllamaVersion),
    *(Endpoint("POST", f"/api/{each}", refused, "not supported: models are chosen when the server starts")
      for each in ("pull", "push", "create", "copy", "blobs/{digest}")),
    Endpoint("DELETE", "/api/delete", refused, "not supported: models are chosen when the server starts"),
)  # fmt: skip
