"""Common parts of text generation requests: settings, the remaining context, and answer tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int
from msgspec import UNSET

from headway.app.model import Model
from headway.codecs import TokenizerCodec
from headway.codecs.special_tokens import special_ids
from headway.codecs.tokenizer import BYTES, decoder_steps
from headway.errors import UserError
from headway.generate import Event, Limits, Rule, Sampling
from headway.generate.sampling import token_mask
from headway.generate.scheduler import Request
from headway.generate.score import TokenScore
from headway.serve.bodies import (
    CompletionBody,
    CompletionTokens,
    GenerationBody,
    PromptLogprobs,
    PromptToken,
    PromptTokens,
    TokenLogprob,
    TokensUsed,
    TopLogprob,
)
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, ReadyModel
from headway.serve.metrics import PROMPT_TOKENS
from headway.serve.structured_outputs import RuleFactory, rule_for
from headway.serve.tool_calls import ToolCallParser

_MAX_BIASES = 1024  # maximum tokens in logit_bias
_MAX_STOP_IDS = 1024  # maximum ids in stop_token_ids
_MAX_STOP_LENGTH = 1000  # characters per stop string
_MIN_LOGPROB = -9999.0  # log probability of impossible tokens: JSON has no infinity


def sampling_of(body: GenerationBody, vocab_size: int) -> Sampling:
    """The sampling settings. UserError for values out of range."""
    biases: dict[int, float] = {}
    if len(body.logit_bias or ()) > _MAX_BIASES:
        message = f"logit_bias has {len(body.logit_bias or ()):,} tokens, but the limit is {_MAX_BIASES:,}; send fewer"
        raise StatusError(400, message, "logit_bias")
    for name, bias in (body.logit_bias or {}).items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < vocab_size):
            message = f"logit_bias has the token {name[:40]!r}; use ids from 0 to {vocab_size - 1} as strings"
            raise StatusError(400, message, "logit_bias")
        if not -100 <= bias <= 100:
            raise StatusError(400, f"logit_bias of {name} is {bias:g}; use a number from -100 to 100", "logit_bias")
        biases[int(name)] = bias
    settings: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty or None,
        "frequency_penalty": body.frequency_penalty or None,
        "logit_bias": biases or None,
        "seed": body.seed,
    }
    return Sampling(**{name: value for name, value in settings.items() if value is not None})


def num_samples(body: GenerationBody, prompts: int, context: Context) -> int:
    """The number of continuations per prompt. StatusError 400 if there are too many in total."""
    n, settings = body.n or 1, context.settings
    if n > settings.max_n:
        raise StatusError(400, f"n is {n}; use an integer from 1 to {settings.max_n}", "n")
    if n * prompts > settings.max_sequences:
        message = f"{prompts} prompts with n={n} are {n * prompts} sequences, but the limit is {settings.max_sequences}"
        raise StatusError(400, f"{message}; send several requests", "prompt")
    return n


def limits_of(body: GenerationBody, model: Model, context: Context) -> Limits:
    """When generation stops, except for its length. StatusError 400 for too many or too long stop strings, and unknown
    ids.
    """
    requested = body.stop or ()
    stop = (requested,) if isinstance(requested, str) else tuple(requested)
    if len(stop) > context.settings.max_stop_strings:
        message = f"stop has {len(stop)} strings, but the limit is {context.settings.max_stop_strings}; send fewer"
        raise StatusError(400, message, "stop")
    if any(len(text) > _MAX_STOP_LENGTH for text in stop):
        raise StatusError(
            400, f"a string in stop has more than {_MAX_STOP_LENGTH:,} characters; use a shorter one", "stop"
        )
    ids = body.stop_token_ids or []
    if len(ids) > _MAX_STOP_IDS:
        message = f"stop_token_ids has {len(ids):,} ids, but the limit is {_MAX_STOP_IDS:,}; send fewer"
        raise StatusError(400, message, "stop_token_ids")
    _check_ids(ids, model, "stop_token_ids")
    ignore_end = body.ignore_end or body.ignore_eos
    end_ids = () if ignore_end else model.usage.ends
    return Limits(1, stop, (*end_ids, *ids), ignore_end)


def _check_ids(ids: Sequence[int], model: Model, param: str) -> None:
    vocab_size = model.module.config.vocab_size
    wrong = next((id for id in ids if not 0 <= id < vocab_size), None)
    if wrong is not None:
        raise StatusError(400, f"{param} has the id {wrong}; use ids from 0 to {vocab_size - 1}", param)


def check_body(body: GenerationBody) -> None:
    """StatusError 400 for fields that require or exclude others."""
    if body.stream_options is not None and not body.stream:
        raise StatusError(400, "stream_options needs stream; set stream to true, or leave it out", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise StatusError(400, "prompt_logprobs cannot be streamed; set stream to false", "prompt_logprobs")
    max_tokens = body.max_tokens or getattr(body, "max_completion_tokens", None)
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise StatusError(
            400,
            f"min_tokens is {body.min_tokens}, but max_tokens is {max_tokens}; use a smaller min_tokens",
            "min_tokens",
        )
    if body.structured_outputs is not None and body.response_format is not None:
        message = "response_format and structured_outputs are both set; leave one of them out"
        raise StatusError(400, message, "structured_outputs")


def truncate_prompt(ids: list[int], body: GenerationBody, model: Model, new: int) -> list[int]:
    """The prompt tokens that `truncate_prompt_tokens` leaves; `new` tokens will be generated after them."""
    max_prompt = body.truncate_prompt_tokens
    if max_prompt is None:
        return ids
    if max_prompt == -1:
        if model.context is None:
            return ids
        max_prompt = max(1, model.context - new)
    if not max_prompt:
        message = "truncate_prompt_tokens is 0, which leaves no prompt; use -1, or an integer of at least 1"
        raise StatusError(400, message, "truncate_prompt_tokens")
    return ids[-max_prompt:] if body.truncation_side == "left" else ids[:max_prompt]


def remaining_context(ids: Sequence[int], model: Model, param: str, generates: bool = True) -> int | None:
    """The number of tokens that fit into the context after a prompt; None if it is unlimited. StatusError 400 if none
    fit, unless nothing is generated.
    """
    if model.context is None:
        return None
    if len(ids) >= model.context + (not generates):
        message = f"the prompt has {len(ids):,} tokens, but the context of {model.context:,} must also fit an answer"
        raise StatusError(400, f"{message}; shorten it", param, "context_length_exceeded")
    return model.context - len(ids)


async def rule_of(body: GenerationBody, model: Model, stop_ids: Iterable[int]) -> RuleFactory | None:
    """Makes rules that enforce `response_format` and let `stop_ids` end the text; None for plain text. UserError for a
    format that cannot be enforced.
    """
    response_format: Mapping[str, Any] | None = body.response_format
    if body.structured_outputs is not None:  # vLLM's name for it
        outputs = body.structured_outputs
        requested = {name: value for name, value in outputs.items() if value is not None and value is not False}
        [name, *more] = requested or ["nothing"]
        if more or name not in ("json", "json_object", "regex", "choice"):
            names = ", ".join(requested)[:100] or name
            message = f"structured_outputs has {names}; use one of json, json_object, regex, choice"
            raise StatusError(400, message, "structured_outputs")
        if name == "json":
            schema = {"name": "structured_outputs", "schema": requested["json"]}
            response_format = {"type": "json_schema", "json_schema": schema}
        else:
            response_format = {"type": name} if name == "json_object" else {"type": name, name: requested[name]}
    if response_format is None:
        return None
    return await asyncio.to_thread(rule_for, text_codec(model), response_format, tuple(stop_ids))


def restricted_rule(
    rule: Callable[[], Rule] | None, body: GenerationBody, model: Model, limits: Limits
) -> Callable[[], Rule] | None:
    """A rule that also enforces `allowed_token_ids` and `min_tokens`. StatusError 400 for unknown ids."""
    if body.allowed_token_ids is not None:
        if not body.allowed_token_ids:
            raise StatusError(400, "allowed_token_ids is empty; send ids, or leave it out", "allowed_token_ids")
        _check_ids(body.allowed_token_ids, model, "allowed_token_ids")
    if body.allowed_token_ids is None and not body.min_tokens:
        return rule
    vocab_size, stop_ids = model.module.config.vocab_size, limits.all_stop_ids(model.codec) if body.min_tokens else ()
    allowed = None if body.allowed_token_ids is None else token_mask(body.allowed_token_ids, vocab_size)
    stop_mask = token_mask(stop_ids, vocab_size)
    return lambda: RestrictedRule(None if rule is None else rule(), allowed, stop_mask, body.min_tokens)


class RestrictedRule:
    """Restricts the tokens of another rule, or all tokens."""

    def __init__(
        self, inner: Rule | None, allowed: Int[np.ndarray, "W"] | None, stop_mask: Int[np.ndarray, "W"], min_tokens: int
    ) -> None:
        """`allowed` and `stop_mask` have one bit per token: the allowed tokens, and those that may not occur among the
        first `min_tokens`.
        """
        self._inner, self._allowed, self._not_stop, self._min_tokens_left = inner, allowed, ~stop_mask, min_tokens

    def fill(self, mask: np.ndarray) -> None:
        if self._inner is None:
            mask[:] = -1
        else:
            self._inner.fill(mask)
        if self._allowed is not None:
            mask &= self._allowed
        if self._min_tokens_left > 0:
            mask &= self._not_stop

    def take(self, token: int) -> None:
        self._min_tokens_left -= 1
        if self._inner is not None:
            self._inner.take(token)


def prompt_top(body: GenerationBody) -> int | None:
    """The number of top tokens in a prompt's scores; None if the prompt is not scored."""
    echoed = body.logprobs if isinstance(body, CompletionBody) and body.echo else None
    wanted = [top for top in (echoed, body.prompt_logprobs) if top is not None]
    return max(wanted, default=None)


