"""What requests for texts have in common: settings out of fields, room in the context, and tokens as they are told."""

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

_BIASES = 1024  # symbols that logit_bias names
_STOP_IDS = 1024  # ids of stop_token_ids
_STOP = 1000  # characters of a stop string
_NO_CALLS: Sequence[ToolCall | Arguments] = ()
_LEAST = -9999.0  # log probability of what cannot be: JSON has no infinity


def writer(ready: Ready) -> EngineLoop:
    """What writes the texts of a model. StatusError 400 where it writes none."""
    if ready.loop is None:
        told = f"{ready.name} writes no texts; it can {', '.join(ready.model.verbs) or 'do nothing that is served'}"
        raise StatusError(400, told, "model")
    return ready.loop


def sampling_of(body: WritingBody, symbols: int) -> Sampling:
    """How tokens are drawn. UserError for numbers out of range."""
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
        told = f"logit_bias names {len(given):,} tokens, {_BIASES:,} are the most; name fewer"
        raise StatusError(400, told, "logit_bias")
    found = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < symbols):
            told = f"logit_bias names the token {name[:40]!r}; give ids from 0 to {symbols - 1} as texts"
            raise StatusError(400, told, "logit_bias")
        if not -100 <= bias <= 100:
            raise StatusError(400, f"logit_bias of {name} is {bias:g}; give a number from -100 to 100", "logit_bias")
        found[int(name)] = bias
    return found


def copies_of(body: WritingBody, prompts: int, context: Context) -> int:
    """How many continuations of each of so many prompts. StatusError 400 where there would be too many."""
    copies, settings = body.n or 1, context.settings
    if copies > settings.copies:
        raise StatusError(400, f"n is {copies}; give a whole number from 1 to {settings.copies}", "n")
    if copies * prompts > settings.sequences:
        told = f"{prompts} prompts with n={copies} are {copies * prompts} texts, {settings.sequences} are the most"
        raise StatusError(400, f"{told}; send several requests", "prompt")
    return copies


def limits_of(body: WritingBody, model: Model, context: Context) -> Limits:
    """When a text ends, but for its length. StatusError 400 for too many or too long stop strings, and unknown ids."""
    given = body.stop or ()
    stop = (given,) if isinstance(given, str) else tuple(given)
    if len(stop) > context.settings.stops:
        told = f"stop has {len(stop)} texts, {context.settings.stops} are the most; give fewer"
        raise StatusError(400, told, "stop")
    if any(len(text) > _STOP for text in stop):
        raise StatusError(400, f"a text in stop has more than {_STOP:,} characters; give a shorter one", "stop")
    ids = body.stop_token_ids or []
    if len(ids) > _STOP_IDS:
        told = f"stop_token_ids has {len(ids):,} ids, {_STOP_IDS:,} are the most; pass fewer"
        raise StatusError(400, told, "stop_token_ids")
    _check_ids(ids, model, "stop_token_ids")
    ignores = body.ignore_end or body.ignore_eos
    ends = () if ignores else model.usage.ends
    return Limits(1, stop, (*ends, *ids), ignores)


def _check_ids(ids: Sequence[int], model: Model, param: str) -> None:
    symbols = model.module.config.symbols
    wrong = next((each for each in ids if not 0 <= each < symbols), None)
    if wrong is not None:
        raise StatusError(400, f"{param} has the id {wrong}; pass ids from 0 to {symbols - 1}", param)


