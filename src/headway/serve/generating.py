"""Common parts of requests that generate text: settings, the remaining context, and the tokens of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from headway.app.model import Model
from headway.codecs import TokenizerCodec
from headway.codecs.base import BYTES, decoder_steps, special_ids
from headway.errors import UserError
from headway.generate import Limits, Sampling
from headway.generate.scheduler import Request, Rule
from headway.generate.score import TokenScore
from headway.serve.allowed_tokens import narrowed
from headway.serve.bodies import (
    CompletionBody,
    Finish,
    LikelyToken,
    PromptLogprobs,
    PromptToken,
    PromptTokens,
    TokensUsed,
    ToldToken,
    WritingBody,
)
from headway.serve.calls import Arguments, CallReader, ToolCall
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Ready
from headway.serve.loop import EngineLoop
from headway.serve.metrics import READ
from headway.serve.rules import FormMaker, rule_for

_BIASES = 1024  # maximum tokens in logit_bias
_STOP_IDS = 1024  # maximum ids in stop_token_ids
_STOP = 1000  # maximum characters of a stop string
_NO_CALLS: Sequence[ToolCall | Arguments] = ()
_LEAST = -9999.0  # log probability of impossible tokens: JSON has no infinity


def writer(ready: Ready) -> EngineLoop:
    """The engine loop of a model. StatusError 400 if the model does not generate text."""
    if ready.loop is None:
        told = f"{ready.name} does not generate text; use it to {', '.join(ready.model.verbs) or 'do other tasks'}"
        raise StatusError(400, told, "model")
    return ready.loop


def sampling_of(body: WritingBody, symbols: int) -> Sampling:
    """The sampling settings. UserError for values out of range."""
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty or None,
        "frequency_penalty": body.frequency_penalty or None,
        "logit_bias": _biases(body.logit_bias, symbols) if body.logit_bias else None,
        "seed": body.seed,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _biases(given: Mapping[str, float], symbols: int) -> dict[int, float]:
    if len(given) > _BIASES:
        told = f"logit_bias has {len(given):,} tokens, but the limit is {_BIASES:,}; send fewer"
        raise StatusError(400, told, "logit_bias")
    found = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < symbols):
            told = f"logit_bias has the token {name[:40]!r}; use ids from 0 to {symbols - 1} as strings"
            raise StatusError(400, told, "logit_bias")
        if not -100 <= bias <= 100:
            raise StatusError(400, f"logit_bias of {name} is {bias:g}; use a number from -100 to 100", "logit_bias")
        found[int(name)] = bias
    return found


def copies_of(body: WritingBody, prompts: int, context: Context) -> int:
    """The number of continuations per prompt. StatusError 400 if there are too many in total."""
    copies, settings = body.n or 1, context.settings
    if copies > settings.copies:
        raise StatusError(400, f"n is {copies}; use an integer from 1 to {settings.copies}", "n")
    if copies * prompts > settings.sequences:
        told = f"{prompts} prompts with n={copies} make {copies * prompts} texts, but the limit is {settings.sequences}"
        raise StatusError(400, f"{told}; send several requests", "prompt")
    return copies


def limits_of(body: WritingBody, model: Model, context: Context) -> Limits:
    """When a text stops, except for its length. StatusError 400 for too many or too long stop strings, and unknown
    ids.
    """
    given = body.stop or ()
    stop = (given,) if isinstance(given, str) else tuple(given)
    if len(stop) > context.settings.stops:
        told = f"stop has {len(stop)} strings, but the limit is {context.settings.stops}; send fewer"
        raise StatusError(400, told, "stop")
    if any(len(text) > _STOP for text in stop):
        raise StatusError(400, f"a string in stop has more than {_STOP:,} characters; use a shorter one", "stop")
    ids = body.stop_token_ids or []
    if len(ids) > _STOP_IDS:
        told = f"stop_token_ids has {len(ids):,} ids, but the limit is {_STOP_IDS:,}; send fewer"
        raise StatusError(400, told, "stop_token_ids")
    _check_ids(ids, model, "stop_token_ids")
    ignores = body.ignore_end or body.ignore_eos
    ends = () if ignores else model.usage.ends
    return Limits(1, stop, (*ends, *ids), ignores)


def _check_ids(ids: Sequence[int], model: Model, param: str) -> None:
    symbols = model.module.config.symbols
    wrong = next((each for each in ids if not 0 <= each < symbols), None)
    if wrong is not None:
        raise StatusError(400, f"{param} has the id {wrong}; use ids from 0 to {symbols - 1}", param)


def check_body(body: WritingBody) -> None:
    """StatusError 400 for fields that require or exclude others."""
    if body.stream_options is not None and not body.stream:
        raise StatusError(400, "stream_options needs stream; set stream to true, or leave it out", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise StatusError(400, "prompt_logprobs cannot be streamed; set stream to false", "prompt_logprobs")
    most = body.max_tokens or getattr(body, "max_completion_tokens", None)
    if most is not None and body.min_tokens > most:
        raise StatusError(
            400, f"min_tokens is {body.min_tokens}, but max_tokens is {most}; use a smaller min_tokens", "min_tokens"
        )
    if body.structured_outputs is not None and body.response_format is not None:
        told = "response_format and structured_outputs are both set; leave one of them out"
        raise StatusError(400, told, "structured_outputs")


def truncated(ids: list[int], body: WritingBody, model: Model, new: int) -> list[int]:
    """The prompt tokens that `truncate_prompt_tokens` leaves; `new` tokens will be generated after them."""
    most = body.truncate_prompt_tokens
    if most is None:
        return ids
    if most == -1:
        if model.context is None:
            return ids
        most = max(1, model.context - new)
    if not most:
        told = "truncate_prompt_tokens is 0, which leaves no prompt; use -1, or an integer from 1 up"
        raise StatusError(400, told, "truncate_prompt_tokens")
    return ids[-most:] if body.truncation_side == "left" else ids[:most]


def room_for(ids: Sequence[int], model: Model, param: str, generates: bool = True) -> int | None:
    """The number of tokens that fit into the context after a prompt; None if it is unlimited. StatusError 400 if none
    fit, unless nothing is generated.
    """
    if model.context is None:
        return None
    if len(ids) >= model.context + (not generates):
        told = f"the prompt has {len(ids):,} tokens, but the context of {model.context:,} must also fit an answer"
        raise StatusError(400, f"{told}; shorten it", param, "context_length_exceeded")
    return model.context - len(ids)


async def rule_of(body: WritingBody, model: Model, ends: Iterable[int]) -> FormMaker | None:
    """Makes rules that enforce `response_format` and let `stop_ids` end the text; None for plain text. UserError for a
    format that cannot be enforced.
    """
    form = body.response_format
    if body.structured_outputs is not None:
        form = _form_of(body.structured_outputs)
    return None if form is None else await asyncio.to_thread(rule_for, text_codec(model), form, tuple(ends))


def _form_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """`structured_outputs` as a `response_format`."""
    wanted = {name: value for name, value in outputs.items() if value is not None and value is not False}
    [name, *more] = wanted or ["nothing"]
    if more or name not in ("json", "json_object", "regex", "choice"):
        told = f"structured_outputs has {', '.join(wanted)[:100] or name}; use one of json, json_object, regex, choice"
        raise StatusError(400, told, "structured_outputs")
    if name == "json":
        return {"type": "json_schema", "json_schema": {"name": "structured_outputs", "schema": wanted["json"]}}
    return {"type": name} if name == "json_object" else {"type": name, name: wanted[name]}


def narrowed_rule(
    rule: Callable[[], Rule] | None, body: WritingBody, model: Model, limits: Limits
) -> Callable[[], Rule] | None:
    """A rule that also enforces `allowed_token_ids` and `min_tokens`. StatusError 400 for unknown ids."""
    if body.allowed_token_ids is not None:
        if not body.allowed_token_ids:
            raise StatusError(400, "allowed_token_ids is empty; send ids, or leave it out", "allowed_token_ids")
        _check_ids(body.allowed_token_ids, model, "allowed_token_ids")
    ends = limits.ends(model.codec) if body.min_tokens else ()
    return narrowed(rule, model.module.config.symbols, body.allowed_token_ids, ends, body.min_tokens)


def prompt_top(body: WritingBody) -> int | None:
    """The number of top tokens in the scores of a prompt; None if the prompt is not scored."""
    echoed = body.logprobs if isinstance(body, CompletionBody) and body.echo else None
    wanted = [each for each in (echoed, body.prompt_logprobs) if each is not None]
    return max(wanted, default=None)


def text_codec(model: Model) -> TokenizerCodec:
    """The tokenizer of a model. UserError if it has none that the server can use."""
    codec = model.codec
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"{model.directory.name} has no tokenizer.json, which this request needs; add the file")
    return codec


class Prepared(NamedTuple):
    """Requests to a loaded model, with the reader of tool calls for each sequence."""

    ready: Ready
    requests: Sequence[Request]
    told: bool  # whether log probabilities are requested
    readers: Sequence[CallReader] = ()
    by_id: bool = False  # whether tokens are named by their ids

    def request(self, place: int) -> Request:
        """The request of the sequence with this index."""
        for request in self.requests:
            place -= request.copies
            if place < 0:
                return request
        raise IndexError(place)


class Passage(NamedTuple):
    """The output of one step for one of the requested sequences."""

    place: int
    text: str
    calls: Sequence[ToolCall | Arguments]
    token: ToldToken | None  # if requested
    reason: Finish | None
    id: int | None = None
    scores: Sequence[TokenScore] = ()  # of the prompt, in the first delta of a sequence


async def passages(asked: Prepared, context: Context) -> AsyncGenerator[Passage, None]:
    """The output as it is generated. Token counts are recorded for the log and for `token_usage`."""
    read, written = sum(len(request.prompt) for request in asked.requests), 0
    firsts = accumulate((request.copies for request in asked.requests[:-1]), initial=0)
    known = dict.fromkeys(firsts, 0)  # cached tokens per request, by the index of its first sequence
    context.noted.update(model=asked.ready.name, prompt_tokens=read, cached_tokens=0, completion_tokens=0)
    READ.labels(asked.ready.name).inc(read)
    spell = Spelling.of(asked.ready.model) if asked.told else None
    async with writer(asked.ready).write(asked.requests) as writing, aclosing(writing.turns()) as turns:
        async for place, said in turns:
            text, calls, reason = said.text, _NO_CALLS, said.reason
            if asked.readers:
                reader = asked.readers[place]
                parts = [*reader.push(said.text, said.id), *(reader.flush() if reason is not None else [])]
                text = "".join(part for part in parts if isinstance(part, str))
                calls = [part for part in parts if not isinstance(part, str)]
                reason = "tool_calls" if reason == "stop" and reader.calls and not reader.broken else reason
            token = None
            if spell is not None and said.id is not None:
                token = spell.told(said.id, said.logprob, said.top, asked.by_id)
            written += said.id is not None
            context.noted["completion_tokens"] = written
            if place in known:
                known[place] = said.known
                context.noted["cached_tokens"] = sum(known.values())
            yield Passage(place, text, calls, token, reason, said.id, said.scores)


class Spelling:
    """The names of a model's tokens in answers."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self._codec = codec
        self._special = special_ids(codec.tokenizer)
        self._kinds = {step["type"] for step in decoder_steps(codec.tokenizer)}

    @classmethod
    def of(cls, model: Model) -> Spelling:
        """For a model's tokenizer; made once."""
        codec = text_codec(model)
        if codec not in _spellings:
            _spellings[codec] = cls(codec)
        return _spellings[codec]

    def told(self, id: int, logprob: float, top: Sequence[tuple[int, float]], by_id: bool = False) -> ToldToken:
        """A token, its log probability, and the top tokens; with `by_id`, tokens are named by their ids."""
        likeliest = [LikelyToken(*self._parts(other, value, by_id)) for other, value in top]
        return ToldToken(*self._parts(id, logprob, by_id), likeliest)

    def scored(self, scores: Sequence[TokenScore], top: int) -> PromptLogprobs:
        """The scores of a prompt's tokens, each with its `top` tokens; the first token has none."""
        found: PromptLogprobs = [None]
        for each in scores:
            ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(each.top[:top], 1)]
            told = {each.id: (each.logprob, each.rank)} | {id: (logprob, rank) for id, logprob, rank in ranked}
            found.append({
                str(id): PromptToken(max(logprob, _LEAST), rank, self.bytes(id).decode("utf-8", "replace"))
                for id, (logprob, rank) in told.items()
            })  # fmt: skip
        return found

    def bytes(self, id: int) -> bytes:
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

    def _parts(self, id: int, logprob: float, by_id: bool) -> tuple[str, float, list[int]]:
        spelt = self.bytes(id)
        name = f"token_id:{id}" if by_id else spelt.decode("utf-8", "replace")
        return name, max(logprob, _LEAST), list(spelt)


_spellings: WeakKeyDictionary[TokenizerCodec, Spelling] = WeakKeyDictionary()


def used(context: Context, pending: int = 0) -> TokensUsed:
    """The token counts that `stream_deltas` recorded, without the `pending` tokens that are not sent yet."""
    read, known, written = (int(context.noted[f"{name}_tokens"]) for name in ("prompt", "cached", "completion"))
    written -= pending
    return TokensUsed(read, written, read + written, PromptTokens(known))