def text_codec(model: Model) -> TokenizerCodec:
    """A model's tokenizer. UserError if it has none that the server can use."""
    codec = model.codec
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"{model.directory.name} has no tokenizer.json, which this request needs; add the file")
    return codec


class GenerationJob(NamedTuple):
    """Requests to a loaded model, with the reader of tool calls for each sequence."""

    ready: ReadyModel
    requests: Sequence[Request]
    with_logprobs: bool  # whether log probabilities are requested
    readers: Sequence[ToolCallParser] = ()
    by_id: bool = False  # whether tokens are named by their ids

    def request(self, index: int) -> Request:
        """The request of the sequence with this index."""
        for request in self.requests:
            index -= request.n
            if index < 0:
                return request
        raise IndexError(index)

    def token_logprob(self, event: Event) -> TokenLogprob | None:
        """The log probability of an event's token, if requested."""
        if not self.with_logprobs or event.id is None:
            return None
        return TokenFormatter.of(self.ready.model).token_logprob(event.id, event.logprob, event.top, self.by_id)


async def stream_events(job: GenerationJob, context: Context) -> AsyncGenerator[Event, None]:
    """The events as they happen, with tool calls taken out of their text. Token counts are recorded for the log and for
    `token_usage`. StatusError 400 if the model does not generate text.
    """
    ready = job.ready
    prompt_tokens, generated = sum(len(request.prompt) for request in job.requests), 0
    first_indices = accumulate((request.n for request in job.requests[:-1]), initial=0)
    cached = dict.fromkeys(first_indices, 0)  # cached tokens per request, by the index of its first sequence
    context.log_fields.update(model=ready.name, prompt_tokens=prompt_tokens, cached_tokens=0, completion_tokens=0)
    thinks, reasoning_tokens = any(request.reader is not None for request in job.requests), 0
    PROMPT_TOKENS.labels(ready.name).inc(prompt_tokens)
    if ready.loop is None:
        message = f"{ready.name} does not generate text; use it to {', '.join(ready.model.verbs) or 'do other tasks'}"
        raise StatusError(400, message, "model")
    async with ready.loop.stream(job.requests) as generation, aclosing(generation.events()) as events:
        async for event in events:
            if job.readers:
                reader, token = job.readers[event.sequence], None if event.thinking else event.id
                parts = [*reader.push(event.text, token, event.recipient)]
                parts += reader.flush() if event.reason is not None else []
                event.text = "".join(part for part in parts if isinstance(part, str))
                event.calls = [part for part in parts if not isinstance(part, str)]
                if event.reason == "stop" and reader.calls and not reader.broken:
                    event.reason = "tool_calls"
            generated += event.id is not None
            context.log_fields["completion_tokens"] = generated
            if thinks:
                reasoning_tokens += event.thinking
                context.log_fields["reasoning_tokens"] = reasoning_tokens
            if event.sequence in cached:
                cached[event.sequence] = event.cached_tokens
                context.log_fields["cached_tokens"] = sum(cached.values())
            yield event