def check_body(body: WritingBody) -> None:
    """StatusError 400 for fields that need others, or exclude them."""
    if body.stream_options is not None and not body.stream:
        raise StatusError(400, "stream_options needs stream; set stream to true, or leave it out", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise StatusError(400, "a stream has no prompt_logprobs; set stream to false", "prompt_logprobs")
    most = body.max_tokens or getattr(body, "max_completion_tokens", None)
    if most is not None and body.min_tokens > most:
        raise StatusError(
            400, f"min_tokens is {body.min_tokens}, more than max_tokens, {most}; ask for fewer", "min_tokens"
        )
    if body.structured_outputs is not None and body.response_format is not None:
        told = "response_format and structured_outputs are both set; leave one of them out"
        raise StatusError(400, told, "structured_outputs")


def truncated(ids: list[int], body: WritingBody, model: Model, new: int) -> list[int]:
    """As many tokens of a prompt as `truncate_prompt_tokens` leaves; `new` are those that are generated behind it."""
    most = body.truncate_prompt_tokens
    if most is None:
        return ids
    if most == -1:
        if model.context is None:
            return ids
        most = max(1, model.context - new)
    if not most:
        told = "truncate_prompt_tokens is 0, which leaves no prompt; pass -1 or a whole number from 1 on"
        raise StatusError(400, told, "truncate_prompt_tokens")
    return ids[-most:] if body.truncation_side == "left" else ids[:most]


def room_for(ids: Sequence[int], model: Model, param: str, generates: bool = True) -> int | None:
    """Tokens that the context has room for behind a prompt; None where it has no end. StatusError 400 for none, unless
    nothing is generated.
    """
    if model.context is None:
        return None
    if len(ids) >= model.context + (not generates):
        told = f"the prompt has {len(ids):,} tokens, and the context of {model.context:,} must hold an answer too"
        raise StatusError(400, f"{told}; shorten it", param, "context_length_exceeded")
    return model.context - len(ids)


async def rule_of(body: WritingBody, model: Model, ends: Iterable[int]) -> FormMaker | None:
    """What holds a text to `response_format`, and lets `ends` end it; None for plain text. UserError for a form that
    cannot be held to.
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
        told = f"structured_outputs has {', '.join(wanted)[:100] or name}; pass one of json, json_object, regex, choice"
        raise StatusError(400, told, "structured_outputs")
    if name == "json":
        return {"type": "json_schema", "json_schema": {"name": "structured_outputs", "schema": wanted["json"]}}
    return {"type": name} if name == "json_object" else {"type": name, name: wanted[name]}


def narrowed_rule(
    rule: Callable[[], Rule] | None, body: WritingBody, model: Model, limits: Limits
) -> Callable[[], Rule] | None:
    """A rule that also keeps to `allowed_token_ids` and `min_tokens`. StatusError 400 for ids that are unknown."""
    if body.allowed_token_ids is not None:
        if not body.allowed_token_ids:
            raise StatusError(400, "allowed_token_ids is empty; pass ids, or leave it out", "allowed_token_ids")
        _check_ids(body.allowed_token_ids, model, "allowed_token_ids")
    ends = limits.ends(model.codec) if body.min_tokens else ()
    return narrowed(rule, model.module.config.symbols, body.allowed_token_ids, ends, body.min_tokens)


def prompt_top(body: WritingBody) -> int | None:
    """Of how many of the likeliest tokens the scores of a prompt report; None where it is not scored."""
    echoed = body.logprobs if isinstance(body, CompletionBody) and body.echo else None
    wanted = [each for each in (echoed, body.prompt_logprobs) if each is not None]
    return max(wanted, default=None)


def text_codec(model: Model) -> TokenizerCodec:
    """The tokenizer of a model. UserError where it has none of the kind that can be served."""
    codec = model.codec
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"{model.directory.name} has no tokenizer.json, which this needs; put it there")
    return codec


class Prepared(NamedTuple):
    """What is asked of a model that is loaded, and who reads each of the sequences for calls of tools."""

    ready: Ready
    requests: Sequence[Request]
    told: bool  # whether log probabilities are wanted
    readers: Sequence[CallReader] = ()
    by_id: bool = False  # whether tokens are told as their ids

    def request(self, place: int) -> Request:
        """That of the sequence at this place."""
        for request in self.requests:
            place -= request.copies
            if place < 0:
                return request
        raise IndexError(place)


class Passage(NamedTuple):
    """What one step adds to one of the sequences that were asked for."""

    place: int
    text: str
    calls: Sequence[ToolCall | Arguments]
    token: ToldToken | None  # where it is wanted
    reason: Finish | None
    id: int | None = None
    scores: Sequence[TokenScore] = ()  # of the prompt, with the first passage of a sequence


async def passages(asked: Prepared, context: Context) -> AsyncGenerator[Passage, None]:
    """All that is written, as it comes. The numbers of tokens are noted for the log, and for `used`."""
    read, written = sum(len(request.prompt) for request in asked.requests), 0
    firsts = accumulate((request.copies for request in asked.requests[:-1]), initial=0)
    known = dict.fromkeys(firsts, 0)  # of each request, by the place of its first copy, which reads the prompt for all
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
    """The tokens of a model as they are told."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self._codec = codec
        self._special = special_ids(codec.tokenizer)
        self._kinds = {step["type"] for step in decoder_steps(codec.tokenizer)}

    @classmethod
    def of(cls, model: Model) -> Spelling:
        """Of a model's tokenizer, made once."""
        codec = text_codec(model)
        if codec not in _spellings:
            _spellings[codec] = cls(codec)
        return _spellings[codec]

    def told(self, id: int, logprob: float, top: Sequence[tuple[int, float]], by_id: bool = False) -> ToldToken:
        """A token and its log probability, and the likeliest ones; with `by_id` they are named by their ids."""
        likeliest = [LikelyToken(*self._parts(other, value, by_id)) for other, value in top]
        return ToldToken(*self._parts(id, logprob, by_id), likeliest)

    def scored(self, scores: Sequence[TokenScore], top: int) -> PromptLogprobs:
        """The tokens of a prompt, whose first one has no score, with `top` of the likeliest."""
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
        """What a token spells: for most the text that it adds, which may be a part of a character."""
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
    """The numbers of tokens, as `passages` noted them, without those that the client has not been sent."""
    read, known, written = (int(context.noted[f"{name}_tokens"]) for name in ("prompt", "cached", "completion"))
    written -= pending
    return TokensUsed(read, written, read + written, PromptTokens(known))
