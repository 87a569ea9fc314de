"""The Ollama API for its clients: /api/chat, /api/generate, /api/embed, and descriptions of models. Requests are
converted to those of /v1/chat/completions, /v1/completions and /v1/embeddings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from headway import __version__
from headway.codecs.thinking_format import thinking_format
from headway.generate.thinking import answer_reader
from headway.serve import chat, completions, embeddings
from headway.serve.bodies import CalledFunction, CalledTool, ChatBody, ChatMessage, CompletionBody, TokenLogprob
from headway.serve.generation import GenerationJob, stream_events, text_codec
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint, Events, ModelSummary, ReadyModel
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
from headway.serve.tool_calls import ToolCall
from headway.serve.wire import JSON_LINES

VERSION = "0.12.11"  # the Ollama version of this API: clients query it to decide which features to use
_DEFAULT_MAX_TOKENS = 4096  # tokens per answer if neither the request nor the context limits it


async def answer_chat(body: OllamaChatBody, context: Context) -> OllamaLine | Events:
    """The next answer in a conversation."""
    name = _model_name(body.model, context)
    if not body.messages:
        return await _load_model(body, name, context)
    job_context = chat.prepare(_chat_body(body, name, _messages(body.messages), body.tools), context)
    return await _answer(body, job_context, context)


async def answer_generate(body: GenerateBody, context: Context) -> OllamaLine | Events:
    """The answer to a prompt, or its continuation."""
    if body.images:
        raise StatusError(400, "text models do not accept images; describe them with /v1/caption", "images")
    if body.template:
        raise StatusError(400, "templates in requests are not supported; send a formatted prompt with raw", "template")
    if body.context:
        raise StatusError(400, "context is not supported; send the conversation to /api/chat", "context")
    name = _model_name(body.model, context)
    if not body.prompt and not body.suffix:
        return await _load_model(body, name, context)
    async with context.served.using(name) as ready:
        prompt: Any = body.prompt or ""
        if body.suffix:
            infill_ids, encode = _infill_ids(ready), text_codec(ready.model).encode
            if infill_ids is None:
                problem = f"its tokenizer has no tokens such as {_INFILL_TOKENS[0][0]}"
                message = f"{ready.name} does not support infilling: {problem}; leave suffix out"
                raise StatusError(400, message, "suffix")
            prefix_id, suffix_id, middle_id = infill_ids
            prompt = [prefix_id, *encode(prompt), suffix_id, *encode(body.suffix), middle_id]
        elif ready.model.usage.template is not None and not body.raw:
            messages = [ChatMessage("system", body.system)] if body.system else []
            messages.append(ChatMessage("user", prompt))
            return await _answer(body, chat.prepare(_chat_body(body, name, messages), context), context)
        if body.system:
            problem = f"{name} gets only the prompt in this request; put the system text into it"
            raise StatusError(400, problem, "system")
        settings = _settings(body)
        settings["max_tokens"] = settings["max_tokens"] or ready.model.context or _DEFAULT_MAX_TOKENS
        logprobs = (body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None
        completion = CompletionBody(model=name, prompt=prompt, logprobs=logprobs, **settings)
        return await _answer(body, completions.prepare(completion, context), context)


async def create_embeddings(body: EmbedBody, context: Context) -> EmbedAnswer:
    """The embedding of each input."""
    started = time.perf_counter_ns()
    if not body.input:
        await _load_model(body, _model_name(body.model, context), context)
        return EmbedAnswer(body.model, [], time.perf_counter_ns() - started, 0, 0)
    inputs: Any = body.input
    request = embeddings.EmbeddingBody(
        inputs, _model_name(body.model, context), dimensions=body.dimensions, truncate=body.truncate is not False
    )
    answer = await embeddings.embed(request, context)
    vectors = [vector.embedding for vector in answer.data]
    return EmbedAnswer(body.model, vectors, time.perf_counter_ns() - started, 0, answer.usage.prompt_tokens)


async def create_embedding(body: EmbeddingsBody, context: Context) -> EmbeddingsAnswer:
    """The embedding of a text."""
    answer = await create_embeddings(EmbedBody(model=body.model, input=body.prompt), context)
    return EmbeddingsAnswer(answer.embeddings[0] if answer.embeddings else [])


async def list_models(body: None, context: Context) -> ModelsAnswer:
    """All models, loaded or not, also those that are new in the folders."""
    await context.served.refresh()
    return ModelsAnswer(
        [ListedModel(**_model_fields(name, summary)) for name, summary in context.served.listed().items()]
    )


async def list_running(body: None, context: Context) -> RunningAnswer:
    """The loaded models that generate text."""
    listed, never = context.served.listed(), datetime.max.replace(tzinfo=UTC).isoformat()
    models = []
    for name in context.served.loops():
        length = listed[name].context or 0
        models.append(
            RunningModel(**_model_fields(name, listed[name]), expires_at=never, size_vram=0, context_length=length)
        )
    return RunningAnswer(models)


async def show(body: ShowBody, context: Context) -> ShowAnswer:
    """The description of a model, which is loaded because its chat template determines its capabilities."""
    name = _model_name(body.model or body.name, context)
    summary = context.served.summary(name)
    async with context.served.using(name) as ready:
        usage = ready.model.usage
        template = usage.template or ""
        if "generate" in summary.verbs:  # generative models are not offered for embeddings, although they support them
            capabilities = ["completion", *(["insert"] if _infill_ids(ready) is not None else [])]
        else:
            capabilities = ["embedding"] if "embed" in summary.verbs else []
        capabilities += ["tools"] * ("tools" in template) + ["thinking"] * ("think" in template)
        family = usage.family or "headway"
        model_info = {"general.architecture": family, "general.parameter_count": summary.parameters}
        if summary.context is not None:
            model_info[f"{family}.context_length"] = summary.context
        details = Details(_format_size(summary.parameters), family, [family])
        return ShowAnswer(details, model_info, capabilities, _format_time(summary.modified), template)


async def version(body: None, context: Context) -> OllamaVersion:
    return OllamaVersion(VERSION, __version__)


async def refuse(body: None, context: Context) -> OllamaVersion:
    """StatusError 400: models are chosen when the server starts."""
    action = context.route.rpartition("/")[2] if "{" not in context.route else "blobs"
    problem = f"{action} is not supported: models are chosen when headway serve starts"
    raise StatusError(400, f"{problem}; restart it with another one, or with --models FOLDER", code="not_served")


def _model_name(name: str, context: Context) -> str:
    """A model's name on this server: Ollama clients add :latest to names without a tag."""
    return name if name in context.served.listed() else name.removesuffix(":latest")