class TokenFormatter:
    """Token names in a model's answers."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self._codec = codec
        self._special = special_ids(codec.tokenizer)
        self._kinds = {step["type"] for step in decoder_steps(codec.tokenizer)}

    @classmethod
    def of(cls, model: Model) -> TokenFormatter:
        """For a model's tokenizer; created once."""
        codec = text_codec(model)
        if codec not in _formatters:
            _formatters[codec] = cls(codec)
        return _formatters[codec]

    def token_logprob(
        self, id: int, logprob: float, top: Sequence[tuple[int, float]], by_id: bool = False
    ) -> TokenLogprob:
        """A token, its log probability, and the top tokens; with `by_id`, tokens are named by their ids."""
        top_logprobs = [TopLogprob(*self._token_parts(top_id, value, by_id)) for top_id, value in top]
        return TokenLogprob(*self._token_parts(id, logprob, by_id), top_logprobs)

    def prompt_logprobs(self, scores: Sequence[TokenScore], top: int) -> PromptLogprobs:
        """The scores of a prompt's tokens, each with its `top` tokens; the first token has none."""
        logprobs: PromptLogprobs = [None]
        for score in scores:
            ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(score.top[:top], 1)]
            entries = {score.id: (score.logprob, score.rank)} | {id: (logprob, rank) for id, logprob, rank in ranked}
            logprobs.append({
                str(id): PromptToken(max(logprob, _MIN_LOGPROB), rank, self.token_bytes(id).decode("utf-8", "replace"))
                for id, (logprob, rank) in entries.items()
            })  # fmt: skip
        return logprobs

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token: usually the text that it adds, which may be part of a character."""
        piece = self._codec.tokenizer.id_to_token(id)
        if piece is None:
            return b""
        if id in self._special:
            return piece.encode()
        if "ByteLevel" in self._kinds and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        if "ByteFallback" in self._kinds and len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        if "WordPiece" in self._kinds:
            return (piece.removeprefix("##") if piece.startswith("##") else f" {piece}").encode()
        return piece.replace("\u2581", " ").encode() if self._kinds & {"Metaspace", "Replace"} else piece.encode()

    def _token_parts(self, id: int, logprob: float, by_id: bool) -> tuple[str, float, list[int]]:
        spelt = self.token_bytes(id)
        name = f"token_id:{id}" if by_id else spelt.decode("utf-8", "replace")
        return name, max(logprob, _MIN_LOGPROB), list(spelt)


_formatters: WeakKeyDictionary[TokenizerCodec, TokenFormatter] = WeakKeyDictionary()


def token_usage(context: Context, pending: int = 0) -> TokensUsed:
    """The token counts that `stream_events` recorded, without the `pending` tokens that are not sent yet."""
    prompt_tokens, cached_tokens, completion_tokens = (
        int(context.log_fields[f"{name}_tokens"]) for name in ("prompt", "cached", "completion")
    )
    completion_tokens -= pending
    reasoning_tokens = context.log_fields.get("reasoning_tokens")
    return TokensUsed(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokens(cached_tokens),
        UNSET if reasoning_tokens is None else CompletionTokens(int(reasoning_tokens)),
    )