async def _load_model(body: ModelBody, name: str, context: Context) -> OllamaLine:
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
    response_format = body.format
    if isinstance(response_format, str) and response_format not in ("", "json"):
        raise StatusError(400, f'format is {response_format[:80]!r}; send "json" or a JSON schema', "format")
    schema = {"type": "json_schema", "json_schema": {"name": "format", "schema": response_format}}
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
        "response_format": None
        if not response_format
        else {"type": "json_object"}
        if response_format == "json"
        else schema,
    }


_THINKING_VARIABLES = ("enable_thinking", "thinking")


def _chat_body(
    body: TextBody, name: str, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None
) -> ChatBody:
    # Templates use either name.
    thinking_variables: dict[str, Any] = (
        {} if body.think is None else {name: bool(body.think) for name in _THINKING_VARIABLES}
    )
    settings = {**_settings(body), "stream": False}  # so that tool calls are not split
    return ChatBody(
        model=name,
        messages=messages,
        tools=[{"type": "function", **tool} for tool in tools or ()] or None,
        logprobs=bool(body.logprobs or body.top_logprobs),
        top_logprobs=body.top_logprobs,
        chat_template_kwargs=thinking_variables or None,
        thinking_token_budget=0 if body.think is False else None,
        **settings,
    )


def _messages(messages: Sequence[OllamaMessage]) -> list[ChatMessage]:
    """The messages as in /v1/chat/completions. Calls without an id get one, which their outputs repeat in order."""
    converted, pending_ids = [], []
    for position, message in enumerate(messages):
        if message.images:
            problem = (
                f"messages[{position}] has images, which text models do not accept; describe them with /v1/caption"
            )
            raise StatusError(400, problem, f"messages[{position}].images")
        chat_message = ChatMessage(message.role, message.content, reasoning_content=message.thinking)
        if message.tool_calls:
            ids = [call.id or f"call{position:02d}{index:03d}" for index, call in enumerate(message.tool_calls)]
            pending_ids = list(ids)
            chat_message.tool_calls = [
                CalledTool(id, CalledFunction(call.function.name, json.dumps(call.function.arguments)))
                for id, call in zip(ids, message.tool_calls)
            ]
        elif message.content is None:
            chat_message.content = ""
        if message.role == "tool":
            id = message.tool_call_id or (pending_ids.pop(0) if pending_ids else None)
            chat_message.tool_call_id = id or UNSET
            chat_message.name = message.tool_name or UNSET
        converted.append(chat_message)
    return converted


async def _answer(
    body: TextBody, job_context: AbstractAsyncContextManager[GenerationJob], context: Context
) -> OllamaLine | Events:
    lines = _stream_lines(body, job_context, context)
    if body.stream is not False:
        return Events(lines)
    contents, thoughts, calls, tokens = [], [], [], []
    async with aclosing(lines):
        async for line in lines:
            message = line.message or LineMessage(line.response or "", line.thinking)
            contents.append(message.content)
            thoughts.append(message.thinking or "")
            calls += message.tool_calls or []
            tokens += line.logprobs or []
    _set_output(line, "".join(contents), "".join(thoughts), calls, tokens)  # the last line, which has the statistics
    return line


async def _stream_lines(
    body: TextBody, job_context: AbstractAsyncContextManager[GenerationJob], context: Context
) -> AsyncGenerator[OllamaLine, None]:
    started = time.perf_counter_ns()
    async with job_context as job, aclosing(stream_events(_with_reader(job), context)) as stream:
        load_end = prompt_end = time.perf_counter_ns()
        template = job.ready.model.usage.template or ""
        if body.think and "think" not in template:
            raise StatusError(400, f"{body.model} is not a reasoning model; leave think out", "think")
        reason = "stop"
        async for event in stream:
            if prompt_end == load_end:
                prompt_end = time.perf_counter_ns()
            text, thinking = event.text, event.reasoning
            reason = "length" if event.reason == "length" else "stop"
            token = job.token_logprob(event)
            calls, tokens = [], [] if token is None else [token]
            for call in event.calls:
                if isinstance(call, ToolCall):
                    arguments: Any = msgspec.Raw(call.arguments.encode())
                    calls.append(MessageCall(CallFunction(call.name, arguments), call.id))
            if text or thinking or calls or tokens:
                line = _line(body)
                _set_output(line, text, thinking, calls, tokens)
                yield line
        end = time.perf_counter_ns()
        last = _line(body)
        _set_output(last, "", "", [], [])
        last.done, last.done_reason = True, reason
        last.total_duration, last.load_duration = end - started, load_end - started
        last.prompt_eval_duration, last.eval_duration = prompt_end - load_end, end - prompt_end
        last.prompt_eval_count = int(context.log_fields["prompt_tokens"])
        last.eval_count = int(context.log_fields["completion_tokens"])
        yield last


def _with_reader(job: GenerationJob) -> GenerationJob:
    """The job with a reader that separates thinking, also for a raw prompt."""
    [request] = job.requests
    template, codec = job.ready.model.usage.template, text_codec(job.ready.model)
    thinking = None if request.reader is not None or template is None else thinking_format(codec, template)
    if thinking is None:
        return job
    state = thinking.state_after(codec.decode(list(request.prompt[-8:])))
    return job._replace(requests=[replace(request, reader=partial(answer_reader, thinking, state))])


def _line(body: TextBody) -> OllamaLine:
    line = OllamaLine(model=body.model, created_at=_now())
    if isinstance(body, OllamaChatBody):
        line.message = LineMessage("")
    return line


def _set_output(
    line: OllamaLine, text: str, thinking: str, calls: list[MessageCall], tokens: list[TokenLogprob]
) -> None:
    """Put the output into a line."""
    if line.message is UNSET:
        line.response, line.thinking = text, thinking or UNSET
    else:
        line.message = LineMessage(text, thinking or UNSET, calls or UNSET)
    line.logprobs = tokens or UNSET


_INFILL_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)


def _infill_ids(ready: ReadyModel) -> list[int] | None:
    """The special tokens for infilling, which code models are trained with; None if the tokenizer has none."""
    codec = text_codec(ready.model)
    for names in _INFILL_TOKENS:
        ids = [id for name in names if (id := codec.token_id(name)) is not None]
        if len(ids) == len(names):
            return ids
    return None


def _model_fields(name: str, summary: ModelSummary) -> dict[str, Any]:
    identity = f"{name} {summary.modified} {summary.parameters}"
    return {
        "name": name,
        "model": name,
        "modified_at": _format_time(summary.modified),
        "size": 4 * summary.parameters,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": Details(_format_size(summary.parameters)),
    }


def _format_size(parameters: int) -> str:
    """A number of parameters in Ollama's format."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters)


def _format_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _now() -> str:
    return datetime.now(UTC).isoformat()


ENDPOINTS = (
    Endpoint(
        "POST", "/api/chat", answer_chat, "the next answer in a conversation, for Ollama clients", OllamaChatBody,
        OllamaLine, OllamaLine, JSON_LINES,
    ),
    Endpoint(
        "POST", "/api/generate", answer_generate, "the answer to a prompt, for Ollama clients", GenerateBody,
        OllamaLine, OllamaLine, JSON_LINES,
    ),
    Endpoint("POST", "/api/embed", create_embeddings, "the embedding of each input, for Ollama clients",
    EmbedBody, EmbedAnswer),
    Endpoint(
        "POST", "/api/embeddings", create_embedding, "the embedding of a string, for older Ollama clients",
        EmbeddingsBody,
        EmbeddingsAnswer,
    ),
    Endpoint("GET", "/api/tags", list_models, "the models, for Ollama clients", None, ModelsAnswer),
    Endpoint("POST", "/api/show", show, "one model, for Ollama clients", ShowBody, ShowAnswer),
    Endpoint("GET", "/api/ps", list_running, "the loaded models, for Ollama clients", None, RunningAnswer),
    Endpoint("GET", "/api/version", version, "the version of the Ollama API", None, OllamaVersion),
    *(Endpoint("POST", f"/api/{each}", refuse, "not supported: models are chosen when the server starts")
      for each in ("pull", "push", "create", "copy", "blobs/{digest}")),
    Endpoint("DELETE", "/api/delete", refuse, "not supported: models are chosen when the server starts"),
)  # fmt: skip
